"""A front-end at one privacy level: what it is called, what determines it, and how it is built."""

from dataclasses import dataclass
from typing import Any

from del_lightning.methods import Method
from del_lightning.report.schema import Matching
from del_lightning.stages import tracking
from del_lightning.stages.workspace import Workspace


@dataclass(frozen=True)
class Setting:
    """One front-end of the leaderboard at one privacy level.

    Attributes:
        method: Its name in the configuration.
        title: Its name in tables.
        value: Privacy parameter; None for a control.
        target: ASR that the value was calibrated to, if it was.
        matching: What the calibration made equal, if there was one.
    """

    method: str
    title: str
    value: float | None = None
    target: float | None = None
    matching: Matching | None = None

    @property
    def label(self) -> str:
        """What tables print. The value stands in the table, beside what it guarantees, and nowhere alone."""
        if self.value is None:
            return self.title
        match self.matching:
            case "nearest":
                return f"{self.title}, ASR {self.target:g}"
            case "worst":
                return f"{self.title}, worst ASR {self.target:g}"
            case "guarantee":
                return f"{self.title}, DEL's guarantee at ASR {self.target:g}"
            case _:
                return f"{self.title}, given value"

    @property
    def level(self) -> str:
        """What set the value, as metric names say it."""
        return tracking.level(self.matching, self.target, is_control=self.value is None)


def row_label(setting: Setting, soft_prompt: bool) -> str:
    """Name of a leaderboard's row."""
    return setting.label + (" + soft prompt" if soft_prompt else "")


def build_method(ws: Workspace, setting: Setting) -> Method:
    """The front-end of a setting, on the workspace's device."""
    method = ws.method(setting.method)
    return method if setting.value is None else method.at(setting.value)


def method_key(ws: Workspace, setting: Setting) -> dict[str, Any]:
    """A front-end's part of an artefact's key. The target is left out: an equal value is the same mechanism."""
    key = ws.method_key(setting.method)
    return key if setting.value is None else key | {"value": setting.value}
