"""Training of the soft prompt: the server's only adaptation to the noise (paper, Section 4.2)."""

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from del_lightning.config import PromptConfig
from del_lightning.data import Batch
from del_lightning.modules.base import FrozenBackboneModule, warmup_then_linear_decay
from del_lightning.split import SplitModel


class PromptTuning(FrozenBackboneModule):
    """Trains P against freshly privatised prompts; LLM and codec are frozen.

    Gradient and optimizer state exist for the k x b numbers of P alone.
    """

    def __init__(self, split: SplitModel, config: PromptConfig, seed: int = 0) -> None:
        """``split`` must hold a soft prompt; its method may be any front-end, or None for clean prompts."""
        super().__init__(config, seed)
        assert split.prompt is not None
        self.split = split
        self.split.requires_grad_(False)
        split.prompt.requires_grad_(True)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """NLL of the continuation given the privatised prompt; logits only where the loss is."""
        release = None if self.split.method is None else self.split.release(batch, generator)
        return self.split.loss(batch, release)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on P with linear decay."""
        optimizer = torch.optim.AdamW(
            self.trainable().values(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        schedule = warmup_then_linear_decay(optimizer, self.config.warmup_steps, self.config.steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
