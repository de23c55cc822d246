"""Settings of the methods that DEL is compared with."""

from dataclasses import dataclass, field

from del_lightning.config.checks import at_least, positive, require, share


@dataclass
class GaussianConfig:
    """Gaussian noise on the code or on the embedding, as floats or rounded (``-nbit``)."""

    mu: float | None = None
    """GDP parameter a token where none is calibrated."""
    bits: int | None = None
    """Bits n a coordinate of the rounded variants; null takes mechanism.bits."""
    range_sigmas: float = 3.0
    """The rounding range ends this many standard deviations of the noise beyond the clipping bound."""
    bound_quantile: float = 0.99
    """Frequency-weighted quantile of the embeddings' coordinates that bounds them (the code has the codec's bound)."""

    def __post_init__(self) -> None:
        positive("baseline.gaussian.mu", self.mu)
        require(self.bits is None or 1 <= self.bits <= 8, "baseline.gaussian.bits", "between 1 and 8", self.bits)
        positive("baseline.gaussian.range_sigmas", self.range_sigmas)
        share("baseline.gaussian.bound_quantile", self.bound_quantile)


@dataclass
class MetricConfig:
    """Metric differential privacy on the embedding, as designed and as released by SnD."""

    eta: float | None = None
    """Loss for a unit of distance where none is calibrated."""
    l2_clip: float | None = None
    """L2 norm to which the server clips a noisy embedding (post-processing); null leaves it."""
    clip_to_largest: bool = False
    """Clip to the largest norm of a clean embedding instead, as SnD does."""

    def __post_init__(self) -> None:
        positive("baseline.metric.eta", self.eta)
        positive("baseline.metric.l2_clip", self.l2_clip)
        once = self.l2_clip is None or not self.clip_to_largest
        require(once, "baseline.metric.l2_clip", "null with baseline.metric.clip_to_largest", self.l2_clip)


@dataclass
class SantextConfig:
    """SANTEXT and SANTEXT+."""

    epsilon: float | None = 15.0
    """The authors' choice (`baseline=authors`); null calibrates to `targets`."""
    fraction: float = 0.5
    """Share of the tokens that SANTEXT+ takes for sensitive, the least frequent ones; SANTEXT takes all."""
    p: float = 0.2
    """Probability that SANTEXT+ substitutes a token that is not sensitive."""

    def __post_init__(self) -> None:
        positive("baseline.santext.epsilon", self.epsilon)
        share("baseline.santext.fraction", self.fraction)
        require(0 <= self.p <= 1, "baseline.santext.p", "in [0, 1]", self.p)


@dataclass
class CustextConfig:
    """CUSTEXT and CUSTEXT+."""

    epsilon: float | None = 3.0
    """The authors' choice (`baseline=authors`); null calibrates to `targets`."""
    top_k: int = 20
    """Tokens of a set whose members substitute each other."""

    def __post_init__(self) -> None:
        positive("baseline.custext.epsilon", self.epsilon)
        at_least("baseline.custext.top_k", self.top_k, 1)


@dataclass
class RantextConfig:
    """RANTEXT, alone and as InferDPT's front-end."""

    epsilon: float | None = 3.0
    """The authors' choice (`baseline=authors`); null calibrates to `targets`."""

    def __post_init__(self) -> None:
        positive("baseline.rantext.epsilon", self.epsilon)


@dataclass
class InferDPTConfig:
    """The user's side of InferDPT: a local model extracts a continuation from the remote one."""

    local_model: str | None = None
    """Packaged asset, folder or hub id; null takes the remote model itself."""
    temperature: float = 0.3
    top_p: float = 0.9

    def __post_init__(self) -> None:
        positive("baseline.inferdpt.temperature", self.temperature)
        require(0 < self.top_p <= 1, "baseline.inferdpt.top_p", "in (0, 1]", self.top_p)


@dataclass
class DPForwardConfig:
    """DP-Forward at the embedding layer."""

    epsilon: float | None = 8.0
    """Of a sequence, where none is calibrated."""
    delta: float = 1e-5
    """Of a sequence."""
    clip: float | None = None
    """Frobenius norm C of a sequence's embeddings; null takes that of 64 typical tokens."""

    def __post_init__(self) -> None:
        positive("baseline.dp_forward.epsilon", self.epsilon)
        share("baseline.dp_forward.delta", self.delta)
        positive("baseline.dp_forward.clip", self.clip)


@dataclass
class BaselineConfig:
    """Settings of the methods that DEL is compared with."""

    word_vectors: str | None = None
    """File in GloVe's text format for the distances of word-level methods; null takes the LLM's embeddings."""
    gaussian: GaussianConfig = field(default_factory=GaussianConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    santext: SantextConfig = field(default_factory=SantextConfig)
    custext: CustextConfig = field(default_factory=CustextConfig)
    rantext: RantextConfig = field(default_factory=RantextConfig)
    inferdpt: InferDPTConfig = field(default_factory=InferDPTConfig)
    dp_forward: DPForwardConfig = field(default_factory=DPForwardConfig)
