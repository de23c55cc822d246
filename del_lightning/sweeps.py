"""What came out of a multirun, in one line behind its last job.

A launcher may run jobs in other processes and on other machines, so each leaves its figures in a file, whose name is
made of what the job was told; the line is made of those.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from hydra.utils import to_absolute_path
from omegaconf import DictConfig

from del_lightning import ranks
from del_lightning.multirun import jobs_of

if TYPE_CHECKING:
    from del_lightning.report.schema import Leaderboard

METRICS = ("headline_retained_minus_asr_worst", "headline_information_retained")
"""What jobs are ranked by: the first that one of them has."""


def outcome_path(sweep_dir: str, overrides: Sequence[str]) -> Path:
    """File of one job, which no other job has, of another multirun in the same folder neither."""
    key = hashlib.sha256(json.dumps(list(overrides)).encode()).hexdigest()[:16]
    return Path(to_absolute_path(sweep_dir)) / "outcomes" / f"{key}.json"


def leave_outcome(sweep_dir: str, overrides: Sequence[str], board: "Leaderboard") -> None:
    """Write what a finished job is judged by.

    Args:
        sweep_dir: Hydra's folder of the multirun.
        overrides: Of the job.
        board: What came out.
    """
    from del_lightning.artifacts import write_json  # What is heavy is loaded by jobs alone.
    from del_lightning.report import cautions
    from del_lightning.stages import tracking

    missed = [f"{one.label} {cautions.not_reached(one)}" for one in cautions.out_of_reach(board)]
    path = outcome_path(sweep_dir, overrides)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"overrides": list(overrides), "figures": tracking.headline(board), "missed": missed})


class SweepOutcome(Callback):
    """Prints the line; Hydra makes one for every command.

    Other ranks, which Lightning starts in the midst of a multirun, go through all its jobs and do neither.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Forget what these very jobs left before."""
        for path in _paths(config):
            path.unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Say which job is best, by what, and which reached no target; nothing after jobs that make no leaderboard."""
        found = [json.loads(path.read_text(encoding="utf-8")) for path in _paths(config) if path.exists()]
        if found:
            print(line(found))


def _paths(config: DictConfig) -> list[Path]:
    jobs = jobs_of(config) if ranks.is_first() else []
    return [outcome_path(config.hydra.sweep.dir, overrides) for overrides in jobs]


def line(found: list[dict[str, Any]]) -> str:
    """The best of these outcomes, the name and the value of what it is best in, and who met no target."""
    figures = [{name: x for name, x in one["figures"].items() if math.isfinite(x)} for one in found]
    metric = next((name for name in METRICS if any(name in one for one in figures)), None)
    missed = [text for one in found for text in one["missed"]]
    tail = f"; {', '.join(missed)}" if missed else ""
    if metric is None:
        return f"multirun of {len(found)} jobs: none has {METRICS[0]}, see docs/sweeps.md{tail}"
    value, overrides = max(
        (own[metric], one["overrides"]) for own, one in zip(figures, found, strict=True) if metric in own
    )
    common = set.intersection(*(set(one["overrides"]) for one in found))
    own = [override for override in overrides if override not in common and not override.startswith("title=")]
    settings = " ".join(own or overrides)
    return f"best of {len(found)} jobs: {metric} = {value:.4g} with {settings}{tail}"
