"""Two processes on one CPU are one process with twice the batch, however they are started and the model is spread."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from del_lightning.__main__ import INTERRUPTED
from del_lightning.artifacts import read_result
from del_lightning.config import Config, ModelConfig, TrainerConfig
from del_lightning.errors import ConfigError
from del_lightning.loading import load_llm
from del_lightning.stages.training import pick_device
from tests.stages.factory import board_of, command_line, config_for, kill_when, need, timeless

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
STRATEGIES = ("ddp", "fsdp")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _assets() -> None:
    need("lee.cor", "lee_background.cor")


def config_of(model: Path, encoder: Path, out: Path, strategy: str | None, accumulate: int = 1) -> Config:
    """Controls and DEL at a given mu, under two processes of half the batch, or one process without a strategy.

    ``accumulate`` is the number of small batches that a step is made of.
    """
    config = config_for(model, encoder, out)
    halved = 1 if strategy else 2
    return replace(
        config,
        methods=["clean", "projection", "del"],
        targets=[],
        codec=replace(config.codec, batch_size=halved),
        prompt=replace(config.prompt, batch_size=2 * halved),
        mechanism=replace(config.mechanism, mu=2.0),
        trainer=replace(
            config.trainer,
            devices=2 if strategy else 1,
            strategy=strategy or "ddp",
            accumulate_grad_batches=accumulate,
        ),
    )


def run(config: Config, log: Path, *launcher: str, settings: tuple[str, ...] = ()) -> None:
    """The pipeline from a shell; ``launcher`` takes the place of the interpreter, ``settings`` stand behind ours."""
    command = command_line(config)
    command = [*(launcher or command[:1]), *command[1:], "methods=[clean,projection,del]", "mechanism.mu=2.0"]
    command += settings
    with log.open("wb") as file:
        process = subprocess.run(
            command, cwd=log.parent, env=ENVIRONMENT, stdout=file, stderr=file, timeout=300, check=False
        )
    assert process.returncode == 0, log.read_text()


@pytest.fixture(scope="module")
def finished(model: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    """Output folder of a pipeline under a strategy."""
    known: dict[str | None, Path] = {}

    def get(strategy: str | None) -> Path:
        if strategy not in known:
            folder = tmp_path_factory.mktemp(strategy or "one")
            run(config_of(model, encoder, folder / "out", strategy), folder / "log")
            known[strategy] = folder / "out"
        return known[strategy]

    return get


def trained(out: Path) -> list[dict[str, Tensor]]:
    """Codec and soft prompts, in the order they were trained."""
    paths = [*out.glob("codec/*/codec.safetensors"), *out.glob("prompt/*/adapter_model.safetensors")]
    return [load_file(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_what_one_does(finished: Callable[[str | None], Path], strategy: str) -> None:
    one, two = trained(finished(None)), trained(finished(strategy))
    assert len(one) == len(two) == 4  # a codec and three soft prompts
    # The last one trains behind noise, which two ranks draw for themselves.
    for alone, together in zip(one[:3], two[:3], strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert one[3].keys() == two[3].keys()
    assert not torch.equal(*(next(iter(parts[3].values())) for parts in (one, two)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_log_what_one_does(finished: Callable[[str | None], Path], strategy: str) -> None:
    """Means are those over the global batch, sums are sums over ranks; not merely the same on both."""
    one, two = histories(finished(None)), histories(finished(strategy))
    assert len(one) == len(two) == 3  # a codec and the soft prompts that draw no noise
    figures = {name for history in one for row in history for name in row}
    assert {"train/loss", "val/perplexity", "communication/megabytes_sent"} <= figures
    for alone, together in zip(one, two, strict=True):
        assert together == [pytest.approx(row, rel=1e-4) for row in alone]


def histories(out: Path) -> list[list[dict[str, float]]]:
    """What the codec's training and those of the first two soft prompts logged."""
    paths = [path for stage in ("codec", "prompt") for path in out.glob(f"{stage}/*/result.json")]
    first = sorted(paths, key=lambda path: path.stat().st_mtime_ns)[:3]
    return [read_result(path.parent).history for path in first]


@pytest.fixture(scope="module")
def accumulated(model: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    """Output folder of a codec and one soft prompt, both trained in steps of two small batches."""

    @cache
    def get(strategy: str | None) -> Path:
        folder = tmp_path_factory.mktemp(f"{strategy or 'one'}-accumulated")
        config = config_of(model, encoder, folder / "out", strategy, accumulate=2)
        run(config, folder / "log", settings=("stage=prompt", "methods=[projection]"))
        return folder / "out"

    return get


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_accumulate_what_one_does(accumulated: Callable[[str | None], Path], strategy: str) -> None:
    one, two = trained(accumulated(None)), trained(accumulated(strategy))
    assert len(one) == len(two) == 2  # a codec and a soft prompt, neither behind noise
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_accumulated_steps_are_other_steps(
    accumulated: Callable[[str | None], Path], finished: Callable[[str | None], Path]
) -> None:
    """Or the test above would say nothing of them."""
    plain, ours = trained(finished(None)), trained(accumulated(None))
    assert not torch.allclose(ours[0]["encoder.weight"], plain[0]["encoder.weight"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rank_0_evaluates_alone_and_writes_one_report(finished: Callable[[str | None], Path], strategy: str) -> None:
    one, two = board_of(finished(None)), board_of(finished(strategy))
    assert [(row.label, row.soft_prompt) for row in one.rows] == [(row.label, row.soft_prompt) for row in two.rows]
    for alone, together in zip(one.rows, two.rows, strict=True):
        if alone.method != "del":
            assert together.perplexity.value == pytest.approx(alone.perplexity.value, rel=1e-4)
    assert list(finished(strategy).rglob("*.partial")) == []
    assert list(finished(strategy).rglob("ranks.txt")) == []


def test_spread_layers_give_what_whole_ones_do(finished: Callable[[str | None], Path]) -> None:
    """Behind noise too, since the ranks draw the same; but for the order in which a sum is taken."""
    for whole, spread in zip(trained(finished("ddp")), trained(finished("fsdp")), strict=True):
        torch.testing.assert_close(spread, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("strategy", "accumulate"), [("ddp", 2), ("fsdp", 1)])
def test_torchrun_leaves_the_same_prompt_on_every_rank(
    model: Path, tmp_path: Path, strategy: str, accumulate: int
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = [str(ROOT / "tests" / "stages" / "rank_worker.py"), str(model), str(tmp_path), strategy, str(accumulate)]
    command = [*torchrun, *worker]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    drawn = torch.cat([first.pop("noise"), second.pop("noise")]).flatten()
    assert len(drawn.unique()) == len(drawn) == 2 * 4 * accumulate * 4  # ranks, steps, small batches, numbers
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    whole = load_llm(ModelConfig(name=str(model), dtype="float32")).model
    assert torch.equal(first["frozen"], whole.get_parameter("model.layers.1.mlp.down_proj.weight"))


def test_the_pipeline_runs_under_torchrun(
    model: Path, encoder: Path, tmp_path: Path, finished: Callable[[str | None], Path]
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(config_of(model, encoder, tmp_path / "out", "ddp"), tmp_path / "log", *torchrun)
    assert timeless(board_of(tmp_path / "out")) == timeless(board_of(finished("ddp")))


def test_a_killed_pair_ends_as_an_uninterrupted_one(
    model: Path, encoder: Path, tmp_path: Path, finished: Callable[[str | None], Path]
) -> None:
    config, prompts = config_of(model, encoder, tmp_path / "out", "ddp"), tmp_path / "out" / "prompt"
    command = [*command_line(config), "methods=[clean,projection,del]", "mechanism.mu=2.0"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=log)
    kill_when(process, lambda: any(prompts.glob("*.partial/last.ckpt.safetensors")))
    limit = time.monotonic() + 60
    while children(str(tmp_path)):  # the other rank notices by itself
        assert time.monotonic() < limit
        time.sleep(0.1)
    run(config, tmp_path / "log")
    assert timeless(board_of(tmp_path / "out")) == timeless(board_of(finished("ddp")))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_training_ends_when_it_is_told_to(
    model: Path, encoder: Path, tmp_path: Path, devices: int, sent: signal.Signals
) -> None:
    """As ``timeout``, a terminal and a cluster send it: to all processes at once."""
    config = config_of(model, encoder, tmp_path / "out", "ddp")
    command = [*command_line(config), f"trainer.devices={devices}", "prompt.steps=100000", "prompt.validate_every=1000"]
    # A shell that starts the tests in the background has its children ignore Ctrl-C.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )
    signal.signal(signal.SIGINT, usual)
    prompts = tmp_path / "out" / "prompt"
    seen = 0

    def trains() -> bool:
        nonlocal seen
        reached = any(prompts.glob("*.partial/last.ckpt.safetensors"))
        seen = len(children(str(tmp_path))) if reached else 0
        return reached

    try:
        kill_when(process, trains, sent)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert seen == devices  # or that none is left would say nothing
    assert process.returncode == (-sent if sent == signal.SIGTERM else INTERRUPTED)
    if sent == signal.SIGINT:
        said = (tmp_path / "log").read_text()
        assert said.count("interrupted: the same command goes on from what is done") == 1  # rank 0 speaks for all
    limit = time.monotonic() + 30
    while children(str(tmp_path)):
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_left_alone_says_so_in_one_line(model: Path, encoder: Path, tmp_path: Path, killed: int) -> None:
    config = config_of(model, encoder, tmp_path / "out", "ddp")
    command = [*command_line(config), "prompt.steps=100000", "prompt.validate_every=1000"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        limit = time.monotonic() + 300
        while not any((tmp_path / "out" / "prompt").glob("*.partial/last.ckpt.safetensors")):
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.05)
        listed = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
        (other,) = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()[:1]
        os.kill(process.pid if killed == 0 else int(other), signal.SIGTERM if killed else signal.SIGKILL)
        process.wait(timeout=60)
        limit = time.monotonic() + 60
        while children(str(tmp_path)):
            assert time.monotonic() < limit
            time.sleep(0.1)
    finally:
        process.kill()
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert process.returncode != 0
    if killed == 0:  # Lightning may be faster to end rank 0 than rank 0 is to say why
        assert (
            said.count("error (rank 1): another process of this run ended: the same command goes on from what is") == 1
        )


def test_processes_that_do_not_know_of_each_other_are_refused(model: Path, encoder: Path, tmp_path: Path) -> None:
    config = config_of(model, encoder, tmp_path / "out", None)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, *command_line(config)[1:]]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    expected = "must be the number of processes that torchrun started, 2, got 1 × 1"
    assert expected in done.stderr
    assert not any((tmp_path / "out").glob("*/*"))


def children(text: str) -> list[str]:
    """Processes that still run with ``text`` on their command line."""
    command = ["ps", "-ww", "-eo", "args"]  # whole lines, also where something set the terminal's width
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if text in line and "del_lightning" in line]


def test_more_devices_than_the_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"`trainer.devices` must be at most the 1 of this machine, got 2"):
        pick_device(TrainerConfig(devices=2))
