"""Classification of private text (stage ``nlu``)."""

import re
from dataclasses import dataclass, field
from typing import Any

from del_lightning.config.checks import at_least, low_rank, one_of, positive, require
from del_lightning.config.names import GLUE_TASKS, METHODS, NLU_VARIANTS

_FRONTS = (
    "methods that release every token, or with bits from 1 to 8 del@bits, gaussian-code-nbit@bits or "
    "gaussian-embedding-nbit@bits"
)
_AT_BITS = re.compile(r"(del|gaussian-code-nbit|gaussian-embedding-nbit)@[1-8]")
_NOT_CLASSIFYING = ("inferdpt", "local-only", "del-plus", "del-posterior")


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
            at_least(f"nlu.denoiser.{key}", getattr(self, key), 1)
        at_least("nlu.denoiser.warmup_steps", self.warmup_steps, 0)
        for key in ("learning_rate", "gradient_clip"):
            positive(f"nlu.denoiser.{key}", getattr(self, key))
        require(self.weight_decay >= 0, "nlu.denoiser.weight_decay", "at least 0", self.weight_decay)


@dataclass
class LoraConfig:
    """Low-rank adapter of the server's model, on the schedule of `prompt`."""

    rank: int = 8
    alpha: int = 16
    """The adapter's output is scaled by alpha / rank."""
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        low_rank("nlu.lora", self.rank, self.alpha, self.learning_rate, least=1)


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
    """Way to classify -> front-ends that it is run behind instead; of no effect for one that is not in `ways`."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each draws its own training examples, initial weights and noise."""
    part: list[int] | None = None
    """[k, n]: build every n-th run from the k-th on (k from 0) and write no report. n processes that share `out` divide
    the work so; the same command without it then writes the report of what they built."""
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
        one_of("nlu.task", self.task, GLUE_TASKS)
        one_of("nlu.head", self.head, ("linear", "verbaliser"))
        lists: dict[str, list[Any]] = {"ways": self.ways, "fronts": self.fronts, "seeds": self.seeds}
        lists |= {f"fronts_of.{way}": fronts for way, fronts in self.fronts_of.items()}
        for key, values in lists.items():
            require(len(values) > 0, f"nlu.{key}", "a non-empty list", values)
            require(len(set(values)) == len(values), f"nlu.{key}", "distinct", values)
        for way in self.ways:
            one_of("nlu.ways", way, NLU_VARIANTS)
        for way in self.fronts_of:
            one_of("nlu.fronts_of", way, NLU_VARIANTS)
        for key in (key for key in lists if key.startswith("fronts")):
            for front in lists[key]:
                known = (front in METHODS and front not in _NOT_CLASSIFYING) or _AT_BITS.fullmatch(front)
                require(bool(known), f"nlu.{key}", _FRONTS, front)
        if self.part is not None:
            fits = len(self.part) == 2 and 0 <= self.part[0] < self.part[1]
            require(fits, "nlu.part", "[k, n] with 0 <= k < n", self.part)
        at_least("nlu.train_examples", self.train_examples, 2)  # a head takes the spread of their states
        for key in ("selection_examples", "eval_examples", "sentence_tokens", "draws", "eval_batch_size"):
            at_least(f"nlu.{key}", getattr(self, key), 1)

    @property
    def runs(self) -> dict[str, list[str]]:
        """Way to classify -> its front-ends."""
        return {way: self.fronts_of.get(way, self.fronts) for way in self.ways}
