"""What the benchmarks share: contenders in processes of their own that take turns, and one form of result.

    benchmark  --"go"-->  contender A   runs its next steps, answers how many seconds they took
    benchmark  --"go"-->  contender B   ...                                                          (then A again)

A contender lives in its own process from loading to the end, so its peak memory is its own and its warm-up is paid
once; whoever is not on turn sleeps. Slow drifts of the machine hit neighbouring turns alike, which is why contenders
are compared turn by turn.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Protocol, Self, TextIO, TypeVar

RESULTS = Path(__file__).parent / "results"


class HasDtype(Protocol):
    """A case of a benchmark that names the type of the model's numbers."""

    @property
    def dtype(self) -> str:
        """float32 or bfloat16."""


AnyCase = TypeVar("AnyCase", bound=HasDtype)


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Median of repeats, their smallest and largest, and all of them in the order they were measured."""
    repeats = list(values)
    return {"median": median(repeats), "low": min(repeats), "high": max(repeats), "repeats": repeats}


def show(value: Mapping[str, Any], form: str = ".2f") -> str:
    """A spread for a table: median (low to high)."""
    return f"{value['median']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def write_result(path: Path, result: Mapping[str, Any], packages: Iterable[str] = ()) -> None:
    """Write a result with the environment it was measured in; ``packages`` adds to the versions recorded."""
    import torch

    from del_lightning.artifacts import capture_environment, write_json

    environment = capture_environment().model_dump()
    environment["packages"] |= {name: metadata.version(name) for name in packages}
    environment["threads"] = torch.get_num_threads()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**result, "environment": environment})


def worth_running(cases: Iterable[AnyCase]) -> list[AnyCase]:
    """The cases, without bfloat16 where this device is not known to have instructions for it; what is left out is said.

    There it takes several times as long as float32, and nobody would run it so.
    """
    import torch

    from del_lightning.precision import fastest_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    every = list(cases)
    kept = [case for case in every if case.dtype != "bfloat16" or fastest_dtype(device) == "bfloat16"]
    if left_out := len(every) - len(kept):
        print(f"{left_out} of {len(every)} cases left out: bfloat16, not known to be in hardware here", file=sys.stderr)
    return kept


def peak_memory() -> float:
    """Most memory that this process has held so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss may be inherited from the parent process, this is not
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# --- the benchmark's side ----------------------------------------------------------------------------------------


class Contender:
    """A contender's process: ``script --worker JOB``, ready for its first turn once constructed."""

    def __init__(self, script: str, job: Mapping[str, Any]) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process lives
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        try:
            self._answer()
        except RuntimeError:
            self.close()
            raise

    def turn(self) -> float:
        """Let it run its next steps; returns the seconds they took."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def last_words(self) -> dict[str, Any]:
        """What it reports after its last turn."""
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return dict(json.loads(line))
        self.log.seek(0)
        raise RuntimeError(f"{' '.join(self.process.args)} ended early:\n{self.log.read()[-3000:]}")

    def close(self) -> None:
        """End the process, wherever it is."""
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# --- the contender's side ----------------------------------------------------------------------------------------


class Turns:
    """Counts a contender's steps, and stops after the warm-up and after every turn until it is called again."""

    def __init__(self, *, warmup: int, steps: int, turns: int) -> None:
        self.ends = range(warmup, warmup + steps * turns + 1, steps)
        self.done = 0
        self.channel = _take_stdout()
        self.start = time.perf_counter()

    def step_done(self) -> None:
        """Call after every step."""
        self.done += 1
        if self.done not in self.ends:
            return
        _finish_device_work()
        self.say(seconds=time.perf_counter() - self.start)
        if self.done < self.ends[-1] and not sys.stdin.readline():
            sys.exit("the benchmark is gone")
        self.start = time.perf_counter()

    def say(self, **words: float) -> None:
        """Answer the benchmark."""
        self.channel.write(json.dumps(words) + "\n")
        self.channel.flush()


def _take_stdout() -> TextIO:
    """Keep standard output for answers; what libraries print goes where errors go."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def _finish_device_work() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
