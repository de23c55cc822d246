"""SnD's denoiser (arXiv 2310.09130), at the user as its authors propose, and at the server as DEL's tables have it.

    user     [noisy pooled output ; clean embeddings ; effective noise] -> six layers -> position 0: pooled output
    server   noisy embeddings -> six layers -> embeddings for the frozen LLM -> pooled output

Both learn to give back the pooled output that the LLM computes from clean text; pooled means the state at the last
position, which in a causal model alone has seen everything. Only the user's can look at the clean text, and it may
therefore ignore the server: what it reaches with the server's answer blanked out is a control that belongs beside it.

Shape and training are SnD's: six post-norm layers of eight heads, feed-forward width 1024, dropout .2, a linear layer
behind, no positions; mean squared error, Adam at 1e-4, batches of 16. SnD's clip of the noisy embedding belongs to
the front-end (``baseline.metric.clip_to_largest``, or ``l2_clip``). Departures: the server's denoiser adds its output
to what it is given and starts at zero, so that a short training starts from no denoiser and not from none of the
text, and stays there if validation finds nothing better; and both learn on the task's own training texts where SnD
takes public ones: nothing they meet later is of another kind, but the classifier behind them learns from texts that
they have seen. SnD's clip is applied where the release is restored; attackers read the vector before it, so that what
they read is an upper end.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from del_lightning.config import DenoiserConfig
from del_lightning.data import Batch
from del_lightning.errors import ConfigError
from del_lightning.methods import Release
from del_lightning.modules.base import FrozenBackboneModule, warmup_then_linear_decay
from del_lightning.split import SplitModel

LAYERS, HEADS, FEED_FORWARD, DROPOUT = 6, 8, 1024, 0.2


class Denoiser(nn.Module):
    """Six transformer layers and a linear one; width b in and out.

    Args:
        width: b, a multiple of 8.

    Raises:
        ConfigError: The heads do not divide ``width``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % HEADS:
            raise ConfigError(f"a denoiser needs a model whose hidden size is a multiple of {HEADS}, got {width}")
        layer = nn.TransformerEncoderLayer(width, HEADS, FEED_FORWARD, DROPOUT, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.linear = nn.Linear(width, width)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Transform (B, T, b) where ``mask`` (B, T) is True on real positions; padding is neither seen nor zeroed."""
        hidden: Tensor = self.linear(self.layers(inputs.float(), src_key_padding_mask=~mask))
        return hidden


class ServerDenoiser(Denoiser):
    """Corrects the private positions of a sequence, seeing all of it; does nothing before it is trained."""

    def __init__(self, width: int) -> None:
        """``width``: b."""
        super().__init__(width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def correct(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Embeddings (B, T, b) with the private ones corrected."""
        change: Tensor = self(embeddings, batch.attention_mask)
        return embeddings + change.to(embeddings.dtype) * batch.private_mask[..., None]


class UserDenoiser(Denoiser):
    """Recovers the clean pooled output from the noisy one and what only the user knows."""

    def recover(self, pooled: Tensor, clean: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
        """Clean pooled output (B, b).

        Args:
            pooled: The server's answer (B, b); zeros leave the server out.
            clean: Embeddings (B, L, b) of the private tokens.
            noise: What the front-end added to them, as the server restores them (B, L, b).
            mask: (B, L), True on real tokens.
        """
        inputs = torch.cat([pooled[:, None].float(), clean.float(), noise.float()], dim=1)
        seen = torch.cat([mask.new_ones(len(mask), 1), mask, mask], dim=1)
        hidden: Tensor = self(inputs, seen)
        return hidden[:, 0]


class DenoisedSplit(SplitModel):
    """A split model whose server corrects the restored embeddings before the LLM reads them.

    Args:
        split: Language model, front-end and possibly a soft prompt.
        denoiser: The server's.
    """

    def __init__(self, split: SplitModel, denoiser: ServerDenoiser) -> None:
        super().__init__(split.llm, split.method, split.prompt)
        self.denoiser = denoiser

    def embed(self, batch: Batch, release: Release | None) -> Tensor:
        """Embeddings (B, T, b), private positions restored and corrected."""
        return self.denoiser.correct(super().embed(batch, release), batch)


class UserDenoised(nn.Module):
    """The user's half of SnD: private embeddings kept, the server's pooled output corrected.

    Args:
        split: Server and front-end.
        denoiser: The user's.
        server: False blanks the server's answer out: what the user reaches alone.
    """

    def __init__(self, split: SplitModel, denoiser: UserDenoiser, *, server: bool = True) -> None:
        super().__init__()
        self.split, self.denoiser, self.server = split, denoiser, server

    def pooled(self, batch: Batch, release: Release | None) -> Tensor:
        """Denoised pooled output (B, b)."""
        assert release is not None
        assert self.split.method is not None
        lengths = batch.private_mask.sum(dim=1)
        mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        clean = self.split.method.embedding_table[batch.input_ids[batch.private_mask]]
        noise = self.split.method.restore(release)[0] - clean
        return self.denoiser.recover(self._answer(batch, release), _rows(clean, mask), _rows(noise, mask), mask)

    @torch.no_grad()
    def _answer(self, batch: Batch, release: Release) -> Tensor:
        if self.server:
            return self.split.pooled(batch, release)
        return torch.zeros(len(batch.input_ids), self.split.llm.hidden_size, device=batch.input_ids.device)


def _rows(values: Tensor, mask: Tensor) -> Tensor:
    """Put values (N, b) into the True places of ``mask`` (B, L), row by row: (B, L, b)."""
    return values.new_zeros(*mask.shape, values.shape[-1]).masked_scatter(mask[..., None], values)


class CleanStates:
    """Pooled outputs that the plain LLM computes from clean text: what denoisers learn. Computed once an example.

    Args:
        split: The model alone: no front-end, no soft prompt.
    """

    def __init__(self, split: SplitModel) -> None:
        self.split = split
        self._known: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """States (B, b), float32; ``batch.index`` names the examples."""
        numbers = batch.index.tolist()
        if any(number not in self._known for number in numbers):
            states = self.split.pooled(batch, None).float().cpu()
            self._known |= dict(zip(numbers, states, strict=True))
        return torch.stack([self._known[number] for number in numbers]).to(batch.input_ids.device)


@contextmanager
def named_dropout(generator: torch.Generator) -> Iterator[None]:
    """Draw dropout masks from a stream's name too, so that a resumed run draws the same ones."""
    device = generator.device
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(generator.initial_seed() ^ 1)
        yield


class DenoiserTraining(FrozenBackboneModule):
    """Trains a denoiser, and the soft prompt in front of a server's if there is one, towards clean pooled outputs.

    Args:
        model: What is trained; its language model and front-end stay as they are.
        clean: Targets by part: ``train`` and ``validation`` number their examples apart.
        config: Schedule.
        seed: Names noise and dropout.
        prompt_rate: Learning rate of the soft prompt, whose few numbers need a far larger one than a denoiser's
            millions; None: the denoiser's.
    """

    monitor = "val/mse"

    def __init__(
        self,
        model: DenoisedSplit | UserDenoised,
        clean: dict[str, CleanStates],
        config: DenoiserConfig,
        seed: int = 0,
        prompt_rate: float | None = None,
    ) -> None:
        super().__init__(config, seed)
        self.model, self.clean = model, clean
        self.prompt_rate = config.learning_rate if prompt_rate is None else prompt_rate
        # A server's denoiser starts from none at all, which some steps of Adam need not improve upon.
        self.start_counts = isinstance(model, DenoisedSplit)
        self.split.requires_grad_(False)
        model.denoiser.requires_grad_(True)
        if self.split.prompt is not None:
            self.split.prompt.requires_grad_(True)

    @property
    def split(self) -> SplitModel:
        """Server and front-end."""
        return self.model.split if isinstance(self.model, UserDenoised) else self.model

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error of the denoised pooled output."""
        release = self.split.release(batch, generator)
        with named_dropout(generator):
            pooled = self.model.pooled(batch, release)
        part = "train" if self.training else "validation"
        return nn.functional.mse_loss(pooled.float(), self.clean[part](batch))

    def scored(self, batch: Batch) -> int:
        """Examples."""
        return len(batch.input_ids)

    def score(self, loss: Tensor) -> Tensor:
        """The error itself."""
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with linear decay; the soft prompt at its own rate."""
        prompt = [] if self.split.prompt is None else list(self.split.prompt.parameters())
        groups = [{"params": list(self.model.denoiser.parameters()), "lr": self.config.learning_rate}]
        groups += [{"params": prompt, "lr": self.prompt_rate}] if prompt else []
        optimizer = torch.optim.Adam(groups, weight_decay=self.config.weight_decay)
        schedule = warmup_then_linear_decay(optimizer, self.config.warmup_steps, self.config.steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
