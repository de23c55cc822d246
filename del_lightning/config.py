"""Settings of every part as dataclasses: the schema behind each config group in ``conf/``.

Hydra composes YAML files and command-line overrides into these classes, so an unknown key or a wrong type
fails at once. Checks that need more than a type live in ``__post_init__`` and name the key. The string under
an attribute is its help text.
"""

import math
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from del_lightning.errors import ConfigError

CORPORA = ("lee", "ptb", "wikitext2", "cnn_dailymail", "c4")
"""Corpora that :func:`del_lightning.data.load_corpus` knows."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that other machines cannot reach."""

METHODS = (
    "clean",
    "mean",
    "random",
    "projection",
    "del",
    "del-plus",
    "gaussian-code",
    "gaussian-code-nbit",
    "gaussian-embedding",
    "gaussian-embedding-nbit",
    "metric-dp",
    "metric-dp-snd",
    "santext",
    "santext-plus",
    "custext",
    "custext-plus",
    "rantext",
    "inferdpt",
    "local-only",
    "dp-forward",
    "dp-forward-released",
)
"""Front-ends that a leaderboard can hold; :func:`del_lightning.methods.build` makes each."""

DEFAULT_METHODS = ("clean", "mean", "projection", "del")
"""Three controls and DEL itself."""


def _require(condition: bool, key: str, expectation: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"`{key}` must be {expectation}, got {value!r}")


def _positive(key: str, value: float | None) -> None:
    if value is not None:
        _require(math.isfinite(value) and value > 0, key, "a positive number", value)


def _at_least(key: str, value: int | None, low: int) -> None:
    if value is not None:
        _require(value >= low, key, f"at least {low}", value)


def _web_address(key: str, value: str) -> None:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or a host that is none
        good = False
    good = good and value.isprintable() and " " not in value
    _require(good, key, "an http or https address with a host, for instance http://127.0.0.1:8001", value)


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, key, "one of " + ", ".join(choices), value)


def _share(key: str, value: float) -> None:
    _require(0 < value < 1, key, "strictly between 0 and 1", value)


def _ratio_range(key: str, value: list[float]) -> None:
    ok = len(value) == 2 and 0 < value[0] <= value[1] < 1
    _require(ok, key, "two increasing numbers strictly between 0 and 1", value)


@dataclass
class StageConfig:
    """Which stage runs."""

    _target_: str = MISSING
    name: str = MISSING


@dataclass
class ModelConfig:
    """The frozen causal language model that the server runs."""

    name: str = "smollm2-135m-instruct"
    """Packaged asset, local folder, or Hugging Face hub id."""
    dtype: str = "float32"
    """Weights and activations: float32 or bfloat16."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    def __post_init__(self) -> None:
        _require(bool(self.name.strip()), "model.name", "a packaged asset, a folder or a hub id", self.name)
        _one_of("model.dtype", self.dtype, ("float32", "bfloat16"))


@dataclass
class DataConfig:
    """Text, and how it is cut into private prompts and continuations."""

    name: str = "lee"
    """Corpus: lee (packaged), ptb, wikitext2, cnn_dailymail or c4."""
    root: str | None = None
    """Folder with the corpora as parquet in the hub's column layout; null loads from the hub."""
    prefix: str = "Please continue the text\n\n"
    """Public instruction in front of the private prompt; never privatised."""
    min_words: int = 100
    """Evaluation uses texts of at least this many words ..."""
    prompt_words: int = 50
    """... and takes this many of their first words as the private prompt; the rest is the reference."""
    max_prompts: int = 200
    """At most this many evaluation prompts, drawn evenly from the test split."""
    max_prompt_tokens: int | None = None
    """Longest private prompt in tokens (texts with a longer one are left out); null keeps all."""
    reference_tokens: int = 200
    """Tokens of the reference continuation that perplexity is measured on, at most."""
    train_tokens: int = 1024
    """Length of a training block in tokens."""
    split_ratio: list[float] = field(default_factory=lambda: [0.05, 0.5])
    """Range of the share of a training block that is the private prefix."""
    validation_blocks: int = 32
    """Blocks of the validation split that select the best checkpoint."""
    eval_batch_size: int = 16
    """Sequences a batch in validation and evaluation."""

    def __post_init__(self) -> None:
        _one_of("data.name", self.name, CORPORA)
        _at_least("data.prompt_words", self.prompt_words, 1)
        _require(self.min_words > self.prompt_words, "data.min_words", "more than data.prompt_words", self.min_words)
        for key in ("max_prompts", "max_prompt_tokens", "reference_tokens", "validation_blocks", "eval_batch_size"):
            _at_least(f"data.{key}", getattr(self, key), 1)
        _at_least("data.train_tokens", self.train_tokens, 4)
        _ratio_range("data.split_ratio", self.split_ratio)


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
        _one_of("codec.corpus", self.corpus, CORPORA)
        _one_of("codec.init", self.init, ("pca", "random"))
        for key in ("dim", "batch_size", "documents", "validate_every", "patience"):
            _at_least(f"codec.{key}", getattr(self, key), 1)
        _at_least("codec.steps", self.steps, 0)
        _at_least("codec.warmup_steps", self.warmup_steps, 0)
        _at_least("codec.sequence_tokens", self.sequence_tokens, 4)
        for key in ("bound", "learning_rate", "gradient_clip", "train_noise_mu"):
            _positive(f"codec.{key}", getattr(self, key))
        _share("codec.bound_quantile", self.bound_quantile)
        betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(betas, "codec.betas", "two numbers in [0, 1)", self.betas)
        _require(self.weight_decay >= 0, "codec.weight_decay", "at least 0", self.weight_decay)
        _ratio_range("codec.split_ratio", self.split_ratio)


@dataclass
class CodebookConfig:
    """The semantic codebook of ``del-plus``: which tokens share a code word, and how the server decodes it."""

    frequent: int = 128
    """So many of the most frequent tokens form one group: they tell little, and are easily guessed."""
    largest_share: float = 0.2
    """Largest share of a token in any other group: bounds what a release without noise says about a token."""
    topic_weight: float = 1.0
    """Weight of which texts a token occurs in against its embedding, where groups are merged."""
    neighbours: bool = True
    """Whether the server decodes a position with its neighbours (an exact pass under bigrams) or by itself."""

    def __post_init__(self) -> None:
        _at_least("codebook.frequent", self.frequent, 0)
        _share("codebook.largest_share", self.largest_share)
        _require(self.topic_weight >= 0, "codebook.topic_weight", "at least 0", self.topic_weight)


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
        _require(1 <= self.bits <= 8, "mechanism.bits", "between 1 and 8", self.bits)
        _positive("mechanism.mu", self.mu)
        _positive("mechanism.l2_clip", self.l2_clip)


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
        _positive("baseline.gaussian.mu", self.mu)
        _require(self.bits is None or 1 <= self.bits <= 8, "baseline.gaussian.bits", "between 1 and 8", self.bits)
        _positive("baseline.gaussian.range_sigmas", self.range_sigmas)
        _share("baseline.gaussian.bound_quantile", self.bound_quantile)


@dataclass
class MetricConfig:
    """Metric differential privacy on the embedding, as designed and as released by SnD."""

    eta: float | None = None
    """Loss for a unit of distance where none is calibrated."""
    l2_clip: float | None = None
    """L2 norm to which the server clips a noisy embedding (post-processing); null leaves it."""

    def __post_init__(self) -> None:
        _positive("baseline.metric.eta", self.eta)
        _positive("baseline.metric.l2_clip", self.l2_clip)


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
        _positive("baseline.santext.epsilon", self.epsilon)
        _share("baseline.santext.fraction", self.fraction)
        _require(0 <= self.p <= 1, "baseline.santext.p", "in [0, 1]", self.p)


@dataclass
class CustextConfig:
    """CUSTEXT and CUSTEXT+."""

    epsilon: float | None = 3.0
    """The authors' choice (`baseline=authors`); null calibrates to `targets`."""
    top_k: int = 20
    """Tokens of a set whose members substitute each other."""

    def __post_init__(self) -> None:
        _positive("baseline.custext.epsilon", self.epsilon)
        _at_least("baseline.custext.top_k", self.top_k, 1)


@dataclass
class RantextConfig:
    """RANTEXT, alone and as InferDPT's front-end."""

    epsilon: float | None = 3.0
    """The authors' choice (`baseline=authors`); null calibrates to `targets`."""

    def __post_init__(self) -> None:
        _positive("baseline.rantext.epsilon", self.epsilon)


@dataclass
class InferDPTConfig:
    """The user's side of InferDPT: a local model extracts a continuation from the remote one."""

    local_model: str | None = None
    """Packaged asset, folder or hub id; null takes the remote model itself."""
    temperature: float = 0.3
    top_p: float = 0.9

    def __post_init__(self) -> None:
        _positive("baseline.inferdpt.temperature", self.temperature)
        _require(0 < self.top_p <= 1, "baseline.inferdpt.top_p", "in (0, 1]", self.top_p)


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
        _positive("baseline.dp_forward.epsilon", self.epsilon)
        _share("baseline.dp_forward.delta", self.delta)
        _positive("baseline.dp_forward.clip", self.clip)


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


@dataclass
class PromptConfig:
    """The soft prompt, trained on the server only."""

    virtual_tokens: int = 100
    init_text: str = (
        "The inputs are abrupted by the noise and you should try to recover them and generate the next token."
    )
    """Text whose embeddings start the prompt (the paper's wording)."""
    steps: int = 4000
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 0
    gradient_clip: float = 1.0
    validate_every: int = 200
    """Steps between two validations; the prompt of the best one is kept."""
    patience: int | None = None
    """Stop after this many validations without an improvement; null runs all steps."""

    def __post_init__(self) -> None:
        for key in ("virtual_tokens", "steps", "batch_size", "validate_every", "patience"):
            _at_least(f"prompt.{key}", getattr(self, key), 1)
        _at_least("prompt.warmup_steps", self.warmup_steps, 0)
        _positive("prompt.learning_rate", self.learning_rate)
        _require(self.weight_decay >= 0, "prompt.weight_decay", "at least 0", self.weight_decay)
        _positive("prompt.gradient_clip", self.gradient_clip)
        _require(bool(self.init_text.strip()), "prompt.init_text", "a non-empty text", self.init_text)


def _low_rank(section: str, config: "AdapterConfig | LoraConfig", least: int) -> None:
    _at_least(f"{section}.rank", config.rank, least)
    _at_least(f"{section}.alpha", config.alpha, 1)
    _positive(f"{section}.learning_rate", config.learning_rate)


@dataclass
class AdapterConfig:
    """Low-rank adapter (LoRA) of the server's model, trained with every soft prompt, on the schedule of `prompt`."""

    rank: int = 0
    """0 trains the soft prompt alone, as the paper does."""
    alpha: int = 32
    """The adapter's output is scaled by alpha / rank."""
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        _low_rank("adapter", self, least=0)


ATTACKS = (
    "nearest",
    "nearest-l2",
    "nearest-code",
    "bayes",
    "bigrams",
    "language-model",
    "input-inference",
    "inverter",
)
"""Attackers that stage ``attack`` knows."""
CALIBRATING = ("nearest", "nearest-l2", "bayes", "bigrams")
"""Those that stage ``calibrate`` can hold to a target: cheap, and able to read every method."""

MATCHINGS = ("nearest", "worst", "guarantee")
"""What rows of a leaderboard can have in common, see :data:`del_lightning.report.schema.Matching`."""


@dataclass
class AttackConfig:
    """The attackers, and the calibration of a method's parameter to their success."""

    suite: list[str] = field(default_factory=lambda: ["nearest", "bayes"])
    """Attackers of the test prompts."""
    worst_of: list[str] = field(default_factory=lambda: ["nearest", "bayes"])
    """Attackers of which the strongest must meet a target under matching=[worst]."""
    levels: list[float] = field(default_factory=list)
    """Values of mu at which the success of the suite is drawn as a curve, for every method with that parameter."""
    metric: str = "cosine"
    """Similarity of the nearest-neighbour attack: cosine (the paper's) or l2."""
    tokens: int = 2000
    """Random private tokens that calibration attacks."""
    tolerance: float = 0.01
    """Calibration keeps the upper confidence limit of the ASR under target + tolerance."""
    resolution: float = 0.02
    """Calibration stops when the next rejected value is at most this share above the accepted one."""
    outline: int = 13
    """Values at which calibration measures the whole curve first, on a quarter of the tokens."""
    chunk: int = 1024
    """Attacked tokens a matrix product; bounds the memory."""
    prompts: int | None = None
    """Test prompts that the attackers with a language model or a trained network read; null means all."""
    beam: int = 20
    """Sequences that the attacker with a language model keeps at every position."""
    prior_weights: list[float] = field(default_factory=lambda: [0.5, 0.8])
    """Shares of the language model in its prior that it tries besides 0."""
    tuning_prompts: int = 16
    """Validation prompts on which it fits how much the language model counts."""
    masked_model: str | None = None
    """Masked language model of the input inference attack: folder or hub id; null takes the LLM itself."""
    adapted_prior: bool = True
    """Whether its language model runs behind the clean control's soft prompt, which knows the domain."""

    def __post_init__(self) -> None:
        _require(len(self.suite) > 0, "attack.suite", "a non-empty list", self.suite)
        for attack in self.suite:
            _one_of("attack.suite", attack, ATTACKS)
        _require(len(self.worst_of) > 0, "attack.worst_of", "a non-empty list", self.worst_of)
        for attack in self.worst_of:
            _one_of("attack.worst_of", attack, CALIBRATING)
        _one_of("attack.metric", self.metric, ("cosine", "l2"))
        for key in ("tokens", "chunk", "prompts", "beam", "tuning_prompts"):
            _at_least(f"attack.{key}", getattr(self, key), 1)
        _at_least("attack.outline", self.outline, 2)
        for weight in self.prior_weights:
            _require(0 < weight <= 1, "attack.prior_weights", "in (0, 1]", weight)
        for level in self.levels:
            _positive("attack.levels", level)
        _share("attack.tolerance", self.tolerance)
        _positive("attack.resolution", self.resolution)


@dataclass
class InverterConfig:
    """The trained inverter: an attacker that learns through the mechanism what context adds to a release."""

    width: int = 128
    """Width of the encoder, and the most dimensions of what it adds to the posterior."""
    layers: int = 2
    heads: int = 4
    """Attention heads of a layer, an even number: half of them look back, half ahead."""
    steps: int = 300
    batch_size: int = 8
    sequence_tokens: int = 64
    """Length of a training sequence in tokens."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 20
    gradient_clip: float = 1.0
    validate_every: int = 50
    """Steps between two validations; the weights of the best one are kept."""
    patience: int | None = None
    """Stop after this many validations without an improvement; null runs all steps."""
    neighbours: bool = True
    """Whether training starts at the exact posterior under bigrams; False starts at one token's: faster and weaker."""

    def __post_init__(self) -> None:
        for key in ("width", "layers", "heads", "steps", "batch_size", "validate_every", "patience"):
            _at_least(f"inverter.{key}", getattr(self, key), 1)
        _require(self.heads % 2 == 0, "inverter.heads", "even", self.heads)
        _require(self.width % self.heads == 0, "inverter.width", "a multiple of inverter.heads", self.width)
        _at_least("inverter.warmup_steps", self.warmup_steps, 0)
        _at_least("inverter.sequence_tokens", self.sequence_tokens, 4)
        _positive("inverter.learning_rate", self.learning_rate)
        _require(self.weight_decay >= 0, "inverter.weight_decay", "at least 0", self.weight_decay)
        _positive("inverter.gradient_clip", self.gradient_clip)


@dataclass
class EvaluateConfig:
    """Utility metrics on the test prompts."""

    encoder: str = "all-minilm-l6-v2"
    """Sentence encoder of the coherence metric: packaged asset, folder or hub id."""
    pooling: str = "mean"
    """Pooling of the encoder's token states: cls or mean."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of the mechanism's noise and of sampling; every prompt is evaluated under each."""
    max_new_tokens: int = 200
    top_p: float = 0.9
    temperature: float = 0.7
    generation_batch_size: int = 32
    samples: int = 4
    """Continuations shown in the report."""
    delta: float = 1e-5
    """delta at which the exact epsilon is reported."""

    def __post_init__(self) -> None:
        _one_of("evaluate.pooling", self.pooling, ("cls", "mean"))
        _require(len(self.seeds) > 0, "evaluate.seeds", "a non-empty list", self.seeds)
        _require(len(set(self.seeds)) == len(self.seeds), "evaluate.seeds", "distinct", self.seeds)
        _at_least("evaluate.max_new_tokens", self.max_new_tokens, 1)
        _at_least("evaluate.generation_batch_size", self.generation_batch_size, 1)
        _at_least("evaluate.samples", self.samples, 0)
        _require(0 < self.top_p <= 1, "evaluate.top_p", "in (0, 1]", self.top_p)
        _positive("evaluate.temperature", self.temperature)
        _share("evaluate.delta", self.delta)


@dataclass
class ReportConfig:
    """What stage ``report`` shows."""

    results: list[str] | None = None
    """Folders, searched at any depth, and JSON files with leaderboards: merged into one static site, `<out>/site`.
    null writes the page of the run that the other settings describe."""

    def __post_init__(self) -> None:
        if self.results is not None:
            _require(len(self.results) > 0, "report.results", "a non-empty list of folders or JSON files", self.results)


@dataclass
class AccountConfig:
    """What stage ``account`` tabulates."""

    span_tokens: int = 4
    """Tokens of the unit span: a phrase that is one secret."""
    sequence_tokens: int = 64
    """Tokens of the unit sequence: a prompt."""
    user_tokens: int = 10_000
    """Tokens of the unit user: all requests together."""
    deltas: list[float] = field(default_factory=lambda: [1e-3, 1e-5, 1e-9, 0.0])
    """Columns of the table; 0 is pure differential privacy."""
    prior: float = 0.05
    """Success of an attacker's best guess without the release."""

    def __post_init__(self) -> None:
        for key in ("span_tokens", "sequence_tokens", "user_tokens"):
            _at_least(f"account.{key}", getattr(self, key), 1)
        _require(len(self.deltas) > 0, "account.deltas", "a non-empty list", self.deltas)
        for delta in self.deltas:
            _require(0 <= delta < 1, "account.deltas", "in [0, 1)", delta)
        _share("account.prior", self.prior)


GLUE_TASKS = ("sst2", "cola", "mrpc", "qqp", "rte", "qnli")
"""Binary tasks of GLUE."""

END_TO_END = ("linear", "prompt", "lora")
"""Ways to classify without a denoiser: a head alone, a soft prompt, a low-rank adapter at the server."""

SND = ("snd", "snd-prompt", "snd-user", "local")
"""Ways to classify in the SnD framework: denoiser at the server without and with a soft prompt, denoiser at the user,
and the user's denoiser without any server."""

NLU_VARIANTS = (*END_TO_END, *SND)
"""Ways to classify that stage ``nlu`` knows."""

_AT_BITS = re.compile(r"(del|gaussian-code-nbit|gaussian-embedding-nbit)@[1-8]")
_NOT_CLASSIFYING = ("inferdpt", "local-only")


@dataclass
class DenoiserConfig:
    """Training of SnD's denoiser; its shape is SnD's own."""

    steps: int = 4000
    batch_size: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup_steps: int = 0
    gradient_clip: float = 1.0
    validate_every: int = 200
    """Steps between two validations; the denoiser of the best one is kept."""
    patience: int | None = None
    """Stop after this many validations without an improvement; null runs all steps."""

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "validate_every", "patience"):
            _at_least(f"nlu.denoiser.{key}", getattr(self, key), 1)
        _at_least("nlu.denoiser.warmup_steps", self.warmup_steps, 0)
        for key in ("learning_rate", "gradient_clip"):
            _positive(f"nlu.denoiser.{key}", getattr(self, key))
        _require(self.weight_decay >= 0, "nlu.denoiser.weight_decay", "at least 0", self.weight_decay)


@dataclass
class LoraConfig:
    """Low-rank adapter of the server's model, on the schedule of `prompt`."""

    rank: int = 8
    alpha: int = 16
    """The adapter's output is scaled by alpha / rank."""
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        _low_rank("nlu.lora", self, least=1)


@dataclass
class NluConfig:
    """Classification of private text with a public template (stage `nlu`); soft prompts train as `prompt` says."""

    task: str = "sst2"
    """GLUE task: sst2, cola, mrpc, qqp, rte or qnli."""
    ways: list[str] = field(default_factory=lambda: ["prompt", "snd", "snd-prompt"])
    """Ways to classify, see :data:`NLU_VARIANTS`."""
    fronts: list[str] = field(default_factory=lambda: ["clean", "mean", "del@1", "del@2", "del@4"])
    """Front-ends that each of them is run behind: methods, or a quantised one at so many bits (del@2)."""
    fronts_of: dict[str, list[str]] = field(default_factory=lambda: {"local": ["clean"]})
    """Way to classify -> front-ends that it is run behind instead."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each draws its own training examples, initial weights and noise."""
    head: str = "linear"
    """Behind a soft prompt or adapter: linear on the last hidden state, or verbaliser (label words)."""
    train_examples: int | None = None
    """Training examples of a seed; null takes all."""
    selection_examples: int = 512
    """Held-out training examples that select the best checkpoint."""
    eval_examples: int | None = None
    """Examples of GLUE's validation split that are reported, evenly spaced; null takes all."""
    sentence_tokens: int = 128
    """Longer sentences are cut."""
    draws: int = 2
    """Releases of each training example that a head on cached features learns from."""
    eval_batch_size: int = 32
    keep_denoisers: bool = False
    """Leave the weights of every trained denoiser in its artefact (60 MB each at width 576)."""
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        _one_of("nlu.task", self.task, GLUE_TASKS)
        _one_of("nlu.head", self.head, ("linear", "verbaliser"))
        _require(len(self.ways) > 0, "nlu.ways", "a non-empty list", self.ways)
        for way in self.ways:
            _one_of("nlu.ways", way, NLU_VARIANTS)
        for key, fronts in {"fronts": self.fronts, **{f"fronts_of.{w}": f for w, f in self.fronts_of.items()}}.items():
            for front in fronts:
                known = (front in METHODS and front not in _NOT_CLASSIFYING) or _AT_BITS.fullmatch(front)
                _require(bool(known), f"nlu.{key}", "methods that send tokens, or del@1 to del@8", front)
        for way in self.fronts_of:
            _one_of("nlu.fronts_of", way, NLU_VARIANTS)
        _require(len(self.seeds) > 0, "nlu.seeds", "a non-empty list", self.seeds)
        _require(len(set(self.seeds)) == len(self.seeds), "nlu.seeds", "distinct", self.seeds)
        names = ("train_examples", "selection_examples", "eval_examples", "sentence_tokens", "draws", "eval_batch_size")
        for key in names:
            _at_least(f"nlu.{key}", getattr(self, key), 1)

    @property
    def runs(self) -> dict[str, list[str]]:
        """Way to classify -> its front-ends."""
        return {way: self.fronts_of.get(way, self.fronts) for way in self.ways}


STRATEGIES = ("ddp", "fsdp")
PRECISIONS = ("32-true", "bf16-mixed")
"""Lightning's names of the precisions that training knows."""


@dataclass
class TrainerConfig:
    """How lightning's Trainer runs: devices, precision, checkpoints."""

    accelerator: str = "auto"
    """auto (CUDA where there is one), cuda or cpu."""
    devices: int = 1
    """Processes of one machine that train together, one a device (on a CPU, its cores shared between them). Batch
    sizes are those of one process. Calibration, attacks and evaluation run on the first device alone."""
    num_nodes: int = 1
    """Machines; each starts its processes by torchrun or SLURM."""
    strategy: str = "ddp"
    """Of several devices. ddp: each holds the whole frozen LLM; fsdp: its layers are spread over all of them, gathered
    one at a time. What trains is small and lies on every device either way."""
    activation_checkpointing: bool = False
    """Compute what is inside the LLM's layers again in the backward pass instead of keeping it: less memory, about a
    third more time, the same numbers."""
    accumulate_grad_batches: int = 1
    precision: str = "32-true"
    """32-true, or bf16-mixed: the frozen LLM computes in bfloat16 while prompts, adapters and denoisers train; what
    is trained, the front-end, the codec, attacks and evaluation stay in float32 (or `model.dtype`)."""
    progress_bar: bool = True
    checkpoint_every: int = 25
    """Training steps between two resumable checkpoints."""
    log_every: int = 5
    attack_every: int = 50
    """Training steps between two measurements of the attack success rate; 0 turns them off."""

    def __post_init__(self) -> None:
        _one_of("trainer.accelerator", self.accelerator, ("auto", "cuda", "cpu"))
        _one_of("trainer.precision", self.precision, PRECISIONS)
        _one_of("trainer.strategy", self.strategy, STRATEGIES)
        for key in ("devices", "num_nodes", "accumulate_grad_batches", "checkpoint_every", "log_every"):
            _at_least(f"trainer.{key}", getattr(self, key), 1)
        _at_least("trainer.attack_every", self.attack_every, 0)


@dataclass
class LoggerConfig:
    """Where training curves go besides the stage's own record: csv, wandb or none."""

    kind: str = "csv"
    project: str = "del-lightning"
    """W&B project."""
    mode: str = "offline"
    """W&B mode: online, offline or disabled."""

    def __post_init__(self) -> None:
        _one_of("logger.kind", self.kind, ("none", "csv", "wandb"))
        _one_of("logger.mode", self.mode, ("online", "offline", "disabled"))


@dataclass
class ServeConfig:
    """The server of private inference."""

    engine: str = "transformers"
    """transformers (the language model in this process) or vllm (a gateway in front of a vLLM deployment)."""
    exports: list[str] | None = None
    """Folders that stage=export wrote for one language model; null serves every one under `out`."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    tls_cert: str | None = None
    """Certificate chain (PEM); null serves plain HTTP, for use behind a proxy that ends TLS."""
    tls_key: str | None = None
    """Private key (PEM) of `tls_cert`."""
    keys_file: str | None = None
    """Text file with API keys, one a line and its limits behind it (docs/serving.md);
    without it everyone may ask, which is allowed on a loopback address only."""
    requests_per_minute: int = 60
    """Requests that one key may make, on average and at once; 0 sets no limit."""
    rows: int = 16
    """Requests that generate at the same time, at most."""
    queue: int = 64
    """Requests that wait for a row, at most; further ones get 429."""
    max_prompt_tokens: int = 1024
    """Private tokens of a request, at most."""
    max_new_tokens: int = 512
    """Tokens generated for a request, at most."""
    max_public_bytes: int = 4096
    """Bytes of public text around the private prompt, at most."""
    max_context: int = 2048
    """Soft prompt, prompt and new tokens together, at most."""
    timeout: float = 120.0
    """Seconds that a request may take, waiting included."""
    body_timeout: float = 10.0
    """Seconds that a request's body may take to arrive."""
    drain_timeout: float = 120.0
    """Seconds that accepted requests have to finish after a signal to stop."""
    vllm_url: str = "http://127.0.0.1:8001"
    """Address of the vLLM deployment, without /v1 (engine vllm)."""
    vllm_model: str | None = None
    """Name under which vLLM serves the model; null takes model.name."""
    vllm_key_variable: str | None = None
    """Environment variable that holds vLLM's API key."""

    def __post_init__(self) -> None:
        _one_of("serve.engine", self.engine, ("transformers", "vllm"))
        for key in ("rows", "max_prompt_tokens", "max_new_tokens", "max_context"):
            _at_least(f"serve.{key}", getattr(self, key), 1)
        for key in ("requests_per_minute", "queue", "max_public_bytes"):
            _at_least(f"serve.{key}", getattr(self, key), 0)
        for key in ("timeout", "body_timeout", "drain_timeout"):
            _positive(f"serve.{key}", getattr(self, key))
        _web_address("serve.vllm_url", self.vllm_url)
        _require(0 <= self.port < 1 << 16, "serve.port", "between 0 and 65535", self.port)
        pair = (self.tls_cert is None) == (self.tls_key is None)
        _require(pair, "serve.tls_key", "set together with serve.tls_cert", self.tls_key)
        closed = self.keys_file is not None or self.host in LOOPBACK
        _require(closed, "serve.keys_file", f"set unless serve.host is one of {', '.join(LOOPBACK)}", self.keys_file)


@dataclass
class TransferConfig:
    """Stage ``transfer``: DEL's soft prompts away from where they were trained, on the data set of `data`."""

    mus: list[float] = field(default_factory=lambda: [40.0, 52.0])
    """Every soft prompt that was trained on this data at one of these is used at each of them."""
    sources: list[str] = field(default_factory=lambda: ["c4"])
    """Data sets whose soft prompts are used here, each at the mu that it was trained at."""

    def __post_init__(self) -> None:
        _require(len(self.mus) > 0, "transfer.mus", "a non-empty list", self.mus)
        for mu in self.mus:
            _positive("transfer.mus", mu)
        _require(len({*self.mus}) == len(self.mus), "transfer.mus", "different values", self.mus)


@dataclass
class PublishConfig:
    """What stage ``publish`` does with the folder it wrote."""

    repo_id: str | None = None
    """Repository owner/name on the Hugging Face hub to push to, created if there is none; null pushes nothing."""
    private: bool = True
    """Whether a new repository is only its owner's to see."""

    def __post_init__(self) -> None:
        named = self.repo_id is None or re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo_id, flags=re.ASCII)
        _require(bool(named), "publish.repo_id", "owner/name", self.repo_id)


@dataclass
class Config:
    """Everything one run needs."""

    title: str = "DEL"
    """Title of the report."""
    schedule: str = ""
    """One line that labels the training schedule in tables (for instance 'short CPU schedule')."""
    seed: int = 0
    out: str = "runs"
    """Folder of all artefacts."""
    methods: list[str] = field(default_factory=lambda: list(DEFAULT_METHODS))
    """Rows of the leaderboard."""
    soft_prompts: list[str] | None = None
    """Front-ends that get a soft prompt; null means all of `methods`."""
    targets: list[float] = field(default_factory=lambda: [0.02, 0.1, 0.15])
    """Attack success rates to which every method is calibrated (unused where its parameter is set)."""
    matching: list[str] = field(default_factory=lambda: ["nearest"])
    """Which success rate meets the target: nearest (the paper's attack) or worst (of all that calibration runs);
    guarantee gives methods DEL's own GDP parameter instead."""
    stage: StageConfig = field(default_factory=StageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    mechanism: MechanismConfig = field(default_factory=MechanismConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    inverter: InverterConfig = field(default_factory=InverterConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    account: AccountConfig = field(default_factory=AccountConfig)
    nlu: NluConfig = field(default_factory=NluConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def __post_init__(self) -> None:
        _require(len(self.methods) > 0, "methods", "a non-empty list", self.methods)
        for method in self.methods:
            _one_of("methods", method, METHODS)
        for method in self.soft_prompts or ():
            _one_of("soft_prompts", method, METHODS)
        _require(len(self.matching) > 0, "matching", "a non-empty list", self.matching)
        for matching in self.matching:
            _one_of("matching", matching, MATCHINGS)
        for target in self.targets:
            _require(0 < target < 1, "targets", "success rates strictly between 0 and 1", target)


SCHEMAS: dict[str, type] = {
    "stage": StageConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "codec": CodecConfig,
    "mechanism": MechanismConfig,
    "baseline": BaselineConfig,
    "prompt": PromptConfig,
    "attack": AttackConfig,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
    "serve": ServeConfig,
}
"""Config group -> its schema; ``conf/<group>/*.yaml`` extend ``<group>/schema``."""


def register_schemas() -> None:
    """Make the schemas known to Hydra; call before composing."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, schema in SCHEMAS.items():
        store.store(group=group, name="schema", node=schema)
