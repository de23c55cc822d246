"""One way to run Lightning's Trainer for every trained part: checkpoints, resume, best validation, record."""

import logging
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger

from del_lightning import ranks
from del_lightning.artifacts import write_text
from del_lightning.callbacks import History, at_step
from del_lightning.checkpoints import EXTENSION, SafetensorsIO
from del_lightning.config import TrainerConfig
from del_lightning.data import Batch
from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.llm import FrozenLLM
from del_lightning.modules.base import FrozenBackboneModule
from del_lightning.refusal import wants_tracebacks
from del_lightning.strategies import strategy
from del_lightning.terminal import say


def uses_cuda(config: TrainerConfig) -> bool:
    """Whether a run takes GPUs, so far as that can be told without launching it."""
    return config.accelerator != "cpu" and torch.cuda.is_available()


def pick_device(config: TrainerConfig) -> torch.device:
    """The device that training, evaluation and attacks share.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    if config.accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise ConfigError(
            f"`trainer.accelerator` must be auto or cpu on a machine without CUDA, got {config.accelerator!r}"
        )
    cuda = uses_cuda(config)
    if cuda and config.devices > torch.cuda.device_count():
        raise ConfigError(
            f"`trainer.devices` must be at most the {torch.cuda.device_count()} of this machine, got {config.devices}"
        )
    return torch.device("cuda", ranks.local_rank()) if cuda else torch.device("cpu")


def determined_by(config: TrainerConfig, *, full_precision: bool = False) -> dict[str, Any]:
    """What of the trainer's settings determines a trained part, for its key; see :func:`fit` for full precision."""
    # A default is no part of the key: what was trained before there was a choice stays valid.
    default, together = TrainerConfig(), config.devices * config.num_nodes
    names = ("compile",) if full_precision else ("precision", "compile")
    found = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(default, name)}
    return {"accumulate": config.accumulate_grad_batches, **found, **({} if together == 1 else {"ranks": together})}


@dataclass(frozen=True)
class Fit:
    """What a training run leaves besides the module, whose weights are those of the best validation."""

    history: list[dict[str, float]]
    steps: int
    best: float
    """The lowest value of what the module monitors."""


class _StepBar(RichProgressBar):
    """Progress bar that counts steps: batches are drawn without end, so there are no epochs to name."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "training step".ljust(len(self.validation_description))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """All but the logger's version, which tells a reader nothing."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class _Stopwatch(L.Callback):
    """Leaves the time spent beside the checkpoints, so that a resumed run reports the sum."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "seconds.txt"
        self.before = float(self.path.read_text()) if self.path.exists() else 0.0
        self.start = time.perf_counter()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: object) -> None:
        if trainer.is_global_zero:
            write_text(self.path, f"{self.before + time.perf_counter() - self.start:.1f}\n")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The attempt that finishes is timed by the artefact store itself.
        if trainer.is_global_zero:
            write_text(self.path, f"{self.before:.1f}\n")


class _BestCheckpoint(ModelCheckpoint):
    """The weights of the best validation so far."""

    FILE_EXTENSION = EXTENSION


class _Start(L.Callback):
    """Where a module's start counts: its weights before the first step, and what validation says of them.

    Made before the fit: a resumed run makes the same module, and has the score from its checkpoint.
    """

    def __init__(self, module: FrozenBackboneModule) -> None:
        self.counts, self.monitor = module.start_counts, module.monitor
        kept = module.trainable().items() if self.counts else ()
        self.weights = {name: value.detach().cpu().clone() for name, value in kept}
        self.score: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.counts and not trainer.global_step:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
            self.score = float(trainer.callback_metrics[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score = state_dict["score"]


class _LastCheckpoint(Checkpoint):
    """Leaves the file to resume from: every few steps, and after every validation.

    Not between a step and its validation: Lightning would resume behind that validation, and the best of the run could
    be missed. Not when training stops early: resumed, it would go on; from the checkpoint before it stops again.
    """

    def __init__(self, folder: Path, every: int, validate_every: int) -> None:
        self.path, self.every, self.validate_every = folder / f"last{EXTENSION}", every, validate_every

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step and trainer.is_global_zero:
            say(f"continuing from step {trainer.global_step} of {trainer.max_steps}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        if at_step(trainer, batch_idx, self.every) and trainer.global_step % self.validate_every:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step and not trainer.should_stop:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)


def fit(
    module: FrozenBackboneModule,
    data: L.LightningDataModule,
    config: TrainerConfig,
    folder: Path,
    *,
    callbacks: Sequence[L.Callback] = (),
    logger: Logger | bool = False,
    full_precision: bool = False,
) -> Fit:
    """Train ``module`` by its own schedule, resuming from ``folder`` if a run was interrupted there.

    The module ends with the weights of its best validation. Where its start counts, one is made before the first step
    too. ``full_precision`` trains in float32 whatever the configuration says.

    Raises:
        ArtifactError: The run was resumed in a folder of another name, which lost its best validation; or another rank
            ended.
        Followed: The training is over and this is not rank 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home, history = _home(module, config), History(config.log_every)
    best = _BestCheckpoint(
        folder,
        filename="best",
        monitor=module.monitor,
        save_top_k=1,
        save_weights_only=True,
        enable_version_counter=False,
    )
    last = _LastCheckpoint(folder, config.checkpoint_every, _validate_every(module))
    start, extra = _Start(module), _optional_callbacks(config, module.monitor, module.config.patience)
    with _without_advice():
        trainer = _trainer(
            module,
            config,
            folder,
            callbacks=[*callbacks, history, _Stopwatch(folder), start, best, last, *extra],
            logger=logger,
            precision="32-true" if full_precision else config.precision,
        )
        _leave_sigterm(trainer)
        with _interruptible(), _others_may_end():
            trainer.fit(module, data, ckpt_path=last.path if last.path.exists() else None)
    score = _take_start(module, start, _take_best(module, best, folder))
    # Lightning leaves everything, the shared language model too, on the CPU.
    module.to(home)
    if not trainer.is_global_zero:
        raise ranks.Followed
    return Fit(history.rows, trainer.global_step, score)


def _validate_every(module: FrozenBackboneModule) -> int:
    """Steps between two validations; a short training is validated once, at its end."""
    return min(module.config.validate_every, module.config.steps)


def _trainer(
    module: FrozenBackboneModule,
    config: TrainerConfig,
    folder: Path,
    *,
    callbacks: list[L.Callback],
    logger: Logger | bool,
    precision: str,
) -> L.Trainer:
    """Lightning's Trainer for the module's schedule."""
    schedule = module.config
    return L.Trainer(
        accelerator=pick_device(config).type,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy(config),
        precision=cast(Any, precision),
        max_steps=schedule.steps,
        accumulate_grad_batches=config.accumulate_grad_batches,
        gradient_clip_val=schedule.gradient_clip,
        val_check_interval=_validate_every(module) * config.accumulate_grad_batches,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        logger=logger,
        callbacks=callbacks,
        enable_progress_bar=config.progress_bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        plugins=[SafetensorsIO()],
    )


def _home(module: FrozenBackboneModule, config: TrainerConfig) -> torch.device:
    """Where the module belongs between trainings: beside its language model, which may be too large for a device."""
    llms = (part for part in module.modules() if isinstance(part, FrozenLLM))
    return next((llm.device for llm in llms), pick_device(config))


def _take_best(module: FrozenBackboneModule, best: ModelCheckpoint, folder: Path) -> float:
    """Give the module its best weights; returns what they scored."""
    if best.best_model_score is None:  # Lightning forgets the best so far when a resumed run finds another folder name.
        raise ArtifactError(f"{folder} must hold the best validation of its run, got none: was it moved? Delete it")
    checkpoint = SafetensorsIO().load_checkpoint(best.best_model_path)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    return float(best.best_model_score)


def _take_start(module: FrozenBackboneModule, start: _Start, score: float) -> float:
    """Give the module back what it started with, where that counts and training gained nothing; returns the score."""
    if start.score is None or start.score > score:
        return score
    module.load_state_dict(start.weights, strict=False)
    return start.score


EXPECTED = (
    r"Found \d+ module\(s\) in eval mode",  # the frozen model, on purpose
    r"The '\w+' does not have many workers",  # batches are tensors in memory
    r"Checkpoint directory .* exists and is not empty",  # what a run resumes from
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # lightning 2.6's own call
)
"""Warnings of Lightning that say nothing new about a run of ours."""


def _leave_sigterm(trainer: L.Trainer) -> None:
    """On SIGTERM a training ends as the program would without Lightning, whose handler waits for the other ranks.

    They wait for this one elsewhere, so that none of them would ever end. There is nothing to save: a run goes on from
    its last checkpoint wherever it was killed. A callback would be late: ranks wait before its first hook.
    """
    connector, handler = trainer._signal_connector, signal.getsignal(signal.SIGTERM)
    register = connector.register_signal_handlers

    def register_others() -> None:
        register()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    connector.register_signal_handlers = register_others  # type: ignore[method-assign]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays what it is everywhere else; Lightning turns it into an exit without a word."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


LOST = r"Connection (?:was likely )?closed|Connection reset by peer|Broken pipe|remote process exited"
"""What gloo, NCCL and torch's store say on one rank when another is gone."""


@contextmanager
def _others_may_end() -> Iterator[None]:
    """A rank that is left alone has nothing of its own to report: why another ended, that one says."""
    try:
        yield
    except RuntimeError as error:
        theirs = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if wants_tracebacks() or not theirs or not re.search(LOST, str(error)):
            raise
        raise ArtifactError(
            "another process of this run ended: the same command goes on from what is done "
            "(HYDRA_FULL_ERROR=1 shows where this one was)"
        ) from error


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep Lightning's hardware lines, tips and the warnings above out of the terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _optional_callbacks(config: TrainerConfig, monitor: str, patience: int | None) -> list[L.Callback]:
    callbacks: list[L.Callback] = []
    if patience is not None:
        callbacks.append(EarlyStopping(monitor, patience=patience))
    if config.progress_bar:
        callbacks.append(_StepBar(leave=True))
    return callbacks
