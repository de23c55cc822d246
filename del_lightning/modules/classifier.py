"""Classification of private text behind a frozen LLM, end to end: no denoiser, the task's own loss through the noise.

    codes -> restored embeddings in the public template -> [soft prompt ; ...] -> frozen LLM -> last position -> head

What trains is a soft prompt, or for comparison a low-rank adapter of the server's model, together with a head. The
head is linear on the hidden state, or a verbaliser that compares the logits of two label words and has no parameters.
A head alone learns from cached states instead, in seconds.
"""

from pathlib import Path

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from del_lightning.data import Batch
from del_lightning.data.glue import LabelledBatch
from del_lightning.modules.base import FrozenBackboneModule, Schedule, warmup_then_linear_decay
from del_lightning.split import SplitModel

CLASSES = 2
HEAD_LEARNING_RATE, HEAD_WEIGHT_DECAY = 1e-3, 0.1
EPOCHS, EPOCH_BATCH = 60, 32
"""Passes over cached states, and states a step: enough that the best validation is seldom the last."""


class Head(nn.Module):
    """Class logits from standardised hidden states.

    Args:
        width: h of the states.
        hidden: Width of a hidden layer with leaky ReLU between (SnD's fully connected classifier); None is linear.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        last = nn.Linear(width if hidden is None else hidden, CLASSES)
        # The first guess is that both classes are equally likely, whatever the states' size.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        between = [] if hidden is None else [nn.Linear(width, hidden), nn.LeakyReLU()]
        self.layers = nn.Sequential(*between, last)

    def standardise(self, states: Tensor) -> None:
        """Take mean and spread from states (N, h); they differ a hundredfold between coordinates."""
        states = states.float()
        self.mean.copy_(states.mean(dim=0))
        self.scale.copy_(states.std(dim=0).clamp_min(1e-5))

    def guess(self, labels: Tensor) -> None:
        """Start from the shares of the classes among ``labels`` (N,): a head that learns nothing says the majority."""
        counts = torch.bincount(labels, minlength=CLASSES).float() + 1
        with torch.no_grad():
            self.layers[-1].bias.copy_((counts / counts.sum()).log())  # type: ignore[operator]

    def forward(self, states: Tensor, logits: Tensor | None = None) -> Tensor:
        """Class logits (B, 2) of states (B, h); next-token logits are ignored."""
        classes: Tensor = self.layers((states.float() - self.mean) / self.scale)
        return classes

    def save(self, path: Path) -> None:
        """Write weights and standardisation as safetensors."""
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, path)

    def load(self, path: Path) -> None:
        """Read what :meth:`save` wrote."""
        self.load_state_dict(load_file(path))


class Verbaliser(nn.Module):
    """Class logits are the next-token logits of one label word a class."""

    word_ids: Tensor

    def __init__(self, word_ids: list[int]) -> None:
        """``word_ids``: first token of the word of class 0 and of class 1."""
        super().__init__()
        self.register_buffer("word_ids", torch.tensor(word_ids), persistent=False)

    def forward(self, states: Tensor, logits: Tensor | None = None) -> Tensor:
        """Class logits (B, 2) from next-token logits (B, V); states are ignored."""
        assert logits is not None
        return logits[:, self.word_ids].float()


def fit_head(head: Head, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], seed: int) -> float:
    """Train a head on cached states; it ends with the weights of its best validation, which may be its first guess.

    Args:
        head: Changed in place.
        train: States (N, h) and classes (N,).
        validation: The same of the held-out part.
        seed: Of the order of the states.

    Returns:
        The lowest validation cross-entropy, in nats.
    """
    states, labels = train
    head.standardise(states)
    head.guess(labels)
    optimizer = torch.optim.AdamW(head.parameters(), lr=HEAD_LEARNING_RATE, weight_decay=HEAD_WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    best, kept = _entropy(head, validation), {name: value.clone() for name, value in head.state_dict().items()}
    for _ in range(EPOCHS):
        order = torch.randperm(len(states), generator=generator).to(states.device)
        for chosen in torch.split(order, EPOCH_BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(states[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if (entropy := _entropy(head, validation)) < best:
            best, kept = entropy, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(kept)
    return best


@torch.no_grad()
def _entropy(head: Head, data: tuple[Tensor, Tensor]) -> float:
    return float(nn.functional.cross_entropy(head(data[0]), data[1]))


class ClassifierTraining(FrozenBackboneModule):
    """Trains what in ``split`` requires a gradient (soft prompt, adapter) and the head with the task's cross-entropy.

    The head comes fitted, and a short training through noise need not improve upon it: the start may be the best.

    Args:
        split: Front-end and server; a soft prompt in it trains, and so does an adapter in its language model.
        head: Reads the last position.
        config: Schedule; its learning rate is that of the prompt or adapter.
        seed: Names the noise streams.
    """

    monitor = "val/loss"
    start_counts = True

    def __init__(self, split: SplitModel, head: Head | Verbaliser, config: Schedule, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.split, self.head = split, head

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Cross-entropy of the classes given freshly privatised text."""
        assert isinstance(batch, LabelledBatch)
        states, logits = self.split.last(batch, self.split.release(batch, generator))
        return nn.functional.cross_entropy(self.head(states, logits), batch.label)

    def scored(self, batch: Batch) -> int:
        """Examples."""
        return len(batch.input_ids)

    def score(self, loss: Tensor) -> Tensor:
        """The cross-entropy itself."""
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with linear decay; the head at its own rate."""
        head = [parameter for parameter in self.head.parameters() if parameter.requires_grad]
        other = [parameter for name, parameter in self.trainable().items() if not name.startswith("head.")]
        optimizer = torch.optim.AdamW(
            [
                {"params": other, "lr": self.config.learning_rate, "weight_decay": self.config.weight_decay},
                {"params": head, "lr": HEAD_LEARNING_RATE, "weight_decay": HEAD_WEIGHT_DECAY},
            ]
        )
        schedule = warmup_then_linear_decay(optimizer, self.config.warmup_steps, self.config.steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
