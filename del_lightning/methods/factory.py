"""Every method by its name in the configuration, built by one call."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from del_lightning.bigrams import Bigrams
from del_lightning.codebook import Codebook
from del_lightning.codec import LinearCodec
from del_lightning.config import METHODS, BaselineConfig, Config, MechanismConfig
from del_lightning.errors import ConfigError
from del_lightning.methods.base import Method
from del_lightning.methods.controls import Clean, MeanEmbedding, Projection
from del_lightning.methods.custext import Custext
from del_lightning.methods.dp_forward import DPForward
from del_lightning.methods.gaussian import GaussianCode, GaussianEmbedding, quantile_bound
from del_lightning.methods.inferdpt import InferDPT, LocalOnly
from del_lightning.methods.metric import MetricDP, MetricDPReleased
from del_lightning.methods.posterior import PosteriorDEL
from del_lightning.methods.quantized import DEL
from del_lightning.methods.rantext import Rantext
from del_lightning.methods.santext import Santext
from del_lightning.methods.semantic import SemanticDEL
from del_lightning.methods.substitution import RandomTokens, Substitution
from del_lightning.methods.vocabulary import Vocabulary

CLASSES: dict[str, type[Method]] = {
    "clean": Clean,
    "mean": MeanEmbedding,
    "random": RandomTokens,
    "projection": Projection,
    "del": DEL,
    "del-posterior": PosteriorDEL,
    "del-plus": SemanticDEL,
    "gaussian-code": GaussianCode,
    "gaussian-code-nbit": GaussianCode,
    "gaussian-embedding": GaussianEmbedding,
    "gaussian-embedding-nbit": GaussianEmbedding,
    "metric-dp": MetricDP,
    "metric-dp-snd": MetricDPReleased,
    "santext": Santext,
    "santext-plus": Santext,
    "custext": Custext,
    "custext-plus": Custext,
    "rantext": Rantext,
    "inferdpt": InferDPT,
    "local-only": LocalOnly,
    "dp-forward": DPForward,
    "dp-forward-released": DPForward,
}
"""Name -> class, whose ``parameter`` and ``parameter_range`` calibration reads before anything is built."""

LABELS = {
    "clean": "Clean prompt",
    "mean": "Mean embedding",
    "random": "Random tokens",
    "projection": "Projection, no noise",
    "del": "DEL",
    "del-posterior": "DEL, posterior mean",
    "del-plus": "DEL+",
    "gaussian-code": "Gaussian on the code",
    "gaussian-code-nbit": "Gaussian on the code, rounded",
    "gaussian-embedding": "Gaussian on the embedding",
    "gaussian-embedding-nbit": "Gaussian on the embedding, rounded",
    "metric-dp": "Metric DP",
    "metric-dp-snd": "Metric DP, as released by SnD",
    "santext": "SANTEXT",
    "santext-plus": "SANTEXT+",
    "custext": "CUSTEXT",
    "custext-plus": "CUSTEXT+",
    "rantext": "RANTEXT",
    "inferdpt": "InferDPT",
    "local-only": "Local model alone",
    "dp-forward": "DP-Forward",
    "dp-forward-released": "DP-Forward, as released",
}
"""What tables print."""

NEEDS_CODEC = ("projection", "del", "del-posterior", "gaussian-code", "gaussian-code-nbit")
NEEDS_CODEBOOK = ("del-plus",)
NEEDS_PRIOR = ("del-posterior", "del-plus")
NEEDS_VOCABULARY = tuple(name for name in METHODS if issubclass(CLASSES[name], Substitution))
NEEDS_FREQUENCIES = ("gaussian-embedding", "gaussian-embedding-nbit", "dp-forward", "dp-forward-released")
NEEDED = (
    (NEEDS_CODEC, "codec"),
    (NEEDS_CODEBOOK, "codebook"),
    (NEEDS_PRIOR, "prior"),
    (NEEDS_VOCABULARY, "vocabulary"),
    (NEEDS_FREQUENCIES, "frequencies"),
)
"""Methods, and the part of :class:`Parts` that they are built from."""
TEXT_ONLY = ("inferdpt", "local-only")
"""Methods whose user reads what a local model wrote, so that no reference continuation can be scored."""
CONTINUOUS = tuple(name for name in METHODS if name not in ("clean", *NEEDS_VOCABULARY, *TEXT_ONLY))
"""What they restore is no token's embedding: a soft prompt may learn to read it, so training one is worthwhile."""


def built(config: Config) -> set[str]:
    """Names of the methods whose parts a stage builds, which are not always those of ``methods``.

    Stages about DEL build its codec in any case; stage ``nlu`` has front-ends of its own.
    """
    match config.stage.name:
        case "nlu":
            return {name.partition("@")[0] for names in config.nlu.runs.values() for name in names}
        case "codec" | "transfer":
            return {"del"}
        case "export" | "publish":
            return {*config.methods, "del"}
        case _:
            return {*config.methods}


@dataclass(frozen=True)
class Parts:
    """What methods are built from, computed once by the caller, all on one device.

    Attributes:
        embedding_table: Clean embeddings (V, b).
        codec: For the methods of :data:`NEEDS_CODEC`.
        frequencies: (V,) token counts of a public corpus, for :data:`NEEDS_FREQUENCIES`.
        codebook: Groups and code words, for :data:`NEEDS_CODEBOOK`.
        prior: (V,) ln Pr(token) in public text, for :data:`NEEDS_PRIOR`.
        bigrams: Of public text that nothing is trained on; lets the server of :data:`NEEDS_PRIOR` read neighbours.
        vocabulary: For :data:`NEEDS_VOCABULARY`; keep it, since its distance tables are shared by all of them.
    """

    embedding_table: Tensor
    codec: LinearCodec | None = None
    frequencies: Tensor | None = None
    codebook: Codebook | None = None
    prior: Tensor | None = None
    bigrams: Bigrams | None = None
    vocabulary: Vocabulary | None = None


def build(
    name: str, parts: Parts, baseline: BaselineConfig, mechanism: MechanismConfig, value: float | None = None
) -> Method:
    """Build a method.

    Args:
        name: One of :data:`del_lightning.config.METHODS`.
        parts: What it is built from.
        baseline: Settings of the baselines.
        mechanism: Settings of DEL, and the bits of every rounded method.
        value: Of its privacy parameter; None takes the configured one. Without a parameter it must be None.

    Raises:
        ConfigError: Unknown name, a part is missing, or there is no value, or one too many.
    """
    if name not in CLASSES:
        raise ConfigError(f"`methods` must hold names among {', '.join(METHODS)}, got {name!r}")
    kind: Any = CLASSES[name]
    arguments: list[Any] = [parts.embedding_table]
    for names, part in NEEDED:
        if name in names:
            arguments.append(_given(parts, part, name))
    keywords = settings(name, baseline, mechanism)
    if name in NEEDS_PRIOR:
        keywords["bigrams"] = parts.bigrams
    if kind is GaussianEmbedding:
        table, frequencies = arguments
        keywords["bound"] = quantile_bound(table, frequencies, keywords.pop("bound_quantile"))
        arguments = [table]
    if kind.parameter is not None:
        keywords[kind.parameter] = _value(name, baseline, mechanism, value)
    elif value is not None:
        raise ConfigError(f"`value` must be None for {name!r}, which has no privacy parameter, got {value!r}")
    method: Method = kind(*arguments, **keywords)
    return method


def settings(name: str, baseline: BaselineConfig, mechanism: MechanismConfig) -> dict[str, Any]:
    """Configured settings of a method besides its privacy parameter: its part of an artefact's key."""
    rounding = {"range_sigmas": baseline.gaussian.range_sigmas, "bits": baseline.gaussian.bits or mechanism.bits}
    quantile = {"bound_quantile": baseline.gaussian.bound_quantile}
    metric: dict[str, Any] = {"l2_clip": baseline.metric.l2_clip}
    metric |= {"clip_to_largest": True} if baseline.metric.clip_to_largest else {}
    forward = {"delta": baseline.dp_forward.delta, "clip": baseline.dp_forward.clip}
    chosen: dict[str, dict[str, Any]] = {
        "del": {"bits": mechanism.bits, "l2_clip": mechanism.l2_clip},
        "del-posterior": {"bits": mechanism.bits},
        "del-plus": {"bits": mechanism.bits},
        "gaussian-code-nbit": rounding,
        "gaussian-embedding": quantile,
        "gaussian-embedding-nbit": quantile | rounding,
        "metric-dp": metric,
        "metric-dp-snd": metric,
        "santext-plus": {"fraction": baseline.santext.fraction, "p": baseline.santext.p},
        "custext": {"top_k": baseline.custext.top_k},
        "custext-plus": {"top_k": baseline.custext.top_k, "keep_stop_words": True},
        "dp-forward": forward,
        "dp-forward-released": forward | {"released": True},
    }
    return dict(chosen.get(name, {}))


def default_value(name: str, baseline: BaselineConfig, mechanism: MechanismConfig) -> float | None:
    """The configured value of a method's privacy parameter; None where it has to be calibrated or has none."""
    family = name
    for variant in ("-nbit", "-plus", "-posterior", "-released", "-snd"):
        family = family.removesuffix(variant)
    chosen = {
        "del": mechanism.mu,
        "gaussian-code": baseline.gaussian.mu,
        "gaussian-embedding": baseline.gaussian.mu,
        "metric-dp": baseline.metric.eta,
        "santext": baseline.santext.epsilon,
        "custext": baseline.custext.epsilon,
        "rantext": baseline.rantext.epsilon,
        "inferdpt": baseline.rantext.epsilon,
        "dp-forward": baseline.dp_forward.epsilon,
    }
    return chosen.get(family)


def _value(name: str, baseline: BaselineConfig, mechanism: MechanismConfig, value: float | None) -> float:
    found = default_value(name, baseline, mechanism) if value is None else value
    if found is None:
        raise ConfigError(f"`{CLASSES[name].parameter}` of {name!r} must be calibrated or configured, got None")
    return found


def _given(parts: Parts, part: str, name: str) -> Any:
    found = getattr(parts, part)
    if found is None:
        raise ConfigError(f"`parts.{part}` must be given to build {name!r}, got None")
    return found
