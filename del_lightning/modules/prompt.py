"""Training of the soft prompt, in the paper the server's only adaptation to the noise (Section 4.2).

A low-rank adapter may be trained with it.
"""

from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from del_lightning.config import AdapterConfig, PromptConfig
from del_lightning.data import Batch
from del_lightning.modules.adapter import LowRankAdapter
from del_lightning.modules.base import FrozenBackboneModule, warmup_then_linear_decay
from del_lightning.split import SplitModel


class PromptTuning(FrozenBackboneModule):
    """Trains P against freshly privatised prompts; LLM and codec are frozen.

    Gradient and optimizer state exist for the k x b numbers of P alone, and for those of the adapter if there is one.
    """

    def __init__(
        self,
        split: SplitModel,
        config: PromptConfig,
        seed: int = 0,
        adapter: LowRankAdapter | None = None,
        adapter_learning_rate: float = AdapterConfig.learning_rate,
    ) -> None:
        """Freeze everything but the soft prompt and the adapter.

        Args:
            split: Holds a soft prompt; its method may be any front-end, or None for clean prompts.
            config: Schedule.
            seed: Names the noise streams.
            adapter: In place in ``split``'s language model; None trains the soft prompt alone.
            adapter_learning_rate: Of the adapter's weights.
        """
        super().__init__(config, seed)
        assert split.prompt is not None
        self.split = split
        self.split.requires_grad_(False)
        split.prompt.requires_grad_(True)
        self.adapter_learning_rate = adapter_learning_rate
        for weight in adapter.weights().values() if adapter is not None else ():
            weight.requires_grad_(True)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """NLL of the continuation given the privatised prompt; logits only where the loss is."""
        release = None if self.split.method is None else self.split.release(batch, generator)
        return self.split.loss(batch, release)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with linear decay; the adapter at a learning rate of its own."""
        trained = self.trainable()  # asked here and not in the constructor: a strategy may have wrapped them since
        ours = {name: weight for name, weight in trained.items() if name.startswith("split.prompt.")}
        groups: list[dict[str, Any]] = [{"params": list(ours.values())}]
        if adapter := [weight for name, weight in trained.items() if name not in ours]:
            groups.append({"params": adapter, "lr": self.adapter_learning_rate})
        optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
        schedule = warmup_then_linear_decay(optimizer, self.config.warmup_steps, self.config.steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
