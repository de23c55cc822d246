"""The stage: what it needs, what it loads, and a whole server process that is killed and comes back."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from del_lightning.config import ServeConfig
from del_lightning.errors import ArtifactError, ConfigError, DelError, RemoteError
from del_lightning.llm import FrozenLLM
from del_lightning.privacy import BudgetLedger
from del_lightning.serve.client import Client
from del_lightning.serve.engine import TransformersEngine
from del_lightning.serve.sampling import Sampling
from del_lightning.serve.vllm import VllmEngine
from del_lightning.stages import serve
from tests.serve.stand import Stand, codes_of, make_stand, offline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stand(tiny_llm: Callable[..., FrozenLLM], tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return make_stand(tiny_llm(hidden=32), tmp_path_factory.mktemp("serve"), mus=(30.0,))


def test_serves_every_export_of_the_run(stand: Stand) -> None:
    assert serve.folders(stand.config) == stand.folders
    service = serve.build(stand.config)
    assert list(service.exports) == [stand.bundle().manifest.setting]
    assert isinstance(service.engine, TransformersEngine)
    assert not service.keys.needed
    assert service.config.max_context == 1024  # more positions the model does not have


def test_serves_the_exports_that_are_named(stand: Stand) -> None:
    named = replace(stand.config, out="elsewhere", serve=ServeConfig(exports=[str(stand.folders[0])]))
    assert serve.folders(named) == stand.folders
    for exports in (None, []):
        with pytest.raises(ConfigError, match="must hold a folder that stage=export wrote, got none"):
            serve.folders(replace(named, serve=ServeConfig(exports=exports)))
    with pytest.raises(ConfigError, match="folders that stage=export wrote, got 'nowhere'"):
        serve.folders(replace(named, serve=ServeConfig(exports=["nowhere"])))


def again(stand: Stand, root: Path, name: str, **changes: object) -> Path:
    """A copy of the stand's export with another manifest."""
    folder = root / "export" / name
    shutil.copytree(stand.folders[0], folder)
    path = folder / "server" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_of_the_same_setting_the_newest_is_served(
    stand: Stand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(stand.config, out=str(tmp_path))
    first, second, third = (again(stand, tmp_path, name) for name in "abc")
    for folder, day in ((first, 2), (second, 3), (third, 1)):
        record = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(record | {"started": f"2025-01-0{day}T00:00:00+00:00"}))
    with caplog.at_level("INFO", "del_lightning"):
        assert serve.folders(config) == [second]
    assert [record.left_out for record in caplog.records] == [third, first]
    (first / "result.json").unlink()
    assert serve.folders(config) == [second]
    both = ServeConfig(port=0, exports=[str(first), str(second)])
    with pytest.raises(ConfigError, match=f"must hold different settings, got {first} and {second} alike"):
        serve.check(replace(config, serve=both))  # before the language model is loaded


def test_an_interrupted_export_is_not_served(stand: Stand, tmp_path: Path) -> None:
    config = replace(stand.config, out=str(tmp_path))
    finished = again(stand, tmp_path, "b")
    again(stand, tmp_path, "a.partial", setting="0" * 16)
    assert serve.folders(config) == [finished]


def test_exports_come_in_the_order_of_their_mu(stand: Stand, tmp_path: Path) -> None:
    config = replace(stand.config, out=str(tmp_path))
    weak = again(stand, tmp_path, "a", setting="0" * 16, mu=9.0)
    strong = again(stand, tmp_path, "b", setting="1" * 16, mu=0.5)
    other = again(stand, tmp_path, "c", setting="2" * 16, mu=9.0, label="A")
    assert serve.folders(config) == [strong, other, weak]
    named = replace(config, serve=ServeConfig(exports=[str(weak), str(strong)]))
    assert serve.folders(named) == [weak, strong]


def test_cores_are_left_to_the_scheduler(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(3)
        threads = serve.reserve_cores()
        assert (threads, torch.get_num_threads()) == (3, 1)
        engine = serve.build(stand.config, threads).engine
        assert isinstance(engine, TransformersEngine)
        monkeypatch.setattr(engine, "_wait", lambda: seen.append(torch.get_num_threads()))

        async def start_and_stop() -> None:
            await engine.start()
            await engine.close()

        asyncio.run(start_and_stop())
        assert (seen, torch.get_num_threads()) == ([3], 1)
    finally:
        torch.set_num_threads(before)


def test_the_gateway_keeps_no_layers(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM", "secret")
    config = ServeConfig(engine="vllm", vllm_key_variable="UPSTREAM")
    service = serve.build(replace(stand.config, serve=config))
    assert isinstance(service.engine, VllmEngine)
    assert service.engine._headers == {"Authorization": "Bearer secret"}
    kept = [value for export in service.exports.values() for value in vars(export).values()]
    assert not any(isinstance(value, FrozenLLM) for value in kept)


def test_another_model_is_refused(stand: Stand, tiny_llm: Callable[..., FrozenLLM], tmp_path: Path) -> None:
    other = tiny_llm(hidden=32, seed=5)
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="was made for the model with fingerprint"):
        serve.build(replace(stand.config, model=replace(stand.config.model, name=str(tmp_path))))


def test_check_finds_a_taken_address_at_once(stand: Stand) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"that is free here, got 127.0.0.1:{port} "):
            serve.check(replace(stand.config, serve=ServeConfig(port=port)))
    serve.check(replace(stand.config, serve=ServeConfig(port=port)))


def test_check_finds_what_is_missing_at_once(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "load_llm", None)
    serve.check(replace(stand.config, serve=ServeConfig(port=0)))
    missing = str(tmp_path / "none")
    wrong = {
        "exports": ServeConfig(port=0, exports=["nowhere"]),
        "keys_file": ServeConfig(port=0, keys_file=missing),
        "tls_cert": ServeConfig(port=0, tls_cert=missing, tls_key=missing),
        "vllm_key_variable": ServeConfig(port=0, engine="vllm", vllm_key_variable="NOT_SET_ANYWHERE"),
    }
    for key, config in wrong.items():
        with pytest.raises(DelError, match=rf"`serve\.{key}` must"):
            serve.check(replace(stand.config, serve=config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "`serve.keys_file` must be set unless serve.host is one of 127.0.0.1, ::1, localhost"),
        ({"tls_cert": "a.pem"}, "`serve.tls_key` must be set together with serve.tls_cert"),
        ({"engine": "magic"}, "`serve.engine` must be one of transformers, vllm"),
        ({"port": 70_000}, "`serve.port` must be between 0 and 65535"),
        ({"vllm_url": "127.0.0.1:8001"}, "`serve.vllm_url` must be an http or https address with a host"),
        ({"vllm_url": "ftp://host"}, "`serve.vllm_url` must be"),
        ({"vllm_url": "http://"}, "`serve.vllm_url` must be"),
        ({"vllm_url": "http://host:port"}, "`serve.vllm_url` must be"),
        ({"vllm_url": "http://[::1"}, "`serve.vllm_url` must be"),
        ({"vllm_url": "http://ho st"}, "`serve.vllm_url` must be"),
        ({"rows": 0}, "`serve.rows` must be at least 1"),
        ({"timeout": 0.0}, "`serve.timeout` must be a positive number"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeConfig(**settings)


@contextmanager
def process(stand: Stand, port: int) -> Iterator[subprocess.Popen[str]]:
    """``python -m del_lightning stage=serve`` as a user starts it, ready for requests."""
    command = [sys.executable, "-m", "del_lightning", "stage=serve", f"out={stand.config.out}"]
    command += [f"model.name={stand.config.model.name}", "trainer=cpu", f"serve.port={port}"]
    started = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        for _ in range(1200):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                assert started.poll() is None, started.stderr and started.stderr.read()
                time.sleep(0.05)
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.mark.slow
def test_a_killed_server_is_a_clear_error_and_comes_back(stand: Stand, tmp_path: Path) -> None:
    """kill -9 in the middle of a stream; then the next process serves the same port, and stops when asked to."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ledger = BudgetLedger(tmp_path / "ledger.db", epsilon=1e12, delta=1e-5)
    client = Client(stand.bundle(), f"http://127.0.0.1:{port}", ledger=ledger)
    wishes = {"max_tokens": 500, "temperature": 50.0, "top_p": 1.0, "seed": 1}
    with process(stand, port) as server:
        preview = client.prepare("the cat sat on a mat")
        pieces = client.send(preview, **wishes)
        next(pieces)
        server.send_signal(signal.SIGKILL)
        with pytest.raises(RemoteError, match=f"http://127.0.0.1:{port} broke off: "):
            list(pieces)
        with pytest.raises(RemoteError, match=r"broke off|cannot be reached"):
            list(client.send(preview, **wishes))
    with process(stand, port) as server:
        assert len(list(client.send(preview, max_tokens=7, temperature=0))) > 0
        codes = codes_of(stand, 5, 0)
        assert offline(stand, codes, Sampling(7, 0.0))
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
