"""Stage ``pipeline``: everything from the codec to the report, building only what is missing."""

import time

from rich.console import Console

from del_lightning.stages import attack, calibrate, codec, evaluate, prompt, report
from del_lightning.stages.setting import NEEDS_CODEC
from del_lightning.stages.settings import settings
from del_lightning.stages.workspace import Workspace


def run(ws: Workspace) -> None:
    """Run the stages in order; a killed pipeline continues where it stopped."""
    console, start = Console(), time.perf_counter()

    def step(title: str) -> None:
        console.rule(f"[bold]{title}[/] ({(time.perf_counter() - start) / 60:.1f} min)", align="left")

    if set(NEEDS_CODEC) & set(ws.config.methods):
        step("codec")
        codec.run(ws)
    if "del" in ws.config.methods and ws.config.mechanism.mu is None:
        step("calibrate")
        calibrate.run(ws)
    found = settings(ws)
    for setting in found:
        step(f"soft prompt: {setting.label}")
        prompt.ensure(ws, setting)
    step("attack")
    attack.run(ws)
    step("evaluate")
    evaluate.run(ws)
    step("report")
    report.run(ws)
