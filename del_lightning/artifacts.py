"""Where stages leave their results, so that nothing is computed twice and nothing half-written is ever read.

    <out>/<stage>/<key>/           a finished artefact: result.json, config.yaml, weights
    <out>/<stage>/<key>.partial/   one being built; training checkpoints survive a kill here

The key is the hash of everything that determines the artefact (model, data, settings, the keys it builds on), so a
changed setting can never pick up a stale file. Finishing is one rename.
"""

import hashlib
import json
import os
import platform
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock
from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

from del_lightning import ranks
from del_lightning.errors import ArtifactError
from del_lightning.precision import instructions
from del_lightning.report.schema import Environment, Estimate, StageResult

CODE_VERSION = 3
"""Part of every key: raise it when a change of the code changes results."""

PARTIAL = ".partial"
"""Suffix of the folder of an artefact that is being built."""

SCRATCH = ("*.ckpt.safetensors", "*.tmp", "seconds.txt", "ranks.txt")
"""Files that only serve to resume an interrupted build."""

PACKAGES = ("del-lightning", "torch", "lightning", "transformers", "torchmetrics", "datasets", "numpy", "scipy")


def key_of(determined_by: Mapping[str, Any]) -> str:
    """Hash a JSON-able description to a 16-digit key; equal descriptions give equal keys."""
    canonical = json.dumps({"code": CODE_VERSION, **determined_by}, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def write_json(path: Path, value: BaseModel | Mapping[str, Any] | list[Any]) -> None:
    """Write JSON atomically: a reader sees the old file or the whole new one."""
    text = value.model_dump_json(indent=1) if isinstance(value, BaseModel) else json.dumps(value, indent=1)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically (temporary file in the same folder, then rename)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # one of SCRATCH: a kill may leave it
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@dataclass
class Outcome:
    """What a builder hands back: measurements and facts for ``result.json``."""

    metrics: dict[str, Estimate] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Artifact:
    """A finished artefact: its folder and its typed record."""

    folder: Path
    result: StageResult

    @property
    def key(self) -> str:
        """Hash of everything that determines it; what later artefacts are keyed by."""
        return self.result.key


class ArtifactStore:
    """Builds artefacts on demand and finds the finished ones."""

    def __init__(self, root: str | Path, config: Mapping[str, Any]) -> None:
        """``config`` is the resolved configuration of this run, recorded beside every artefact."""
        self.root = Path(root)
        self.config = dict(config)

    def get(
        self,
        stage: str,
        determined_by: Mapping[str, Any],
        build: Callable[[Path], Outcome],
        *,
        together: bool = False,
    ) -> Artifact:
        """Return the artefact, building it first if it does not exist yet.

        Rank 0 builds; other ranks wait, or take part in what all train together.

        Args:
            stage: Name of the stage's folder.
            determined_by: JSON-able description of everything the result depends on.
            build: Writes its files into the folder it is given (which may hold those of an interrupted attempt).
            together: All ranks call ``build``, which trains; it ends in :class:`~del_lightning.ranks.Followed` on
                all but rank 0.

        Raises:
            ArtifactError: A finished artefact's record cannot be read.
        """
        key = key_of(determined_by)
        folder = self.root / stage / key
        if not ranks.is_first():
            _follow(folder, build if together else None)
            return Artifact(folder, read_result(folder))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "result.json").exists():
                self._build(stage, key, determined_by, folder, build)
        return Artifact(folder, read_result(folder))

    def _build(
        self, stage: str, key: str, determined_by: Mapping[str, Any], folder: Path, build: Callable[[Path], Outcome]
    ) -> None:
        partial = folder.with_suffix(PARTIAL)
        partial.mkdir(exist_ok=True)
        # The record comes last: where it is, a kill hit what follows here, and the build itself is complete.
        if not (partial / "result.json").exists():
            write_text(ranks.call_path(partial), ranks.launch_name())
            self._record(stage, key, determined_by, partial, build)
        for pattern in SCRATCH:
            for file in partial.glob(pattern):
                file.unlink()
        partial.replace(folder)

    def _record(
        self, stage: str, key: str, determined_by: Mapping[str, Any], partial: Path, build: Callable[[Path], Outcome]
    ) -> None:
        started, clock = datetime.now(UTC), time.perf_counter()
        outcome = build(partial)
        result = StageResult(
            stage=stage,
            key=key,
            determined_by=dict(determined_by),
            config=self.config,
            environment=capture_environment(),
            started=started.isoformat(timespec="seconds"),
            wall_seconds=_total_seconds(partial, time.perf_counter() - clock),
            metrics=outcome.metrics,
            details=outcome.details,
            history=outcome.history,
        )
        write_text(partial / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config)))
        write_json(partial / "result.json", result)


def _follow(folder: Path, build: Callable[[Path], Outcome] | None) -> None:
    """Wait for rank 0's artefact; when rank 0 calls to train it together, do this rank's part first."""
    partial = folder.with_suffix(PARTIAL)
    while not (folder / "result.json").exists():
        if build is not None and ranks.is_called(partial):
            with suppress(ranks.Followed):
                build(partial)
            build = None
        else:
            ranks.wait()


def read_result(folder: Path) -> StageResult:
    """Read a finished artefact's record.

    Raises:
        ArtifactError: ``result.json`` is missing or does not fit the schema.
    """
    path = folder / "result.json"
    try:
        return StageResult.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"expected a finished artefact in {folder}, found no result.json") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(f"{path} does not fit the schema: {first['loc']}: {first['msg']}") from None


def _total_seconds(partial: Path, seconds: float) -> float:
    """Add the time of interrupted attempts, which left it in ``seconds.txt`` with their last checkpoint."""
    earlier = partial / "seconds.txt"
    return seconds + (float(earlier.read_text()) if earlier.exists() else 0.0)


def built_in(artifacts: Iterable[Artifact]) -> Environment:
    """Where most of the time of these artefacts (at least one) was spent: a report may be written on another machine.

    ``dirty`` where any of them came from code that was not committed.
    """
    found = list(artifacts)
    spent: dict[str, float] = defaultdict(float)
    for one in found:
        spent[_machine(one)] += one.result.wall_seconds
    most = max(spent, key=lambda machine: spent[machine])
    last = max((one for one in found if _machine(one) == most), key=lambda one: one.result.started)
    dirty = [one.result.environment.dirty for one in found]
    return last.result.environment.model_copy(update={"dirty": True if True in dirty else dirty[0]})


def versions(artifacts: Iterable[Artifact]) -> str:
    """What versions of the code these artefacts (at least one) come from, in a sentence; empty if it is one version."""
    found = sorted({one.key: one.result for one in artifacts}.values(), key=lambda result: result.started)
    parts = Counter((result.environment.revision or "unknown")[:7] for result in found)
    if len(parts) == 1:
        return ""
    named = [f"{count} from revision {revision}" for revision, count in parts.items()]
    return f"Parts of this board come from different versions of the code, oldest first: {', '.join(named)}."


def _machine(artifact: Artifact) -> str:
    """Hardware and packages that an artefact was built with."""
    return artifact.result.environment.model_dump_json(exclude={"revision", "dirty"})


def capture_environment() -> Environment:
    """Describe the code, packages and hardware of this process."""
    # Results of an earlier run are no code.
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)benchmarks/results")
    return Environment(
        revision=_git("rev-parse", "HEAD"),
        dirty=None if status is None else bool(status),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        instructions=instructions(),
        cores=len(psutil.Process().cpu_affinity()) if platform.system() == "Linux" else psutil.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        packages={name: version for name in PACKAGES if (version := _version(name))},
    )


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
