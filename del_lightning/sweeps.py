"""What came out of a multirun, in one line behind its last job.

A launcher may run jobs in other processes and on other machines, so each leaves its figures in a file of its own in the
folder that Hydra gives it; the line is made of those.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from del_lightning import ranks

if TYPE_CHECKING:
    from del_lightning.report.schema import Leaderboard

OUTCOME = "outcome.json"
METRICS = ("headline_retained_minus_asr_worst", "headline_information_retained")
"""What jobs are ranked by: the first that one of them has."""


def leave_outcome(folder: str, overrides: list[str], board: "Leaderboard") -> None:
    """Write what a finished job is judged by."""
    from del_lightning.artifacts import write_json  # What is heavy is loaded by jobs alone.
    from del_lightning.report import cautions
    from del_lightning.stages import tracking

    missed = [f"{one.label} {cautions.not_reached(one)}" for one in cautions.out_of_reach(board)]
    content = {"overrides": overrides, "figures": tracking.headline(board), "missed": missed}
    write_json(Path(folder) / OUTCOME, content)


class SweepOutcome(Callback):
    """Prints the line; Hydra makes one for every command."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Forget what an earlier multirun left in the same folder.

        Not from another rank, which Lightning starts in the midst of one and which goes through all its jobs.
        """
        for file in _files(config) if ranks.is_first() else ():
            file.unlink()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Say which job is best, by what, and which reached no target; nothing after jobs that make no leaderboard."""
        found = [json.loads(file.read_text(encoding="utf-8")) for file in _files(config)]
        if found and ranks.is_first():
            print(line(found))


def line(found: list[dict[str, Any]]) -> str:
    """The best of these outcomes, the name and the value of what it is best in, and who met no target."""
    metric = next((name for name in METRICS if any(name in one["figures"] for one in found)), None)
    missed = [text for one in found for text in one["missed"]]
    tail = f"; {', '.join(missed)}" if missed else ""
    if metric is None:
        return f"multirun of {len(found)} jobs: none has {METRICS[0]}, see docs/sweeps.md{tail}"
    best = max((one for one in found if metric in one["figures"]), key=lambda one: one["figures"][metric])
    common = set.intersection(*(set(one["overrides"]) for one in found))
    own = [override for override in best["overrides"] if override not in common and not override.startswith("title=")]
    settings = " ".join(own or best["overrides"])
    return f"best of {len(found)} jobs: {metric} = {best['figures'][metric]:.4g} with {settings}{tail}"


def _files(config: DictConfig) -> list[Path]:
    return sorted(Path(config.hydra.sweep.dir).glob(f"*/{OUTCOME}"))
