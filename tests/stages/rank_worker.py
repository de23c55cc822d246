"""One of the processes that torchrun starts: trains a soft prompt with the others, leaves what it ended with.

torchrun --nproc-per-node 2 tests/stages/rank_worker.py <model folder> <output folder> <strategy> <small batches a step>
"""

import sys
from contextlib import suppress
from pathlib import Path

import lightning as L
import torch
from safetensors.torch import save_file

from del_lightning import ranks
from del_lightning.callbacks import AttackMonitor, CommunicationMonitor, PrivacyMonitor
from del_lightning.config import ModelConfig, PromptConfig, TrainerConfig
from del_lightning.loading import load_llm
from del_lightning.methods import Release
from del_lightning.modules import PromptTuning
from del_lightning.stages.training import fit
from tests.modules.factory import data_for, split_for


class Draws(L.Callback):
    """Remembers the noise that the front-end really drew for every small batch, and what the metrics of the last were.

    Not what the module would hand out if asked: a training that draws elsewhere must be seen here.
    """

    def __init__(self) -> None:
        self.noise: list[torch.Tensor] = []
        self.metrics: dict[str, torch.Tensor] = {}
        self._trains = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: PromptTuning) -> None:  # type: ignore[override]
        method = pl_module.split.method
        assert method is not None
        release = method.release

        def remembered(token_ids: torch.Tensor, generator: torch.Generator | None = None) -> Release:
            if not self._trains:
                return release(token_ids, generator)
            assert generator is not None  # torch's own stream is the same on all ranks, and gone after an interruption
            again, same = generator.clone_state(), generator.clone_state()
            found = release(token_ids, generator)
            # The numbers that follow in this stream are those the codes came from, and no others.
            assert torch.equal(release(token_ids, again).payload, found.payload)
            self.noise.append(torch.rand(4, generator=same))
            return found

        method.release = remembered  # type: ignore[method-assign]

    def on_train_batch_start(self, *_: object) -> None:
        self._trains = True

    def on_before_backward(self, *_: object) -> None:
        self._trains = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        names = ("communication/megabytes_sent", "attack/nn_asr", "val/perplexity")
        self.metrics = {name: trainer.callback_metrics[name].detach().clone().float() for name in names}


def main(model: str, out: str, strategy: str, accumulate: str) -> None:
    """Train, and write the trained tensors, the noise and the metrics of this rank."""
    torch.set_num_threads(1)
    llm, draws = load_llm(ModelConfig(name=model, dtype="float32")), Draws()
    schedule = PromptConfig(virtual_tokens=3, steps=4, batch_size=2, learning_rate=0.05, validate_every=2)
    trainer = TrainerConfig(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        accumulate_grad_batches=int(accumulate),
        progress_bar=False,
        checkpoint_every=1,
        log_every=1,
    )
    module = PromptTuning(split_for(llm), schedule, seed=0)
    folder = Path(out) / "training"
    callbacks = [PrivacyMonitor(6), CommunicationMonitor(), AttackMonitor(2), draws]
    with suppress(ranks.Followed):
        fit(module, data_for(llm), trainer, folder, callbacks=callbacks)
    tensors = {f"trained/{name}": value.detach() for name, value in module.trainable().items()}
    # A layer that every process holds again, whole.
    tensors["frozen"] = llm.model.get_parameter("model.layers.1.mlp.down_proj.weight").detach().clone()
    save_file(
        {**tensors, **draws.metrics, "noise": torch.stack(draws.noise)}, Path(out) / f"{ranks.rank()}.safetensors"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
