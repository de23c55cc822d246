"""What does a CPU with two cores gain from two training processes, and from compiling the frozen model?

    one        one process, one thread: half of the machine
    threads    one process, its matrix products on two threads
    processes  two processes of one thread (DDP over gloo), each with half of every batch
    compiled   as ``processes``, with ``trainer.compile``

All train the same soft prompt on the same batches at ``make quickstart``'s shape, clean text, so that the losses of
``one`` and ``threads`` are equal and that of rank 0 of the others is over half of the sequences.

    python benchmarks/scaling.py        about six minutes on two cores

Writes ``results/scaling.json``. There is no demand: it says what is, turn by turn.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _common import RESULTS, Contender, Turns, show, spread, worth_running, write_result
from prompt_training import CASES, Case, make_batches, train_ours


@dataclass(frozen=True)
class Way:
    """How a contender trains.

    Attributes:
        processes: Ranks that train together.
        threads: Threads of each.
        compiled: Whether the frozen model's norms and feed-forward parts are compiled.
    """

    processes: int = 1
    threads: int = 1
    compiled: bool = False


WAYS = {"one": Way(), "threads": Way(threads=2), "processes": Way(2), "compiled": Way(2, compiled=True)}
QUICKSTART = {case.name: replace(case, steps=4, turns=6) for case in CASES if case.name.startswith("quickstart")}


def run_contender(way: Way, case: Case, batches: str) -> None:
    """One rank of a contender from start to end; rank 0 takes turns, the others wait for its gradients."""
    turns = Turns(warmup=case.warmup, steps=case.steps, turns=case.turns)
    import torch

    from del_lightning import ranks
    from del_lightning.config import ModelConfig
    from del_lightning.data import Batch
    from del_lightning.loading import load_llm

    torch.set_num_threads(way.threads)
    llm = load_llm(ModelConfig(name=case.model, dtype=case.dtype))
    if way.compiled:
        llm.compile_layers()
    stored = torch.load(batches, weights_only=True)
    share = slice(ranks.rank(), None, way.processes)
    own = [Batch(**{name: value[share] for name, value in batch.items()}) for batch in stored]
    step_done = turns.step_done if ranks.is_first() else _nothing
    loss = train_ours(llm, own, case, step_done, devices=way.processes)
    if ranks.is_first():
        turns.say(mean_loss=loss)


def _nothing() -> None:
    """What a rank other than 0 does after a step."""


def run_case(case: Case, ways: Mapping[str, Way] = WAYS) -> dict[str, Any]:
    """All ways turn by turn, each compared with the first."""
    import torch

    batches = make_batches(case)
    tokens = int(batches[0].attention_mask.sum())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder, "batches.pt")
        torch.save([vars(batch) for batch in batches], path)
        job = {"case": asdict(case), "batches": str(path)}
        running = {
            name: stack.enter_context(Contender(__file__, {"way": asdict(way), **job})) for name, way in ways.items()
        }
        for turn in range(case.turns):
            for name in [*ways][:: 1 if turn % 2 == 0 else -1]:
                seconds[name].append(running[name].turn())
        words = {name: contender.last_words() for name, contender in running.items()}
    first = seconds[next(iter(ways))]
    return {
        "case": asdict(case),
        "tokens_a_step": tokens,
        "contenders": {
            name: {
                **asdict(way),
                "tokens_per_second": spread(tokens * case.steps / s for s in seconds[name]),
                "ratio": spread(base / s for base, s in zip(first, seconds[name], strict=True)),
                **words[name],
            }
            for name, way in ways.items()
        },
    }


def main(
    cases: Mapping[str, Case] = QUICKSTART, path: Path = RESULTS / "scaling.json", ways: Mapping[str, Way] = WAYS
) -> None:
    """Run the cases, print each, write them all."""
    from rich import print as rprint
    from rich.table import Table

    results = []
    for case in worth_running(cases.values()):
        result = run_case(case, ways)
        table = Table("way", title=f"Two cores: {case.name}", caption="median (range of turns)")
        for column in ("tokens/s", f"speed of {next(iter(ways))}", "loss of rank 0"):
            table.add_column(column, justify="right")
        for name, row in result["contenders"].items():
            table.add_row(name, show(row["tokens_per_second"], ".0f"), show(row["ratio"]), f"{row['mean_loss']:.4f}")
        rprint(table)
        results.append(result)
    write_result(path, {"demand": None, "results": results})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(sys.argv[2])
        run_contender(Way(**job["way"]), Case(**job["case"]), job["batches"])
    else:
        main()
