"""Training of the inverter: an adaptive attacker, who runs the mechanism at home."""

from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from del_lightning.attacks.inverter import Evidence, Inverter
from del_lightning.config import InverterConfig
from del_lightning.data import Batch
from del_lightning.methods import Method
from del_lightning.modules.base import FrozenBackboneModule, warmup_then_linear_decay

START = "inverter_start"


class InverterTraining(FrozenBackboneModule):
    """Trains an inverter on public text through the mechanism, with fresh noise at every step.

    A batch's sequences are its private and continuation tokens together, equally many in each, as in the blocks of a
    :class:`del_lightning.data.GenerationDataModule`. A position whose true token is no candidate counts nowhere: no
    context could bring it back.

    Attributes:
        start_perplexity: That of the exact attack, which training starts from, on the validation blocks; infinite
            before the first validation.
    """

    def __init__(self, method: Method, inverter: Inverter, config: InverterConfig, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.method, self.inverter, self.schedule = method.requires_grad_(False), inverter, config
        self.start_perplexity = float("inf")
        self._counted = 0

    def losses(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Negative log posteriors (n,) of the batch's true tokens, of the inverter and of the exact attack, in nats."""
        ids = batch.input_ids[batch.private_mask | batch.target_mask].view(len(batch.input_ids), -1)
        lengths = torch.full((len(ids),), ids.shape[1], device=ids.device)
        evidence = self.inverter.evidence(self.method, self.method.release(ids, generator).rows(), lengths)
        known, truth = _places(evidence, ids)
        scores = self.inverter(evidence)[known]
        exact = nn.functional.cross_entropy(evidence.log_posterior[known], truth, reduction="none")
        return nn.functional.cross_entropy(scores, truth, reduction="none"), exact

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean negative log posterior of the true tokens under fresh noise, in nats."""
        own = self.losses(batch, generator)[0]
        self._counted = len(own)
        return own.mean()

    def scored(self, batch: Batch) -> int:
        """Positions of the batch's last loss: which ones count depends on the noise."""
        return self._counted

    def on_validation_epoch_start(self) -> None:
        """Start the sums of losses, of the start's losses, and of tokens."""
        self.validation_nll = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Same noise at every validation, so that checkpoints are compared on equal terms."""
        own, exact = self.losses(batch, self.noise("validation", batch_idx))
        count = torch.tensor(len(own), device=self.device)
        self.validation_nll += torch.stack([own.double().sum(), exact.double().sum(), count])

    def on_validation_epoch_end(self) -> None:
        """Log the perplexity over all ranks."""
        own, exact, count = self.trainer.strategy.reduce(self.validation_nll, reduce_op="sum")
        self.start_perplexity = float((exact / count).exp())
        self.log("val/perplexity", (own / count).exp().float(), prog_bar=True, sync_dist=self._together)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the start's perplexity beside the weights: a run that was resumed after its last validation needs it."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[START] = self.start_perplexity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`on_save_checkpoint`."""
        self.start_perplexity = checkpoint[START]

    def keep_the_better(self, best_perplexity: float) -> None:
        """Return to the exact attack if training found nothing better than it on the validation blocks."""
        if best_perplexity >= self.start_perplexity:
            self.inverter.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and linear decay."""
        config = self.schedule
        optimizer = torch.optim.AdamW(
            self.trainable().values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        schedule = warmup_then_linear_decay(optimizer, config.warmup_steps, config.steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def _places(evidence: Evidence, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (S, T) whose true token ``ids`` (S, T) is a candidate, and which one it is there (n,)."""
    match = evidence.ids == ids[..., None]
    known = match.any(-1)
    return known, match.int().argmax(-1)[known]
