"""What happens to a token on the device: projection, codebook of DEL+, quantizer."""

from dataclasses import dataclass, field

from del_lightning.config.checks import at_least, one_of, positive, ratio_range, require, share
from del_lightning.config.names import CORPORA


@dataclass
class CodecConfig:
    """The linear encoder on the device and the linear decoder at the server."""

    corpus: str = "c4"
    """Public corpus for token frequencies and codec training."""
    dim: int | None = None
    """Code width d; null means hidden size / 32, as in the paper."""
    init: str = "pca"
    """Initial projection: pca (frequency-weighted) or random (the paper's)."""
    bound: float | None = None
    """Clipping bound c per coordinate; null takes it from bound_quantile."""
    bound_quantile: float = 0.99
    """Frequency-weighted quantile of the unclipped coordinates' size that becomes c."""
    steps: int = 20_000
    """Training steps; 0 keeps the initial projection."""
    batch_size: int = 2
    sequence_tokens: int = 1024
    learning_rate: float = 2e-4
    weight_decay: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    warmup_steps: int = 2000
    gradient_clip: float = 1.0
    split_ratio: list[float] = field(default_factory=lambda: [0.05, 0.5])
    """Range of the share of a training block that is the private prefix."""
    train_noise_mu: float | None = None
    """Train through the quantizer at this mu (straight-through gradient); null trains without noise, as the paper."""
    documents: int | None = 40_000
    """Public documents used, at most."""
    validate_every: int = 500
    """Steps between two validations; the codec of the best one is kept."""
    patience: int | None = None
    """Stop after this many validations without an improvement; null runs all steps."""

    def __post_init__(self) -> None:
        one_of("codec.corpus", self.corpus, CORPORA)
        one_of("codec.init", self.init, ("pca", "random"))
        for key in ("dim", "batch_size", "documents", "validate_every", "patience"):
            at_least(f"codec.{key}", getattr(self, key), 1)
        at_least("codec.steps", self.steps, 0)
        at_least("codec.warmup_steps", self.warmup_steps, 0)
        at_least("codec.sequence_tokens", self.sequence_tokens, 4)
        for key in ("bound", "learning_rate", "gradient_clip", "train_noise_mu"):
            positive(f"codec.{key}", getattr(self, key))
        share("codec.bound_quantile", self.bound_quantile)
        betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(betas, "codec.betas", "two numbers in [0, 1)", self.betas)
        require(self.weight_decay >= 0, "codec.weight_decay", "at least 0", self.weight_decay)
        ratio_range("codec.split_ratio", self.split_ratio)


@dataclass
class CodebookConfig:
    """The semantic codebook of ``del-plus``: which tokens share a code word, and how the server decodes it."""

    frequent: int = 128
    """So many of the most frequent tokens form one group: they tell little, and are easily guessed."""
    largest_share: float = 0.2
    """Largest share of a token among the occurrences of its group in public text, of all other groups: bounds the best
    guess from a release without noise, for an attacker who knows nothing but how frequent tokens are."""
    topic_weight: float = 1.0
    """Weight of which texts a token occurs in against its embedding, where groups are merged."""
    last: int = 0
    """So many tokens at the end of a prompt have groups of their own kind: a continuation depends on them most."""
    last_alone: int = 512
    """There, so many of the most frequent tokens are a group each."""
    last_share: float = 0.2
    """Largest share of any other token in its group there."""
    neighbours: bool = True
    """Whether the server of ``del-plus`` and ``del-posterior`` decodes a position with its neighbours (an exact pass
    under bigrams) or by itself."""

    def __post_init__(self) -> None:
        at_least("codebook.frequent", self.frequent, 0)
        share("codebook.largest_share", self.largest_share)
        at_least("codebook.last", self.last, 0)
        at_least("codebook.last_alone", self.last_alone, 0)
        share("codebook.last_share", self.last_share)
        require(self.topic_weight >= 0, "codebook.topic_weight", "at least 0", self.topic_weight)


@dataclass
class MechanismConfig:
    """The stochastic n-bit quantizer (Definition 4.1)."""

    bits: int = 4
    """Bits n a coordinate, 1 to 8."""
    mu: float | None = None
    """GDP parameter mu a token; null calibrates it to each ASR in `targets`."""
    l2_clip: float | None = None
    """L2 norm to which the server clips a decoded code (post-processing); null leaves it."""

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 8, "mechanism.bits", "between 1 and 8", self.bits)
        positive("mechanism.mu", self.mu)
        positive("mechanism.l2_clip", self.l2_clip)
