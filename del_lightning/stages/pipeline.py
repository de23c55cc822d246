"""Stage ``pipeline``: everything from the codec to the report, building only what is missing."""

import time

from rich.console import Console

from del_lightning.stages import attack, calibrate, codebook, codec, evaluate, prompt, report
from del_lightning.stages.workspace import Workspace


def run(ws: Workspace) -> None:
    """Run the stages in order; a killed pipeline continues where it stopped."""
    console, start = Console(), time.perf_counter()

    def step(title: str) -> None:
        console.rule(f"[bold]{title}[/] ({duration(time.perf_counter() - start)})", align="left")

    if codec.needed(ws):
        step("codec")
        codec.run(ws)
    if codebook.needed(ws):  # before all that trains: groups may outnumber the code words there are
        step("codebook")
        codebook.run(ws)
    if calibrate.calibrated(ws):
        step("calibrate")
        calibrate.run(ws)
    for setting in prompt.prompted(ws):
        step(f"soft prompt: {setting.label}")
        prompt.ensure(ws, setting)
    step("attack")
    attack.run(ws)
    step("evaluate")
    evaluate.run(ws)
    step("report")
    report.run(ws)


def duration(seconds: float) -> str:
    """Time for people: seconds below a minute."""
    return f"{seconds:.0f} s" if seconds < 59.5 else f"{seconds / 60:.1f} min"
