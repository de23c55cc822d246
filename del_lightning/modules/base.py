"""What the training modules share: a frozen LLM that stays out of checkpoints, named noise, a monitored loss."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import lightning as L
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch import Tensor, nn

from del_lightning.data import Batch
from del_lightning.seeding import stream_seed


class Schedule(Protocol):
    """How long and how fast a module trains."""

    steps: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    gradient_clip: float
    validate_every: int
    patience: int | None


class FrozenBackboneModule(L.LightningModule, ABC):
    """LightningModule around a frozen LLM: only parameters that train are saved, loaded and optimised.

    Args:
        config: Schedule: steps, learning rate, warm-up, clipping, validation.
        seed: Names the noise streams.

    Attributes:
        monitor: Name of what validation logs and the best checkpoint has least of.
        start_counts: Whether the weights before the first step may be the best.
    """

    monitor: ClassVar[str] = "val/perplexity"
    start_counts: bool = False

    def __init__(self, config: Schedule, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        # A checkpoint without the frozen weights must still load.
        self.strict_loading = False

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of everything that receives gradients."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop the frozen weights: a checkpoint holds the few megabytes that were trained."""
        names = self.trainable().keys()
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in names}

    def noise(self, purpose: str, index: int) -> torch.Generator:
        """Noise stream of one step: never the same across purposes, steps or ranks."""
        seed = stream_seed(self.seed, type(self).__name__, purpose, index, self.global_rank)
        return torch.Generator(device=self.device).manual_seed(seed)

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """What training lowers, a mean over what the batch scores, under fresh noise from ``generator``.

        Here: NLL of the continuation tokens.
        """

    def scored(self, batch: Batch) -> int:
        """How many things of a batch its loss is a mean over."""
        return int(batch.target_mask.sum())

    def score(self, loss: Tensor) -> Tensor:
        """The monitored figure, from the mean loss of a whole validation."""
        return loss.exp()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step: the stream is named by the batch's place in training, so that a resumed run repeats it."""
        accumulate = self.trainer.accumulate_grad_batches
        loss = self.loss(batch, self.noise("train", self.global_step * accumulate + batch_idx % accumulate))
        loss = loss * self._weight(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.input_ids), sync_dist=self._together)
        return loss

    @property
    def _together(self) -> bool:
        return self.trainer.world_size > 1

    def _weight(self, batch: Batch) -> float:
        """This rank's share of what the global batch scores, times the ranks.

        Gradients are averaged over ranks; so weighted, they are those of one process with the global batch.
        """
        if not self._together:
            return 1.0
        scored = self.scored(batch)
        total = self.trainer.strategy.reduce(torch.tensor(float(scored), device=self.device), reduce_op="sum")
        return scored * self.trainer.world_size / float(total)

    def on_validation_epoch_start(self) -> None:
        """Start the weighted sum."""
        self.validation_sum = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Same noise at every validation, so that checkpoints are compared on equal terms."""
        loss, count = self.loss(batch, self.noise("validation", batch_idx)), self.scored(batch)
        self.validation_sum += torch.tensor([float(loss) * count, count], dtype=torch.float64, device=self.device)

    def on_validation_epoch_end(self) -> None:
        """Log the figure over all ranks."""
        total, count = self.trainer.strategy.reduce(self.validation_sum, reduce_op="sum")
        self.log(self.monitor, self.score(total / count).float(), prog_bar=True, sync_dist=self._together)


def warmup_then_linear_decay(optimizer: torch.optim.Optimizer, warmup: int, total: int) -> LRSchedulerConfigType:
    """Lightning's scheduler entry: learning rate up over ``warmup`` steps, then down to zero at ``total``."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (total - step) / max(1, total - warmup))

    return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}
