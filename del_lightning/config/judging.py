"""Attacks, evaluation, accounting, and how they are reported."""

from dataclasses import dataclass, field

from del_lightning.config.checks import at_least, one_of, positive, require, share
from del_lightning.config.names import ATTACKS, CALIBRATING


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
        require(len(self.suite) > 0, "attack.suite", "a non-empty list", self.suite)
        for attack in self.suite:
            one_of("attack.suite", attack, ATTACKS)
        require(len(self.worst_of) > 0, "attack.worst_of", "a non-empty list", self.worst_of)
        for attack in self.worst_of:
            one_of("attack.worst_of", attack, CALIBRATING)
        one_of("attack.metric", self.metric, ("cosine", "l2"))
        for key in ("tokens", "chunk", "prompts", "beam", "tuning_prompts"):
            at_least(f"attack.{key}", getattr(self, key), 1)
        at_least("attack.outline", self.outline, 2)
        for weight in self.prior_weights:
            require(0 < weight <= 1, "attack.prior_weights", "in (0, 1]", weight)
        for level in self.levels:
            positive("attack.levels", level)
        share("attack.tolerance", self.tolerance)
        positive("attack.resolution", self.resolution)


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
        one_of("evaluate.pooling", self.pooling, ("cls", "mean"))
        require(len(self.seeds) > 0, "evaluate.seeds", "a non-empty list", self.seeds)
        require(len(set(self.seeds)) == len(self.seeds), "evaluate.seeds", "distinct", self.seeds)
        at_least("evaluate.max_new_tokens", self.max_new_tokens, 1)
        at_least("evaluate.generation_batch_size", self.generation_batch_size, 1)
        at_least("evaluate.samples", self.samples, 0)
        require(0 < self.top_p <= 1, "evaluate.top_p", "in (0, 1]", self.top_p)
        positive("evaluate.temperature", self.temperature)
        share("evaluate.delta", self.delta)


@dataclass
class ReportConfig:
    """What stage ``report`` shows."""

    results: list[str] | None = None
    """Folders, searched at any depth, and JSON files with leaderboards: merged into one static site, `<out>/site`.
    null writes the page of the run that the other settings describe."""

    def __post_init__(self) -> None:
        if self.results is not None:
            require(len(self.results) > 0, "report.results", "a non-empty list of folders or JSON files", self.results)


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
            at_least(f"account.{key}", getattr(self, key), 1)
        require(len(self.deltas) > 0, "account.deltas", "a non-empty list", self.deltas)
        for delta in self.deltas:
            require(0 <= delta < 1, "account.deltas", "in [0, 1)", delta)
        share("account.prior", self.prior)


@dataclass
class TransferConfig:
    """Stage ``transfer``: DEL's soft prompts away from where they were trained, on the data set of `data`."""

    mus: list[float] = field(default_factory=lambda: [40.0, 52.0])
    """Every soft prompt that was trained on this data at one of these is used at each of them."""
    sources: list[str] = field(default_factory=lambda: ["c4"])
    """Data sets whose soft prompts are used here, each at the mu that it was trained at."""

    def __post_init__(self) -> None:
        require(len(self.mus) > 0, "transfer.mus", "a non-empty list", self.mus)
        for mu in self.mus:
            positive("transfer.mus", mu)
        require(len({*self.mus}) == len(self.mus), "transfer.mus", "different values", self.mus)
