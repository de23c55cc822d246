"""The front-ends that a configuration asks for."""

from collections.abc import Iterator

from del_lightning.methods.factory import TEXT_ONLY
from del_lightning.report.schema import Calibration, PrivacyColumns
from del_lightning.stages import calibrate
from del_lightning.stages.setting import Setting
from del_lightning.stages.workspace import Workspace


def settings(ws: Workspace) -> list[Setting]:
    """The front-ends of this configuration: controls, then one part a matching and target, every method in each.

    A method whose parameter is set stands once, at that value. A target that a method violates even at its strictest
    is left out (the report names it); one that it never reaches stands at the method's loosest value. Equal guarantee
    is that of DEL where its nearest neighbour's success meets the target, see :func:`_equal`.
    """
    found = list(_fixed(ws))
    for matching in ws.config.matching:
        for target in ws.config.targets:
            found += _guaranteed(ws, target) if matching == "guarantee" else _calibrated(ws, matching, target)
    return found


def levels(ws: Workspace) -> list[Setting]:
    """The settings of the attack curves: every method whose parameter is mu, at every level, strictest first."""
    names = [name for name in ws.config.methods if ws.parameter(name) == "mu"]
    values = sorted(ws.config.attack.levels)
    return [Setting(name, ws.title(name), value) for name in names for value in values]


def soft_prompts(ws: Workspace, setting: Setting) -> tuple[bool, ...]:
    """The rows of a setting: with a soft prompt where it is trained, and without unless that is not asked for."""
    prompted = ws.config.soft_prompts
    if setting.method in TEXT_ONLY:
        return (False,)
    if prompted is not None and setting.method not in prompted:
        return (False,)
    return (False, True) if ws.config.unprompted else (True,)


def _fixed(ws: Workspace) -> Iterator[Setting]:
    for name in ws.config.methods:
        value = ws.given_value(name)
        if value is not None or ws.parameter(name) is None:
            yield Setting(name, ws.title(name), value)


def _calibrated(ws: Workspace, matching: str, target: float) -> list[Setting]:
    found = []
    for name in calibrate.calibrated(ws):
        result = _of_target(calibrate.calibration(ws, name).found[matching], target)
        if result.asr.value <= target:
            found.append(Setting(name, ws.title(name), result.value, target, matching))  # type: ignore[arg-type]
    return found


def _guaranteed(ws: Workspace, target: float) -> list[Setting]:
    """Methods with DEL's exact guarantee at its nearest-neighbour target; DEL itself stands there already."""
    mu = _of_target(calibrate.calibration(ws, "del").found["nearest"], target).value
    statement = ws.method("del").at(mu).statement(ws.mean_prompt_tokens, ws.config.baseline.dp_forward.delta)
    values = {name: _equal(ws, name, statement.columns()) for name in calibrate.calibrated(ws) if name != "del"}
    return [
        Setting(name, ws.title(name), value, target, "guarantee") for name, value in values.items() if value is not None
    ]


def _equal(ws: Workspace, name: str, guarantee: PrivacyColumns) -> float | None:
    """The value at which a method guarantees what DEL does; None where no such guarantee exists.

    Gaussian mechanisms take DEL's effective mu: the smallest at which they are nowhere more private than DEL, a token.
    DP-Forward protects a prompt as a whole, so it takes DEL's exact epsilon of a prompt of mean length.
    """
    if name == "dp-forward":
        return guarantee.epsilon_sequence
    return guarantee.mu_effective if ws.parameter(name) == "mu" else None


def _of_target(calibrations: list[Calibration], target: float) -> Calibration:
    return next(found for found in calibrations if found.target == target)
