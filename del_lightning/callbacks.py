"""Callbacks that keep privacy, communication and attack success in sight while a prompt trains.

They log to whatever logger the Trainer has. The names are stable: ``privacy/...``, ``communication/...``,
``attack/...``.
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from del_lightning.attacks import NearestNeighbour
from del_lightning.data import Batch
from del_lightning.methods import Method
from del_lightning.metrics import clopper_pearson
from del_lightning.modules.prompt import PromptTuning
from del_lightning.seeding import stream
from del_lightning.split import SplitModel
from del_lightning.terminal import say

_print_once = rank_zero_only(say)


def _method_of(module: L.LightningModule) -> Method | None:
    return module.split.method if isinstance(module, PromptTuning) else None


def at_step(trainer: L.Trainer, batch_idx: int, every: int) -> bool:
    """Whether this batch completed an optimizer step, and one whose number ``every`` divides."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and trainer.global_step % every == 0


def sum_over_ranks(trainer: L.Trainer, *counts: int) -> list[int]:
    """Whole numbers, each summed over the ranks."""
    if trainer.world_size == 1:
        return list(counts)
    device = trainer.strategy.root_device
    total = trainer.strategy.reduce(torch.tensor(counts, device=device), reduce_op="sum")
    return [int(count) for count in total]


class PrivacyMonitor(L.Callback):
    """Logs mu a token with the exact epsilons and attack bounds of a token and a prompt; prints the statement once.

    Args:
        sequence_tokens: Prompt length T for the sequence-level figures.
        delta: delta of the epsilons.
    """

    def __init__(self, sequence_tokens: int, delta: float = 1e-5) -> None:
        self.sequence_tokens, self.delta = sequence_tokens, delta
        self.values: dict[str, float] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Account once: the mechanism does not change while a prompt trains."""
        method = _method_of(pl_module)
        if method is None:
            return
        statement = method.statement(self.sequence_tokens, self.delta)
        figures = {
            "privacy/gdp_mu_token": statement.mu_token,
            "privacy/gdp_mu_effective_token": statement.mu_effective,
            "privacy/epsilon_token": statement.epsilon_token,
            "privacy/epsilon_sequence": statement.epsilon_sequence,
        }
        figures |= {f"privacy/attack_bound_{guarantee.unit}": guarantee.attack_bound for guarantee in statement.units}
        self.values = {name: float(value) for name, value in figures.items() if value is not None}
        _print_once(statement.summary())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the figures beside the loss."""
        pl_module.log_dict(self.values, batch_size=len(batch.input_ids))


class CommunicationMonitor(L.Callback):
    """Logs the payload's bits a private token and the megabytes that training prompts would have sent so far."""

    def __init__(self) -> None:
        self.bits, self.tokens = 0, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the private tokens; megabytes are those of all ranks."""
        method = _method_of(pl_module)
        if method is None:
            return
        one_token = method.release(batch.input_ids[:1, :1], stream("payload", device=batch.input_ids.device))
        own = int(batch.private_mask.sum())
        [tokens] = sum_over_ranks(trainer, own)  # every rank counts all, so that any rank's count resumes all ranks
        self.tokens += tokens
        self.bits += method.payload_bits(one_token) * tokens
        values = {
            "communication/bits_per_token": self.bits / self.tokens,
            "communication/megabytes_sent": self.bits / 8e6,
        }
        pl_module.log_dict(values, batch_size=len(batch.input_ids))

    def state_dict(self) -> dict[str, int]:
        """Survive a resume."""
        return {"bits": self.bits, "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue counting."""
        self.bits, self.tokens = state_dict["bits"], state_dict["tokens"]


class AttackMonitor(L.Callback):
    """Attacks the training batch's prompts every few steps and logs the success rate with its 95% interval.

    Args:
        every: Steps between two attacks.
        metric: cosine, l2 or code.
        chunk: Attacked tokens a matrix product.
    """

    def __init__(self, every: int, metric: str = "cosine", chunk: int = 1024) -> None:
        self.every = every
        self.attack = NearestNeighbour(metric, chunk)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Invert a fresh release of this batch's private tokens."""
        if not isinstance(pl_module, PromptTuning) or pl_module.split.method is None:
            return
        if not at_step(trainer, batch_idx, self.every):
            return
        hits = self.hits(pl_module.split, batch, pl_module.noise("attack-monitor", trainer.global_step))
        rate = clopper_pearson(*sum_over_ranks(trainer, hits, int(batch.private_mask.sum())))
        values = {"attack/nn_asr": rate.value, "attack/nn_asr_low": rate.low, "attack/nn_asr_high": rate.high}
        pl_module.log_dict(values, batch_size=len(batch.input_ids))  # type: ignore[arg-type]

    def hits(self, split: SplitModel, batch: Batch, generator: torch.Generator) -> int:
        """Private tokens of ``batch`` that the attack reads from a fresh release."""
        assert split.method is not None
        guess = self.attack(split.method, split.release(batch, generator), batch.private_mask.sum(1))[self.attack.name]
        return int((guess[:, 0] == batch.input_ids[batch.private_mask]).sum())


class History(L.Callback):
    """Keeps the logged scalars of every logging step for the artefact's record, across interruptions."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Record training scalars; the attack's only where it was made, not Lightning's copy of the last one."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [callback for callback in callbacks if isinstance(callback, AttackMonitor)]
        attacked = any(at_step(trainer, batch_idx, monitor.every) for monitor in monitors)
        if attacked or at_step(trainer, batch_idx, self.every):
            self._record(trainer, "train/", "privacy/", "communication/", *(["attack/"] if attacked else []))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record validation scalars."""
        if not trainer.sanity_checking:
            self._record(trainer, "val/")

    def _record(self, trainer: L.Trainer, *prefixes: str) -> None:
        scalars = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefixes)}
        if not scalars:
            return
        if self.rows and self.rows[-1]["step"] == trainer.global_step:
            self.rows[-1].update(scalars)
        else:
            self.rows.append({"step": float(trainer.global_step), **scalars})

    def state_dict(self) -> dict[str, Any]:
        """Survive a resume."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the record."""
        self.rows = state_dict["rows"]
