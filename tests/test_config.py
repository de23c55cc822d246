from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, cast, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_method
from omegaconf import OmegaConf

from del_lightning.config import (
    SCHEMAS,
    AttackConfig,
    CodecConfig,
    Config,
    CustextConfig,
    DataConfig,
    DPForwardConfig,
    EvaluateConfig,
    GaussianConfig,
    InferDPTConfig,
    InverterConfig,
    LoggerConfig,
    MechanismConfig,
    MetricConfig,
    ModelConfig,
    NluConfig,
    PromptConfig,
    RantextConfig,
    SantextConfig,
    TrainerConfig,
    config_folder,
    register_schemas,
)
from del_lightning.errors import ConfigError

STAGES = ("account", "codec", "calibrate", "prompt", "attack", "evaluate", "report", "pipeline", "nlu")


def composed(*overrides: str) -> Config:
    """What the command line hands to a stage."""
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return cast(Config, OmegaConf.to_object(compose("config", list(overrides))))


def experiments() -> list[str]:
    folder = config_folder() / "experiment"
    return sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))


def group_files() -> list[tuple[str, str]]:
    return sorted(
        (file.parent.name, file.stem) for group in SCHEMAS for file in (config_folder() / group).glob("*.yaml")
    )


def test_defaults_compose() -> None:
    config = composed()
    assert isinstance(config, Config)
    assert (config.stage.name, config.model.name, config.data.name) == ("pipeline", "smollm2-135m-instruct", "lee")


def test_the_experiments_that_the_readme_names_are_there() -> None:
    papers = {"paper/wikitext2", "paper/ptb", "paper/cnn_dailymail"}
    assert set(experiments()) >= {"quickstart", "cpu/wikitext2", "cpu/ptb", "cpu/sst2", "cpu/mrpc", "cpu/qqp"} | papers


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_composes_and_validates(name: str) -> None:
    config = composed(f"experiment={name}")
    assert config.title != Config().title
    assert config.schedule
    assert config.prompt.validate_every <= config.prompt.steps


@pytest.mark.parametrize("dataset", ["wikitext2", "ptb", "cnn_dailymail"])
def test_paper_experiments_hold_the_papers_hyper_parameters(dataset: str) -> None:
    config = composed(f"experiment=paper/{dataset}")
    prompt, codec = config.prompt, config.codec
    assert config.data.name == dataset
    assert (prompt.virtual_tokens, prompt.learning_rate, prompt.steps) == (100, 1e-3, 4000)
    assert (codec.init, codec.bound, codec.steps, codec.corpus, codec.dim) == ("random", 0.05, 20_000, "c4", None)
    assert codec.split_ratio == [0.05, 0.5]
    assert (config.evaluate.top_p, config.evaluate.temperature) == (0.9, 0.7)


def test_the_trainer_takes_lightnings_short_names() -> None:
    found = composed("trainer.accelerator=gpu", "trainer.precision=32").trainer
    assert (found.accelerator, found.precision) == ("gpu", "32-true")
    assert composed("trainer.precision=bf16").trainer.precision == "bf16-mixed"


GLUE_RUN = ("sst2", "mrpc", "qqp")


@pytest.mark.parametrize("task", GLUE_RUN)
def test_classification_has_its_controls_and_bits_in_every_setting(task: str) -> None:
    config = composed(f"experiment=cpu/{task}")
    runs = config.nlu.runs
    assert (config.stage.name, config.nlu.task, config.targets) == ("nlu", task, [0.02, 0.1, 0.15])
    # Pairs need more examples, so fewer ways; all of them are in gpu/mrpc and gpu/qqp, below.
    assert set(runs) >= {"linear", "prompt", "snd"}
    assert all({"clean", "mean"} <= set(fronts) for way, fronts in runs.items() if way != "local")
    bits = {f"del@{bits}" for bits in (1, 2, 4)}  # eight in the paper's experiments, below
    assert all(bits <= set(runs[way]) for way in ("linear", "prompt", "snd"))
    assert "metric-dp" in runs["snd"]  # what the paper compares
    assert config.prompt.steps == config.nlu.denoiser.steps
    assert config.baseline.metric.l2_clip == 7.5
    assert len(config.nlu.seeds) >= 3


@pytest.mark.parametrize("name", ["cpu/sst2", "gpu/mrpc", "gpu/qqp"])
def test_classification_is_compared_in_every_way_somewhere(name: str) -> None:
    runs = composed(f"experiment={name}").nlu.runs
    assert list(runs) == ["linear", "prompt", "lora", "snd", "snd-prompt", "snd-user", "local"]
    assert {"metric-dp", "gaussian-code"} <= set(runs["snd"]) & set(runs["prompt"]) & set(runs["snd-prompt"])


@pytest.mark.parametrize("task", GLUE_RUN)
def test_paper_experiments_of_glue_hold_the_papers_hyper_parameters(task: str) -> None:
    config = composed(f"experiment=paper/{task}")
    nlu, prompt = config.nlu, config.prompt
    assert (config.stage.name, nlu.task, config.model.name) == ("nlu", task, "Qwen/Qwen2.5-7B-Instruct")
    assert (prompt.virtual_tokens, prompt.learning_rate, prompt.steps) == (20, 1e-3, 4000)
    assert (nlu.denoiser.learning_rate, nlu.denoiser.batch_size, nlu.draws) == (1e-4, 16, 2)
    assert (nlu.train_examples, nlu.eval_examples, len(nlu.seeds)) == (None, None, 3)
    assert config.targets == [0.02, 0.1, 0.15]
    assert all({"del@1", "del@2", "del@4", "del@8"} <= set(nlu.runs[way]) for way in ("prompt", "snd", "snd-prompt"))
    assert (config.codec.init, config.codec.bound) == ("random", 0.05)
    assert config.baseline.metric.clip_to_largest  # as SnD does


@pytest.mark.parametrize(("group", "name"), group_files())
def test_every_file_of_every_group_composes(group: str, name: str) -> None:
    overrides = [f"{group}={name}"] + (["model.name=x"] if name == "hub" else [])
    assert is_dataclass(getattr(composed(*overrides), group))


def test_every_group_has_a_schema_and_the_other_way_round() -> None:
    groups = {folder.name for folder in config_folder().iterdir() if folder.is_dir()} - {"experiment", "sweep"}
    assert groups == set(SCHEMAS)
    assert set(SCHEMAS) <= {field.name for field in fields(Config)}
    assert all(get_type_hints(Config)[group] is schema for group, schema in SCHEMAS.items())


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_can_be_called(stage: str) -> None:
    config = composed(f"stage={stage}")
    assert config.stage.name == stage
    assert callable(get_method(config.stage._target_))


def test_overrides_arrive_with_their_types() -> None:
    config = composed(
        "experiment=quickstart", "mechanism.mu=10", "targets=[0.3]", "data.root=null", "prompt.patience=2"
    )
    assert config.mechanism.mu == 10.0
    assert isinstance(config.mechanism.mu, float)
    assert (config.targets, config.data.root, config.prompt.patience) == ([0.3], None, 2)


def test_baselines_have_their_papers_defaults() -> None:
    config = composed("baseline.santext.epsilon=7")
    baseline, plain = config.baseline, Config().baseline
    assert (baseline.santext.epsilon, plain.santext.epsilon) == (7.0, 15.0)
    assert (plain.santext.fraction, plain.santext.p) == (0.5, 0.2)
    assert plain.custext.top_k == 20
    assert (plain.inferdpt.temperature, plain.inferdpt.top_p) == (0.3, 0.9)
    assert plain.dp_forward.delta == 1e-5


@pytest.mark.parametrize("override", ["mechanism.bits=abc", "prompt.steps=1.5", "targets=0.1", "data.root=[1]"])
def test_a_wrong_type_is_refused(override: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed(override)
    assert override.partition("=")[0] in str(caught.value.__cause__)


IMPOSSIBLE: list[tuple[Callable[..., object], dict[str, Any], str]] = [
    (ModelConfig, {"name": " "}, "model.name"),
    (ModelConfig, {"dtype": "float16"}, "model.dtype"),
    (DataConfig, {"name": "imdb"}, "data.name"),
    (DataConfig, {"prompt_words": 0}, "data.prompt_words"),
    (DataConfig, {"min_words": 50, "prompt_words": 50}, "data.min_words"),
    (DataConfig, {"max_prompts": 0}, "data.max_prompts"),
    (DataConfig, {"first_prompt": -1}, "data.first_prompt"),
    (DataConfig, {"max_prompt_tokens": 0}, "data.max_prompt_tokens"),
    (DataConfig, {"train_tokens": 3}, "data.train_tokens"),
    (DataConfig, {"split_ratio": [0.5, 0.05]}, "data.split_ratio"),
    (DataConfig, {"split_ratio": [0.5]}, "data.split_ratio"),
    (DataConfig, {"split_ratio": [0.0, 0.5]}, "data.split_ratio"),
    (CodecConfig, {"corpus": "imdb"}, "codec.corpus"),
    (CodecConfig, {"init": "svd"}, "codec.init"),
    (CodecConfig, {"dim": 0}, "codec.dim"),
    (CodecConfig, {"bound": 0.0}, "codec.bound"),
    (CodecConfig, {"bound_quantile": 1.0}, "codec.bound_quantile"),
    (CodecConfig, {"steps": -1}, "codec.steps"),
    (CodecConfig, {"learning_rate": float("nan")}, "codec.learning_rate"),
    (CodecConfig, {"train_noise_mu": -2.0}, "codec.train_noise_mu"),
    (MechanismConfig, {"bits": 0}, "mechanism.bits"),
    (MechanismConfig, {"bits": 9}, "mechanism.bits"),
    (MechanismConfig, {"mu": -1.0}, "mechanism.mu"),
    (MechanismConfig, {"mu": float("inf")}, "mechanism.mu"),
    (MechanismConfig, {"l2_clip": 0.0}, "mechanism.l2_clip"),
    (GaussianConfig, {"mu": 0.0}, "baseline.gaussian.mu"),
    (GaussianConfig, {"bits": 9}, "baseline.gaussian.bits"),
    (GaussianConfig, {"range_sigmas": 0.0}, "baseline.gaussian.range_sigmas"),
    (GaussianConfig, {"bound_quantile": 1.0}, "baseline.gaussian.bound_quantile"),
    (MetricConfig, {"eta": -1.0}, "baseline.metric.eta"),
    (MetricConfig, {"l2_clip": 0.0}, "baseline.metric.l2_clip"),
    (MetricConfig, {"l2_clip": 1.0, "clip_to_largest": True}, "baseline.metric.l2_clip"),
    (NluConfig, {"ways": []}, "nlu.ways"),
    (NluConfig, {"ways": ["linear", "linear"]}, "nlu.ways"),
    (NluConfig, {"fronts": []}, "nlu.fronts"),
    (NluConfig, {"fronts": ["clean", "clean"]}, "nlu.fronts"),
    (NluConfig, {"fronts_of": {"local": []}}, "nlu.fronts_of.local"),
    (NluConfig, {"fronts_of": {"snd": ["mean", "mean"]}}, "nlu.fronts_of.snd"),
    (NluConfig, {"seeds": [1, 1]}, "nlu.seeds"),
    (NluConfig, {"train_examples": 1}, "nlu.train_examples"),
    (SantextConfig, {"epsilon": 0.0}, "baseline.santext.epsilon"),
    (SantextConfig, {"fraction": 1.0}, "baseline.santext.fraction"),
    (SantextConfig, {"p": -0.1}, "baseline.santext.p"),
    (CustextConfig, {"epsilon": 0.0}, "baseline.custext.epsilon"),
    (CustextConfig, {"top_k": 0}, "baseline.custext.top_k"),
    (RantextConfig, {"epsilon": 0.0}, "baseline.rantext.epsilon"),
    (InferDPTConfig, {"temperature": 0.0}, "baseline.inferdpt.temperature"),
    (InferDPTConfig, {"top_p": 0.0}, "baseline.inferdpt.top_p"),
    (DPForwardConfig, {"epsilon": 0.0}, "baseline.dp_forward.epsilon"),
    (DPForwardConfig, {"delta": 0.0}, "baseline.dp_forward.delta"),
    (DPForwardConfig, {"clip": 0.0}, "baseline.dp_forward.clip"),
    (PromptConfig, {"virtual_tokens": 0}, "prompt.virtual_tokens"),
    (PromptConfig, {"steps": 0}, "prompt.steps"),
    (PromptConfig, {"learning_rate": 0.0}, "prompt.learning_rate"),
    (PromptConfig, {"init_text": "  "}, "prompt.init_text"),
    (PromptConfig, {"patience": 0}, "prompt.patience"),
    (AttackConfig, {"metric": "dot"}, "attack.metric"),
    (AttackConfig, {"tolerance": 0.0}, "attack.tolerance"),
    (AttackConfig, {"resolution": 0.0}, "attack.resolution"),
    (AttackConfig, {"outline": 1}, "attack.outline"),
    (AttackConfig, {"suite": []}, "attack.suite"),
    (AttackConfig, {"suite": ["neares"]}, "attack.suite"),
    (InverterConfig, {"steps": 0}, "inverter.steps"),
    (InverterConfig, {"heads": 3}, "inverter.heads"),
    (InverterConfig, {"width": 30}, "inverter.width"),
    (InverterConfig, {"sequence_tokens": 3}, "inverter.sequence_tokens"),
    (InverterConfig, {"learning_rate": 0.0}, "inverter.learning_rate"),
    (InverterConfig, {"weight_decay": -1.0}, "inverter.weight_decay"),
    (EvaluateConfig, {"pooling": "max"}, "evaluate.pooling"),
    (EvaluateConfig, {"seeds": []}, "evaluate.seeds"),
    (EvaluateConfig, {"seeds": [1, 1]}, "evaluate.seeds"),
    (EvaluateConfig, {"top_p": 1.5}, "evaluate.top_p"),
    (EvaluateConfig, {"temperature": 0.0}, "evaluate.temperature"),
    (EvaluateConfig, {"delta": 1.0}, "evaluate.delta"),
    (TrainerConfig, {"accelerator": "tpu"}, "trainer.accelerator"),
    (TrainerConfig, {"checkpoint_every": 0}, "trainer.checkpoint_every"),
    (TrainerConfig, {"attack_every": -1}, "trainer.attack_every"),
    (LoggerConfig, {"kind": "tensorboard"}, "logger.kind"),
    (LoggerConfig, {"mode": "dryrun"}, "logger.mode"),
    (Config, {"methods": []}, "methods"),
    (Config, {"methods": ["clean", "gaussian"]}, "methods"),
    (Config, {"targets": [0.0]}, "targets"),
]


@pytest.mark.parametrize(("kind", "setting", "key"), IMPOSSIBLE, ids=[f"{k}={s}" for _, s, k in IMPOSSIBLE])
def test_impossible_settings_are_refused_by_name(
    kind: Callable[..., object], setting: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**setting)
    message = str(caught.value)
    assert f"`{key}` must be" in message
    assert ", got " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (MechanismConfig, {"bits": 1, "mu": 1e-3}),
        (MechanismConfig, {"bits": 8, "mu": None}),
        (CodecConfig, {"steps": 0, "warmup_steps": 0, "bound": None}),
        (DataConfig, {"split_ratio": [0.4, 0.4]}),
        (EvaluateConfig, {"top_p": 1.0, "samples": 0}),
        (TrainerConfig, {"attack_every": 0}),
    ],
)
def test_the_edges_of_what_is_possible_are_accepted(kind: Callable[..., object], setting: dict[str, Any]) -> None:
    kind(**setting)
