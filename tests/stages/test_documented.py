"""Commands in the README and the docs, run to their end as they stand there, on a small model and short schedules.

All run in one folder, as a reader's would, so that one finds what another has built. What no test can run is in
:data:`tests.pages.STARTED`, with its reason; ``tests/test_commands.py`` starts that.
"""

import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from del_lightning.__main__ import main
from del_lightning.artifacts import read_result
from tests.pages import ALL, PAGES, ROOT, blocks, ids, is_run, suppress_success
from tests.stages.small import small
from tests.stages.test_sweeps import environment, jobs

BLOCKS = [page for page in PAGES if blocks(page) and page.name != "publishing.md"]
"""Pages whose blocks of Python run here; those of docs/publishing.md push, and run in tests/stages/test_publish.py."""

pytestmark = pytest.mark.slow

SERVED = ("stage=serve", "del-lightning-client")
"""What the server and its client have in their commands: they run together."""
RUN = sorted(filter(is_run, ALL), key=lambda command: "report.results" in command)
"""In the order of the pages; sites of reports that others leave come last."""
ONE_BY_ONE = [command for command in RUN if not any(part in command for part in SERVED)]
ALONE = ("logger=wandb", "trainer.devices=2")
"""What of a command needs a process of its own."""

FEW = "{lora:[del@4],snd:[clean,del@4],snd-prompt:[del@4],snd-user:[del@4],local:[clean]}"
SHORT = {
    "targets": "[0.4]",
    "trainer.compile": "false",
    "trainer.attack_every": 0,
    "codec.documents": 50,
    "codebook.frequent": 16,  # of 300 tokens
    "codebook.last_alone": 16,
    "prompt.virtual_tokens": 3,
    "attack.prompts": 4,
    "attack.tuning_prompts": 4,
    "attack.beam": 2,
    "inverter.steps": 2,
    "inverter.validate_every": 2,
    "inverter.sequence_tokens": 16,
    "nlu.train_examples": 16,
    "nlu.selection_examples": 12,
    "nlu.eval_examples": 20,
    "nlu.sentence_tokens": 12,
    "nlu.seeds": "[0]",
    "nlu.fronts": "[clean,mean,del@4]",
    "nlu.denoiser.steps": 2,
    "nlu.denoiser.validate_every": 2,
}
"""Schedules beyond those of the small pipeline: whatever a page's command does not set itself."""

SHORTER = {
    "attack=full": {"attack.levels": "[20]"},
    "experiment=del_plus": {"codec.dim": 8},
    "experiment=attacks/": {"attack.levels": "[20]"},
    "experiment=cpu/nlu": {"++nlu.fronts_of": FEW},
    "experiment=cpu/sst2": {"++nlu.fronts_of": FEW},
    "experiment=cpu/mrpc": {"++nlu.fronts_of": FEW},
    "experiment=cpu/pairs": {"++nlu.fronts_of": FEW},
}
"""And those of single experiments."""


def shortened(words: list[str], settings: dict[str, Any]) -> list[str]:
    """Behind the command's own overrides, all short settings that it does not make itself."""
    made = {word.partition("=")[0] for word in words}
    own = next((more for start, more in SHORTER.items() if any(word.startswith(start) for word in words)), {})
    return [*words, *(f"{name}={value}" for name, value in {**settings, **own}.items() if name not in made)]


def two_jobs(words: list[str]) -> list[str]:
    """The first and the last job of a sweep by its first axis: all jobs of a page would take minutes."""
    first, *_, last = jobs(shlex.join(words))
    pairs = list(zip(first, last, strict=True))
    (one, other), *others = [pair for pair in pairs if pair[0] != pair[1]]
    fixed = [one for one, other in pairs if one == other]
    return [*words[:4], *fixed, f"{one},{other.partition('=')[2]}", *(value for _, value in others)]


@pytest.fixture(scope="module")
def settings(model: Path, encoder: Path) -> dict[str, Any]:
    """What makes every command short."""
    return {**small(model, encoder), **SHORT, "data.max_prompts": 8, "logger": "none"}


@pytest.fixture(scope="module")
def place(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder, in a shell of its own, of a reader who has begun with the quick start."""
    folder = tmp_path_factory.mktemp("reader")
    for results in ("benchmarks/results", "more/results"):  # one of the committed ones: all take a minute to draw
        (folder / results).mkdir(parents=True)
        (folder / results / "attacks.json").symlink_to(ROOT / "benchmarks" / "results" / "ptb" / "attacks.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        for name in (
            *("HYDRA_FULL_ERROR", "DEL_LIGHTNING_TRACEBACKS"),
            *("TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_TELEMETRY"),
        ):
            patch.setenv(name, "")  # main() sets them; the patch puts them back
            patch.delenv(name)
        call(shortened(["python", "-m", "del_lightning", "experiment=quickstart"], settings))
        yield folder


@pytest.mark.parametrize("command", ONE_BY_ONE, ids=ids(ONE_BY_ONE))
def test_command(command: str, place: Path, settings: dict[str, Any], request: pytest.FixtureRequest) -> None:
    words = shlex.split(command.replace("[DIR, ...]", "[runs/report]"))
    if "data.root=DIR" in words:
        words[words.index("data.root=DIR")] = f"data.root={request.getfixturevalue('data_root')}"
    if "report.results" in command:  # and two of the reports that the others have left
        for report in sorted((place / "runs" / "report").iterdir())[2:]:
            shutil.rmtree(report)
    short = shortened(two_jobs(words) if words[3] == "-m" else words, settings)
    begun = time.time() - 1  # file systems round
    if any(one in command for one in ALONE):
        done = subprocess.run([sys.executable, *short[1:]], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    else:
        call(short)
    assert "--help" in words or any(path.stat().st_mtime > begun for path in place.glob("*/**/*"))


def call(words: list[str]) -> None:
    """A command of ours in this process."""
    with pytest.MonkeyPatch.context() as patch, suppress_success():
        patch.setattr(sys, "argv", ["del-lightning", *words[3:]])
        shorten_more(patch)
        main()


def shorten_more(patch: pytest.MonkeyPatch) -> None:
    """Two things that no setting shortens: attribute inference, and the neighbours that a codebook counts."""
    patch.setattr("del_lightning.stages.nlu.ATTRIBUTE_TEXTS", 100)
    patch.setattr("del_lightning.attacks.attribute.EPOCHS", 1)
    patch.setattr("del_lightning.codebook.topic_vectors.__defaults__", (48, 2))  # width, window


def test_server_and_client(place: Path, settings: dict[str, Any]) -> None:
    """The client asks the server that the page's other command has started, with what its export left."""
    call(shortened(["python", "-m", "del_lightning", "stage=export", "experiment=quickstart"], settings))
    serve, ask = (next(shlex.split(one) for one in RUN if part in one) for part in SERVED)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, *shortened(serve, settings)[1:], f"serve.port={port}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(url, server)
        bundle = next(place.glob("runs/export/*/client"))
        words = [
            word.replace("http://127.0.0.1:8000", url).replace("runs/export/<key>/client", str(bundle)) for word in ask
        ]
        words[0] = str(Path(sys.executable).parent / words[0])
        words.append("--yes")  # what somebody answers at a terminal, which no test has
        asked = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.strip()
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()


def wait_for(url: str, server: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            assert server.poll() is None, server.stderr and server.stderr.read()
        time.sleep(0.05)


@pytest.mark.parametrize("page", BLOCKS, ids=lambda page: page.name)
def test_blocks_of_python(page: Path, place: Path) -> None:
    """In order, in the folder that the commands have filled; a number behind a line is what that line gives."""
    key = next(one.parent.name for one in place.glob("runs/prompt/*/result.json") if is_of_del(one.parent))
    names: dict[str, Any] = {}
    for block in blocks(page):
        exec(block.replace("<key>", key), names)
        for line, number in re.findall(r"^(.*?)  # .*: ([\d.,]+)$", block, flags=re.MULTILINE):
            decimals = len(number.partition(".")[2])
            assert f"{eval(line, names):,.{decimals}f}" == number


def is_of_del(folder: Path) -> bool:
    facts = read_result(folder).determined_by
    return facts["method"]["name"] == "del" and "adapter" not in facts
