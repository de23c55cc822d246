"""From end to end: every byte between client and server is captured, and holds what the mechanism allows, no more."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from del_lightning.config import ServeConfig
from del_lightning.methods import Release
from del_lightning.privacy import BudgetLedger
from del_lightning.serve.bundle import Bundle
from del_lightning.serve.client import Client
from del_lightning.serve.sampling import Sampling
from del_lightning.wire import HEADER_BYTES, decode_frame, packed_bytes, unpack
from tests.serve.stand import Stand, make_service, offline, serving

PRIVATE = "my doctor is Zygmunt Quavelin and he lives at 17 Xylograph Yard"
OTHER = "the birds flew over"


@dataclass
class Wire:
    """A proxy that copies bytes both ways and keeps them, one entry a connection."""

    url: str = ""
    sent: list[bytearray] = field(default_factory=list)
    answered: list[bytearray] = field(default_factory=list)

    def forget(self) -> None:
        self.sent.clear()
        self.answered.clear()

    @property
    def request(self) -> bytes:
        """The only POST that was sent."""
        (found,) = [bytes(one) for one in self.sent if one.startswith(b"POST")]
        return found


@contextmanager
def captured(target: str) -> Iterator[Wire]:
    host, port = target.removeprefix("http://").split(":")
    wire = Wire()
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def copy(source: socket.socket, to: socket.socket, kept: bytearray) -> None:
        while data := _receive(source):
            kept += data
            to.sendall(data)
        to.close()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection((host, int(port)))
            for source, to, log in ((client, server, wire.sent), (server, client, wire.answered)):
                log.append(bytearray())
                threads.append(threading.Thread(target=copy, args=(source, to, log[-1]), daemon=True))
                threads[-1].start()

    threading.Thread(target=accept, daemon=True).start()
    wire.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield wire
    finally:
        listener.close()


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""


@pytest.fixture(scope="module")
def server(stand: Stand) -> Iterator[str]:
    with serving(make_service(stand, ServeConfig(port=0, requests_per_minute=0))) as (url, _):
        yield url


@pytest.fixture
def wire(server: str) -> Iterator[Wire]:
    with captured(server) as wire:
        yield wire


@contextmanager
def connect(stand: Stand, wire: Wire, folder: Path, number: int = 0) -> Iterator[Client]:
    """A client whose every request has a connection of its own."""
    ledger = BudgetLedger(folder / "ledger.db", epsilon=1e12, delta=1e-5)
    http = httpx.Client(headers={"Connection": "close"}, timeout=30)
    with Client(stand.bundle(number), wire.url, ledger=ledger, http=http) as client:
        yield client


def spellings(text: str, ids: list[int]) -> list[bytes]:
    """How a text could stand in a stream of bytes: its words, and runs of its token ids as integers or digits."""
    found = [word.encode() for word in text.split() if len(word) > 3]
    for start in range(len(ids) - 3):
        run = ids[start : start + 4]
        found += [struct.pack(f"{order}4{kind}", *run) for order in "<>" for kind in "HIQ"]
        found += [separator.join(map(str, run)).encode() for separator in (",", ", ", " ")]
    return found


def test_the_text_is_nowhere_in_what_is_sent(stand: Stand, wire: Wire, tmp_path: Path) -> None:
    with connect(stand, wire, tmp_path) as client:
        answer = "".join(client.ask(PRIVATE, max_tokens=8, seed=1))
    ids = client.bundle.encode(PRIVATE)[0].tolist()
    everything = b"".join(wire.sent)
    assert len(wire.sent) == 2  # /v1/info, and the request
    assert answer
    for spelling in spellings(PRIVATE, ids):
        assert spelling not in everything
    assert spellings(PRIVATE, ids)[0] in PRIVATE.encode()  # the search would find it


def test_the_client_talks_to_nobody_else(
    stand: Stand, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[Any] = []
    plain = socket.socket.connect

    def connect_and_tell(self: socket.socket, address: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            met.append(address)
        plain(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_and_tell)
    with connect(stand, wire, tmp_path) as client:
        list(client.ask(PRIVATE, max_tokens=2))
    assert {f"http://{host}:{port}" for host, port in met} == {wire.url}


def test_a_request_is_its_codes_and_nothing_else_that_varies(stand: Stand, wire: Wire, tmp_path: Path) -> None:
    """Requests of one length differ in the payload and its checksum only; the payload is exactly the codes."""
    with connect(stand, wire, tmp_path) as client:
        manifest = client.bundle.manifest
        tokens = len(client.bundle.encode(OTHER)[0])
        words = PRIVATE.split()
        texts = [OTHER, *[" ".join(words[start:] + words) for start in range(6)]]
        prepared = [client.prepare(text) for text in texts]
        requests = []
        for preview in prepared:
            wire.forget()
            short = type(preview)(**vars(preview) | {"ids": preview.ids[:tokens]})
            list(client.send(short, max_tokens=1, seed=1))
            requests.append(wire.request)
    heads, frames = zip(*[request.split(b"\r\n\r\n", 1) for request in requests], strict=True)
    assert len(set(heads)) == 1
    fixed = HEADER_BYTES + 4 * len(manifest.prefix_ids)
    size = packed_bytes(tokens * manifest.dim, manifest.bits)
    assert {len(frame) for frame in frames} == {fixed + size}
    assert len({frame[: HEADER_BYTES - 4] + frame[HEADER_BYTES:fixed] for frame in frames}) == 1
    for frame in frames:
        codes = unpack(frame[fixed:], manifest.bits, (tokens, manifest.dim))
        assert np.array_equal(decode_frame(frame).codes, codes)


def body(answer: bytes) -> bytes:
    """An answer's content, without the sizes of its pieces: when a piece ends is a matter of timing."""
    rest, content = answer.split(b"\r\n\r\n", 1)[1], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        content, rest = content + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return content


def test_equal_codes_make_equal_requests_and_equal_answers(
    stand: Stand, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So neither request nor answer holds anything of the text that the codes do not."""
    codes = np.random.default_rng(0).integers(0, 8, (6, 4), dtype=np.uint8)
    monkeypatch.setattr(Bundle, "release", lambda _self, ids: np.resize(codes, (len(ids), 4)))
    exchanges = []
    for text in (PRIVATE, OTHER):
        wire.forget()
        with connect(stand, wire, tmp_path) as client:
            preview = client.prepare(text)
            ids = preview.ids[:6]
            list(client.send(type(preview)(**vars(preview) | {"ids": ids}), max_tokens=9, seed=5))
        answer = next(bytes(one) for one in wire.answered if b"event: done" in one)
        exchanges.append((wire.request, body(answer)))
    assert exchanges[0] == exchanges[1]


def test_the_tokens_are_those_of_an_offline_evaluation_of_the_captured_codes(
    stand: Stand, wire: Wire, tmp_path: Path
) -> None:
    sampling = Sampling(15, 0.9, 0.95, seed=3)
    for number in range(2):
        wire.forget()
        with connect(stand, wire, tmp_path, number) as client:
            wishes = {"max_tokens": 15, "temperature": 0.9, "top_p": 0.95, "seed": 3}
            found = [token for piece in client.send(client.prepare(PRIVATE), **wishes) for token in piece.ids]
        frame = decode_frame(wire.request.split(b"\r\n\r\n", 1)[1])
        assert found == offline(stand, frame.codes, sampling, number)


def guesses(stand: Stand, number: int, codes: Any) -> Any:
    """The Bayes-optimal attacker under a uniform prior."""
    likelihood = stand.split(number).method.log_likelihood(Release(torch.from_numpy(codes)[None]))
    return likelihood[0].argmax(dim=-1).numpy()


@pytest.mark.parametrize("number", [0, 1])
def test_the_best_attack_on_the_wire_does_no_better_than_on_the_codes(
    stand: Stand, wire: Wire, tmp_path: Path, number: int
) -> None:
    """An attacker of all captured bytes reads as many tokens as the mechanism's law says, within chance."""
    bundle = stand.bundle(number)
    generator = np.random.default_rng(7)
    secrets = generator.integers(1, bundle.manifest.vocab_size, (30, 60))
    right = 0
    with connect(stand, wire, tmp_path, number) as client:
        preview = client.prepare(OTHER)
        for ids in secrets:
            wire.forget()
            list(client.send(type(preview)(**vars(preview) | {"ids": ids}), max_tokens=1))
            payload = wire.request[-packed_bytes(60 * bundle.manifest.dim, bundle.manifest.bits) :]
            codes = unpack(payload, bundle.manifest.bits, (60, bundle.manifest.dim))
            right += int((guesses(stand, number, codes) == ids).sum())
    many = generator.integers(1, bundle.manifest.vocab_size, 20_000)
    law = float((guesses(stand, number, bundle.release(many)) == many).mean())
    chance = (law * (1 - law) * (1 / secrets.size + 1 / many.size)) ** 0.5
    assert abs(right / secrets.size - law) < 4 * chance
    assert law <= bundle.sampler.accountant().attack_bound(1 / (bundle.manifest.vocab_size - 1)) + 3 * chance
    assert law > 2 / bundle.manifest.vocab_size  # there is something to read, or the test would show nothing
