"""Model, data, and everything together."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from del_lightning.config.baselines import BaselineConfig
from del_lightning.config.checks import at_least, distinct, one_of, ratio_range, require, writable_folder
from del_lightning.config.judging import AccountConfig, AttackConfig, EvaluateConfig, ReportConfig, TransferConfig
from del_lightning.config.names import CORPORA, DEFAULT_METHODS, MATCHINGS, METHODS
from del_lightning.config.nlu import NluConfig
from del_lightning.config.release import CodebookConfig, CodecConfig, MechanismConfig
from del_lightning.config.sharing import PublishConfig, ServeConfig
from del_lightning.config.training import AdapterConfig, InverterConfig, LoggerConfig, PromptConfig, TrainerConfig


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
    """Weights and activations: float32, bfloat16, or auto: bfloat16 where the device has instructions for it."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "model.name", "a packaged asset, a folder or a hub id", self.name)
        one_of("model.dtype", self.dtype, ("float32", "bfloat16", "auto"))


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
    first_prompt: int = 0
    """Eligible text that drawing starts at: another value takes other prompts, for a check on prompts that no setting
    was chosen on."""
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
        one_of("data.name", self.name, CORPORA)
        at_least("data.prompt_words", self.prompt_words, 1)
        require(self.min_words > self.prompt_words, "data.min_words", "more than data.prompt_words", self.min_words)
        for key in ("max_prompts", "max_prompt_tokens", "reference_tokens", "validation_blocks", "eval_batch_size"):
            at_least(f"data.{key}", getattr(self, key), 1)
        at_least("data.first_prompt", self.first_prompt, 0)
        at_least("data.train_tokens", self.train_tokens, 4)
        ratio_range("data.split_ratio", self.split_ratio)


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
    unprompted: bool = True
    """Whether those are evaluated without it too."""
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
        require(bool(self.title.strip()), "title", "a non-empty line", self.title)
        for key in ("methods", "soft_prompts", "targets", "matching"):
            distinct(key, getattr(self, key) or ())
        require(len(self.methods) > 0, "methods", "a non-empty list", self.methods)
        for method in self.methods:
            one_of("methods", method, METHODS)
        for method in self.soft_prompts or ():
            one_of("soft_prompts", method, METHODS)
        require(len(self.matching) > 0, "matching", "a non-empty list", self.matching)
        for matching in self.matching:
            one_of("matching", matching, MATCHINGS)
        for target in self.targets:
            require(0 < target < 1, "targets", "success rates strictly between 0 and 1", target)


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


def config_folder() -> Path:
    """Folder of the YAML files: ``conf/`` of a checkout, or the copy inside an installed package."""
    package = Path(__file__).parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def config_of(settings: DictConfig, *, here: bool = True) -> Config:
    """Checked settings from composed ones; ``here`` says that this machine runs them, and must be able to write.

    Raises:
        ConfigError: A value is impossible, or ``out`` cannot be written.
        OmegaConfBaseException: A value is missing or refers to one that does not exist.
    """
    config = cast(Config, OmegaConf.to_object(settings))
    if here and config.stage.name != "serve":  # which only reads what export left
        writable_folder("out", config.out)
    return config


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a finished run (:class:`Config` as a dictionary), completed.

    One that is younger than the run had its default there.
    """
    return _filled(asdict(Config()), settings)


def _filled(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    found = {
        name: _filled(value, given[name])
        if isinstance(value, dict) and isinstance(given.get(name), dict)
        else given.get(name, value)
        for name, value in defaults.items()
    }
    return found | {name: value for name, value in given.items() if name not in found}
