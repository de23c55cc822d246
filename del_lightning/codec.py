"""Projection of token embeddings to short codes and back.

    e in R^b --W_e (d x b)--> code --clip to [-c, c]--> v --mechanism--> v_hat --W_d (b x d)--> e_hat in R^b

Both maps are linear without bias, d = b / 32 unless told otherwise. The encoder runs on the device (as a table
lookup: tokens are finitely many), the decoder at the server.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from del_lightning.errors import ArtifactError, ConfigError

PAPER_COMPRESSION = 32
"""The paper's b / d."""
AT_A_TIME = 1 << 25
"""Numbers of an embedding table in float64 at a time: 256 MiB, and as much again of what they are multiplied to."""


def default_dim(hidden_size: int) -> int:
    """Width of a code in the paper's setting, d = b / 32 (at least 1)."""
    return max(1, hidden_size // PAPER_COMPRESSION)


def check_dim(dim: int | None, hidden_size: int) -> None:
    """A code is no wider than an embedding; None stands for :func:`default_dim`.

    Raises:
        ConfigError: ``dim`` is not in 1..hidden_size.
    """
    if dim is not None and not 1 <= dim <= hidden_size:
        raise ConfigError(f"`codec.dim` must be between 1 and the hidden size {hidden_size}, got {dim}")


class LinearCodec(nn.Module):
    """Linear encoder and decoder with a clipping bound.

    Attributes:
        encoder: W_e, weight (d, b).
        decoder: W_d, weight (b, d).
        bound: c, the largest absolute value of a code's coordinate (scalar buffer).
    """

    bound: Tensor

    def __init__(self, hidden_size: int, dim: int, bound: float) -> None:
        """Create a codec with torch's random initialisation.

        Raises:
            ConfigError: ``dim`` is not in 1..hidden_size or ``bound`` is not positive.
        """
        super().__init__()
        check_dim(dim, hidden_size)
        if not bound > 0:
            raise ConfigError(f"`codec.bound` must be a positive number, got {bound}")
        self.encoder = nn.Linear(hidden_size, dim, bias=False)
        self.decoder = nn.Linear(dim, hidden_size, bias=False)
        self.register_buffer("bound", torch.tensor(float(bound)))

    @property
    def dim(self) -> int:
        """Code width d."""
        return self.encoder.out_features

    def encode(self, embeddings: Tensor) -> Tensor:
        """Project embeddings (..., b) and clip every coordinate to [-c, c]; returns (..., d)."""
        projected: Tensor = self.encoder(embeddings)
        return projected.clamp(-self.bound, self.bound)

    def decode(self, codes: Tensor) -> Tensor:
        """Map real-valued codes (..., d) back to embeddings (..., b)."""
        restored: Tensor = self.decoder(codes)
        return restored

    @torch.no_grad()
    def clipped_share(self, embeddings: Tensor, weights: Tensor | None = None) -> float:
        """Share of coordinates that clipping changes.

        Args:
            embeddings: (N, b).
            weights: (N,) non-negative weight of each row (token frequencies); None weighs all the same.
        """
        clipped = (self.encoder(embeddings).abs() > self.bound).float().mean(dim=-1)
        weights = torch.ones_like(clipped) if weights is None else weights.to(clipped)
        return float((clipped * weights).sum() / weights.sum())

    @torch.no_grad()
    def calibrate_bound(self, embeddings: Tensor, weights: Tensor, quantile: float) -> None:
        """Set c to the weighted ``quantile`` of the absolute coordinates over a vocabulary (V, b), weights (V,)."""
        size, order = self.encoder(embeddings).abs().flatten().sort()
        mass = weights.to(size)[:, None].expand(-1, self.dim).flatten()[order].double().cumsum(0)
        index = torch.searchsorted(mass, quantile * mass[-1]).clamp(max=size.numel() - 1)
        self.bound.fill_(size[index])

    def save(self, path: Path) -> None:
        """Write the weights and the bound as safetensors."""
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> "LinearCodec":
        """Read a codec written by :meth:`save`.

        Raises:
            ArtifactError: The file is missing, damaged, or does not hold a codec.
        """
        try:
            state = load_file(path)
            dim, hidden_size = state["encoder.weight"].shape
            codec = cls(hidden_size, dim, float(state["bound"]))
            codec.load_state_dict(state)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())  # torch reports mismatched shapes over several lines
            raise ArtifactError(f"{path} must be a codec's safetensors file: {reason}") from None
        return codec.eval()


@torch.no_grad()
def pca_codec(embeddings: Tensor, frequencies: Tensor, dim: int) -> LinearCodec:
    """Codec whose code keeps the most of a randomly met token's embedding: W_e = U^T, W_d = U.

    U holds the leading eigenvectors of sum_w p(w) e_w e_w^T, so frequent tokens count for more and the linear
    reconstruction error under p is the least possible at width ``dim``.

    Args:
        embeddings: Vocabulary table (V, b).
        frequencies: Token probabilities or counts p (V,), non-negative.
        dim: Code width d.
    """
    weights = (frequencies.double() / frequencies.double().sum()).sqrt()
    rows, width = max(1, AT_A_TIME // embeddings.shape[1]), embeddings.shape[1]
    moment = torch.zeros(width, width, dtype=torch.float64, device=embeddings.device)
    for part, own in zip(torch.split(embeddings, rows), torch.split(weights, rows), strict=True):
        weighted = part.double() * own[:, None]
        moment += weighted.T @ weighted
    _, vectors = torch.linalg.eigh(moment)
    leading = vectors[:, -dim:].flip(-1).float()
    codec = LinearCodec(embeddings.shape[1], dim, bound=1.0)
    codec.encoder.weight.copy_(leading.T)
    codec.decoder.weight.copy_(leading)
    return codec
