"""What is looked at before a run begins: everything that would otherwise fail after minutes."""

from dataclasses import replace
from pathlib import Path

from del_lightning import ranks
from del_lightning.attacks.input_inference import check_masked_model
from del_lightning.config import Config
from del_lightning.data import check_corpus
from del_lightning.errors import ConfigError
from del_lightning.loading import check_llm
from del_lightning.methods.factory import NEEDS_CODEC, NEEDS_VOCABULARY, TEXT_ONLY
from del_lightning.metrics.coherence import check_encoder
from del_lightning.modules.adapter import check_peft
from del_lightning.precision import check_dtype
from del_lightning.stages import account, nlu, publish, tracking, transfer
from del_lightning.stages.workspace import Workspace


def check(workspace: Workspace) -> None:
    """Fail now, in a second; what memory the run takes is known afterwards.

    Raises:
        DelError: A model, encoder, corpus or setting is missing or impossible.
    """
    config, stage = workspace.config, workspace.config.stage.name
    ranks.check_launch(config.trainer.devices, config.trainer.num_nodes)
    check_dtype(config)
    if config.report.results is not None:
        if stage != "report":
            raise ConfigError(f"`report.results` must be null unless stage=report, got {config.report.results}")
        return
    _check_adapter(config)
    if stage not in ("account", "serve") and ranks.is_first():  # which start no W&B run
        tracking.check_login(config)
    match stage:
        case "account":
            account.accountant(config)
        case "serve":
            from del_lightning.stages import serve  # It needs the extra of its name.

            serve.check(config)
        case "nlu":
            nlu.check(workspace)
        case _:
            _check_generation(workspace)


def _check_adapter(config: Config) -> None:
    if config.adapter.rank and config.stage.name in ("export", "serve", "publish", "nlu"):
        # What these stages write or train knows soft prompts; `nlu.lora` is the adapter of stage=nlu.
        raise ConfigError(
            f"`adapter.rank` must be 0 for stage={config.stage.name}, which knows soft prompts alone and DEL+ not at "
            f"all, got {config.adapter.rank}"
        )


def _check_generation(workspace: Workspace) -> None:
    """Stages that train and evaluate on the corpus of a leaderboard."""
    config = workspace.config
    if config.stage.name == "transfer":
        transfer.check(workspace)
    if config.stage.name == "publish":
        publish.check(workspace)
    if config.adapter.rank:
        check_peft()
    workspace.check_memory()
    corpora = {config.data.name: "data.name"}
    corpora.setdefault(config.codec.corpus, "codec.corpus")
    for corpus, setting in corpora.items():
        check_corpus(corpus, config.data.root, setting)
    check_encoder(config.evaluate.encoder)
    _check_attacks(config)
    _check_baselines(workspace)
    if workspace.searched and not config.targets:
        names = ", ".join(name for name in config.methods if name in workspace.searched)
        raise ConfigError(f"`targets` must hold a success rate to which {names} are calibrated, got []")


def _check_attacks(config: Config) -> None:
    attack = config.attack
    codeless = [name for name in config.methods if name not in NEEDS_CODEC]
    if set(attack.suite) == {"nearest-code"} and codeless:
        raise ConfigError(f"`attack.suite` must hold an attack on {codeless[0]}, which sends no code, got nearest-code")
    if "input-inference" in attack.suite and attack.masked_model is not None:
        check_masked_model(attack.masked_model)


def _check_baselines(workspace: Workspace) -> None:
    config, baseline = workspace.config, workspace.config.baseline
    methods = set(config.methods)
    if methods & set(TEXT_ONLY) and baseline.inferdpt.local_model is not None:
        check_llm(replace(config.model, name=baseline.inferdpt.local_model))
    if methods & set(NEEDS_VOCABULARY) and baseline.word_vectors and not Path(baseline.word_vectors).is_file():
        raise ConfigError(f"`baseline.word_vectors` must be a file of word vectors, got {baseline.word_vectors!r}")
    if "guarantee" in config.matching and workspace.searched and "del" not in workspace.searched:
        raise ConfigError(
            "`methods` must hold del, and mechanism.mu be null, to match the others to DEL's guarantee, "
            f"got {', '.join(sorted(methods))} and mu {config.mechanism.mu}"
        )
