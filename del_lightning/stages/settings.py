"""The front-ends that a configuration asks for."""

from del_lightning.stages import calibrate
from del_lightning.stages.setting import Setting
from del_lightning.stages.workspace import Workspace


def settings(ws: Workspace) -> list[Setting]:
    """The front-ends of this configuration, controls first; DEL once for each target, or once at a fixed mu."""
    found = [Setting(name) for name in ("clean", "mean", "projection") if name in ws.config.methods]
    if "del" not in ws.config.methods:
        return found
    if ws.config.mechanism.mu is not None:
        return [*found, Setting("del", mu=ws.config.mechanism.mu)]
    return [*found, *(Setting("del", mu=c.mu, target=c.target) for c in calibrate.calibrations(ws))]
