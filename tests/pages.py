"""The README and the docs as tests read them: command lines and blocks of Python."""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

STARTED = {
    r"experiment=paper/": "the paper's schedules need a GPU and the hub",
    r"experiment=gpu/": "needs a GPU",
    r"model=hub": "needs the hub, or somebody's folder",
    r"publish\.repo_id=": "needs a login on the hub; tests/stages/test_publish.py runs it against a stand-in",
    r"hydra/launcher=submitit_local stage=account": "tests/stages/test_launchers.py runs it by that launcher",
}
"""Commands of ours that are only started by the tests, up to where their work begins, and why."""


def commands(page: Path) -> Iterator[str]:
    """Command lines of a page: in blocks of bash, or indented; continued lines joined, comments cut off."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}((?:make|python|cp|\.venv) .*|\.venv/.*)$", text, flags=re.MULTILINE)
    for line in [*(line for block in fenced for line in block.splitlines()), *indented]:
        words = shlex.split(line, comments=True)
        if words:
            yield shlex.join(words)


ALL = {command: page.relative_to(ROOT).as_posix() for page in reversed(PAGES) for command in commands(page)}
"""Every command -> the page that has it."""


def corpora() -> Path | None:
    """Folder with the real corpora as parquet: ``DEL_DATA_ROOT``, or ``shared/data`` beside the repository."""
    root = Path(os.environ.get("DEL_DATA_ROOT", ROOT.parent / "shared" / "data"))
    return root if (root / "ptb_text_only").is_dir() else None


def why_only_started(command: str) -> str | None:
    """The reason in :data:`STARTED`, or that there is no data here; None for a command that is run to its end."""
    if "data.root=DIR" in command and corpora() is None:
        return "needs the corpora as parquet files, which are not here"
    return next((reason for pattern, reason in STARTED.items() if re.search(pattern, command)), None)


def is_run(command: str) -> bool:
    """Whether ``tests/stages/test_documented.py`` runs a command to its end."""
    ours = command.startswith(("python -m del_lightning", "del-lightning-client"))
    return ours and why_only_started(command) is None


def ids(chosen: list[str]) -> list[str]:
    """Names of commands in the output of pytest."""
    return [f"{ALL[command]}: {command}" for command in chosen]


@contextmanager
def suppress_success() -> Iterator[None]:
    """Leave out an exit without an error."""
    try:
        yield
    except SystemExit as stop:
        if stop.code:
            raise


def blocks(page: Path) -> list[str]:
    """Blocks of Python that are no doctest, which pages hold as well."""
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [block for block in found if ">>>" not in block]
