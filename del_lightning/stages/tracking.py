"""What a run tells an experiment tracker: one scheme of names, and the artefacts behind them.

    <part>/<curve>                                             soft_prompt/del/nearest_asr10/val/perplexity
    leaderboard/<method>/<level>/<plain|soft_prompt>/<figure>  leaderboard/del/nearest_asr10/soft_prompt/perplexity
    nlu/<way>/<front-end>/<level>/<figure>                     nlu/prompt/del_2/nearest_asr10/auc
    headline_<figure>                                          headline_information_retained
    not_reached/<method>/<level>                               not_reached/santext/nearest_asr2

A level says what set the privacy parameter: ``control`` (there is none), ``given`` (the configuration), or what it was
calibrated to, with the target in per cent. The headline is the one private front-end of a run that has just one: a
name that every run of a sweep shares. Names are made of letters, digits and underscores, because W&B sorts and filters
by no others; slashes only group them into sections. A target that no value of a parameter meets has no figures but the
success that came closest to it.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger

from del_lightning.artifacts import Artifact
from del_lightning.config import Config
from del_lightning.errors import ConfigError
from del_lightning.report import cautions
from del_lightning.report.schema import Leaderboard, LeaderboardRow, NluLeaderboard, NluRow, TransferBoard
from del_lightning.report.words import worst_attack

STEP = "trainer/global_step"
"""Lightning's own name of the training step, which starts again with every part of a run."""

_LONGEST_NAME = 128
"""Characters that W&B allows the name of an artefact."""


def word(text: str) -> str:
    """Lower-case letters, digits and underscores: ``nearest_neighbour_cosine``."""
    return re.sub(r"\W+", "_", text.lower(), flags=re.ASCII).strip("_")


def level(matching: str | None, target: float | None, *, is_control: bool) -> str:
    """What set a front-end's privacy parameter: ``control``, ``given``, ``nearest_asr10``."""
    if is_control:
        return "control"
    return "given" if matching is None or target is None else f"{matching}_asr{word(f'{100 * target:g}')}"


def place(method: str, where: str, bits: int | None = None) -> str:
    """A front-end at a level: ``del/nearest_asr10``, ``del_2/given``."""
    return f"{word(method)}{'' if bits is None else f'_{bits}'}/{where}"


class CurveLogger(WandbLogger):
    """Sends one part's training curves to a W&B run that other parts share.

    Args:
        run: The W&B run.
        part: Stands in front of every curve's name.
    """

    LOGGER_JOIN_CHAR = "/"

    def __init__(self, run: Any, part: str) -> None:
        run.define_metric(f"{part}/*", step_metric=STEP)
        super().__init__(experiment=run, prefix=part)


def check_login(config: Config) -> None:
    """What goes to W&B needs an account, which is only looked for: nothing is asked for or sent.

    Raises:
        ConfigError: Nobody is logged in to W&B on this machine, or the key has another form than keys have.
    """
    logger, environment = config.logger, os.environ.get("WANDB_MODE", "online")
    if (logger.kind, logger.mode, environment) != ("wandb", "online", "online"):
        return
    import wandb

    try:
        if wandb.login(prompt=False, verify=False):
            return
        found = "no login on this machine"
    except wandb.Error as error:
        found = " ".join(str(error).split())
    raise ConfigError(
        "`logger.mode` must be offline unless W&B knows you: run `wandb login` or set WANDB_API_KEY, "
        f"got online ({found})"
    )


def leaderboard_metrics(board: Leaderboard) -> dict[str, float]:
    """All figures of a leaderboard by name, and its headline if it has one."""
    found: dict[str, float] = {}
    for row in board.rows:
        where = f"{place(row.method, _level(row))}/{'soft_prompt' if row.soft_prompt else 'plain'}"
        found |= {f"leaderboard/{where}/{name}": value for name, value in _figures(row).items()}
    missed = {f"not_reached/{_missed(one)}": one.closest.value for one in cautions.out_of_reach(board)}
    return found | missed | headline(board)


def _missed(setting: cautions.OutOfReach) -> str:
    return place(setting.method, level(setting.matching, setting.target, is_control=False))


def headline(board: Leaderboard) -> dict[str, float]:
    """Figures of the run's one private front-end, with its soft prompt where it has one; empty if there are several.

    ``headline_retained_minus_asr_worst`` weighs what the server keeps of a prompt against what the strongest attacker
    reads of it. A clean prompt and one that tells nothing both come out at 0 or below, so it may be maximised over the
    privacy parameter too.
    """
    private = [row for row in board.rows if not row.is_control]
    if len({(row.method, row.matching, row.target, row.value) for row in private}) != 1:
        return {}
    row = max(private, key=lambda row: row.soft_prompt)
    found = {name.replace("/", "_"): value for name, value in _figures(row).items()}
    worst = worst_attack(row)
    if "information_retained" in found and worst is not None:
        found["retained_minus_asr_worst"] = found["information_retained"] - worst.value
    return {f"headline_{name}": value for name, value in found.items()}


def nlu_metrics(board: NluLeaderboard) -> dict[str, float]:
    """All figures of a classification leaderboard by name; utility is the mean over seeds."""
    found: dict[str, float] = {}
    for row in board.rows:
        where = f"nlu/{word(row.variant)}/{place(row.method, _level(row), row.bits)}"
        attacks = {f"asr/{word(name)}": rate for name, rate in row.asr.items()}
        found |= {f"{where}/{name}": estimate.value for name, estimate in {**row.over_seeds, **attacks}.items()}
    return found


def transfer_metrics(board: TransferBoard) -> dict[str, float]:
    """Figures of every use of a soft prompt by name: where it was used, what it was trained on, and at which mu."""
    found: dict[str, float] = {}
    for cell in board.cells:
        origin = "none" if cell.trained_on is None else f"{word(cell.trained_on)}_mu{word(f'{cell.trained_at:g}')}"
        where = f"transfer/mu{word(f'{cell.used_at:g}')}/{origin}"
        figures = {"perplexity": cell.perplexity, "coherence": cell.coherence, "agreement": cell.agreement}
        found |= {f"{where}/{name}": estimate.value for name, estimate in figures.items()}
    return found


def _level(row: LeaderboardRow | NluRow) -> str:
    return level(row.matching, row.target, is_control=row.is_control)


def _figures(row: LeaderboardRow) -> dict[str, float]:
    estimates = {
        "perplexity": row.perplexity,
        "coherence": row.coherence,
        "agreement": row.agreement,
        "information_retained": row.retained,
        **{f"asr/{word(name)}": rate for name, rate in row.asr.items()},
    }
    numbers = {
        **{name: estimate.value for name, estimate in estimates.items() if estimate is not None},
        "certified_asr": row.certified,
        "epsilon_token": row.privacy.epsilon_token,
        "epsilon_sequence": row.privacy.epsilon_sequence,
        "bits_per_token": row.communication.bits_per_token,
    }
    return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}


def log_artifact(run: Any, kind: str, artifact: Artifact, **metadata: str) -> None:
    """Log a finished artefact, which never changes; runs that share it store it once."""
    result = artifact.result
    facts = {"stage": result.stage, "key": result.key, "details": result.details}
    measured = {name: estimate.model_dump(mode="json") for name, estimate in result.metrics.items()}
    # The record and the configuration name folders of this machine; what they say is in the run already.
    found = (file for file in artifact.folder.rglob("*") if file.is_file())  # an adapter has a folder of its own
    files = {file.relative_to(artifact.folder).as_posix(): file for file in found}
    files = {name: file for name, file in files.items() if name not in ("result.json", "config.yaml")}
    _log(run, f"{kind}-{result.key}", kind, files, {**facts, "metrics": measured, **metadata}, policy="immutable")


def log_report(run: Any, page: Path) -> None:
    """Log the folder of a report, of which W&B keeps a copy: the next report may take its place."""
    files = {file.name: file for file in page.parent.iterdir() if file.is_file()}
    _log(run, f"report-{page.parent.name}", "report", files, {}, policy="mutable")


def _log(
    run: Any,
    name: str,
    kind: str,
    files: dict[str, Path],
    metadata: dict[str, Any],
    *,
    policy: Literal["mutable", "immutable"],
) -> None:
    import wandb

    artifact = wandb.Artifact(name[:_LONGEST_NAME], kind, metadata=metadata)
    for inside, file in sorted(files.items()):
        artifact.add_file(str(file), name=inside, policy=policy)
    run.log_artifact(artifact)
