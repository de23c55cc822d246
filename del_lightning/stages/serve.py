"""Stage ``serve``: answer private requests over HTTP with what stage ``export`` left.

The first signal to stop drains: new requests are refused, a load balancer sees it in ``/health``, and accepted ones are
finished. The second one stops at once.
"""

import logging
import math
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
import uvicorn

from del_lightning.artifacts import PARTIAL, read_result
from del_lightning.config import Config, ServeConfig
from del_lightning.errors import ConfigError
from del_lightning.llm import FrozenLLM
from del_lightning.loading import check_llm, load_llm
from del_lightning.serve.access import KeyLimits, read_keys
from del_lightning.serve.base import Engine
from del_lightning.serve.bundle import Manifest
from del_lightning.serve.engine import TransformersEngine
from del_lightning.serve.exports import SERVER, load_exports
from del_lightning.serve.logs import log_json
from del_lightning.serve.packing import pack
from del_lightning.serve.server import Service, create_app
from del_lightning.serve.vllm import VllmEngine
from del_lightning.stages.training import pick_device
from del_lightning.stages.workspace import Workspace

log = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Fail now on what would fail after the language model was loaded.

    Raises:
        DelError: Model, export, keys or vLLM's key are missing, or the address is taken.
    """
    _check_address(config.serve)
    check_llm(config.model)
    folders(config)
    keys(config)
    for key in ("tls_cert", "tls_key"):
        path = getattr(config.serve, key)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"`serve.{key}` must be a PEM file, got {path!r}")
    _vllm_key(config)


def run(ws: Workspace) -> None:
    """Serve until a signal to stop."""
    log_json()
    threads = reserve_cores()
    Server(build(ws.config, threads)).run()


def reserve_cores() -> int:
    """Have this thread compute alone, so that the scheduler's can use all cores; returns how many threads that is.

    A thread that computes in parallel keeps helpers of its own for good. With those of a second thread there would be
    more of them than cores, for which OpenMP sends waiting helpers to sleep at once: decoding on two cores takes 1.6
    times as long (29 against 19 tokens/s of SmolLM2-135M). So this comes before anything is computed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return threads


def build(config: Config, threads: int | None = None) -> Service:
    """Load model and exports and put the engine in front of them, which computes with so many threads if given."""
    llm = load_llm(config.model).to(pick_device(config.trainer))
    serve = replace(config.serve, max_context=min(config.serve.max_context, _positions(llm)))
    exports = load_exports(folders(config), llm)
    if serve.engine == "vllm":
        # From here on the layers are not needed: the exports keep the embeddings, vLLM has the rest.
        engine: Engine = VllmEngine(
            serve.vllm_url, serve.vllm_model or config.model.name, _vllm_key(config), rows=serve.rows, queue=serve.queue
        )
    else:
        pack(llm)
        engine = TransformersEngine(llm, list(exports.values()), rows=serve.rows, queue=serve.queue, threads=threads)
    return Service(serve, exports, engine, keys(config))


def folders(config: Config) -> list[Path]:
    """Folders of the exports to serve, each of another setting; the first one is what the page offers.

    Those that are named stay in their order. Of those that are found, the strongest mu comes first, and of exports of
    the same setting (made again with another label, say) only the newest one is served.

    Raises:
        ConfigError: There are none, or two that are named have the same setting.
        ArtifactError: An export is damaged.
    """
    root = Path(config.out, "export")
    named = config.serve.exports
    found = _finished(root) if named is None else [Path(one) for one in named]
    for folder in found:
        if not (folder / SERVER).is_dir():
            raise ConfigError(f"`serve.exports` must hold folders that stage=export wrote, got {str(folder)!r}")
    if not found:
        raise ConfigError(f"`serve.exports` must hold a folder that stage=export wrote, got none (looked in {root})")
    manifests = {folder: Manifest.load(folder / SERVER) for folder in found}
    chosen: dict[str, Path] = {}
    for folder in found if named is not None else sorted(found, key=_age):
        setting = manifests[folder].setting
        if (other := chosen.get(setting)) is not None:
            if named is not None:
                raise ConfigError(f"`serve.exports` must hold different settings, got {other} and {folder} alike")
            log.info("an export is left out, a newer one has its setting", extra={"left_out": other, "newer": folder})
        chosen[setting] = folder
    return (
        list(chosen.values()) if named is not None else sorted(chosen.values(), key=lambda one: _rank(manifests[one]))
    )


def _finished(root: Path) -> list[Path]:
    """Exports of a run, without those that are being written or were interrupted."""
    return sorted(path.parent for path in root.glob(f"*/{SERVER}") if path.parent.suffix != PARTIAL)


def _age(folder: Path) -> tuple[str, int]:
    """Sorts by time; an export that was copied without its record counts as old."""
    record = folder / "result.json"
    return (read_result(folder).started, record.stat().st_mtime_ns) if record.exists() else ("", 0)


def _rank(manifest: Manifest) -> tuple[float, int, int, str, str]:
    return manifest.mu, manifest.bits, manifest.dim, manifest.label, manifest.setting


def keys(config: Config) -> dict[str, KeyLimits]:
    """API keys and their limits; empty if everyone may ask."""
    return {} if config.serve.keys_file is None else read_keys(config.serve.keys_file)


def _check_address(serve: ServeConfig) -> None:
    """uvicorn tries the address only after the model was loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"`serve.host` and `serve.port` must be an address that is free here, "
            f"got {serve.host}:{serve.port} ({error.strerror or error})"
        ) from None


def _positions(llm: FrozenLLM) -> int:
    """Longest text that the language model can read."""
    return int(getattr(llm.model.config.get_text_config(), "max_position_embeddings", sys.maxsize))


def _vllm_key(config: Config) -> str | None:
    name = config.serve.vllm_key_variable
    if name is not None and name not in os.environ:
        raise ConfigError(f"`serve.vllm_key_variable` must name an environment variable that is set, got {name!r}")
    return None if name is None else os.environ[name]


class Server(uvicorn.Server):
    """uvicorn, but it goes on listening while it drains, so that refusals are answers and not closed doors.

    Args:
        service: What it serves.
    """

    def __init__(self, service: Service) -> None:
        config = service.config
        super().__init__(
            uvicorn.Config(
                create_app(service),
                host=config.host,
                port=config.port,
                ssl_certfile=config.tls_cert,
                ssl_keyfile=config.tls_key,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._service = service
        self._deadline = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at the second."""
        if self._service.draining:
            super().handle_exit(sig, frame)
            return
        self._service.draining = True
        self._deadline = time.monotonic() + self._service.config.drain_timeout

    async def on_tick(self, counter: int) -> bool:
        """Stop when everything accepted is answered, or its time is up."""
        drained = self._service.draining and self._service.open == 0
        if drained or time.monotonic() > self._deadline:
            log.info("stopping", extra={"unfinished": self._service.open})
            self.should_exit = True
        return await super().on_tick(counter)
