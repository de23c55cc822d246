"""What the tests of the client share: a small bundle, and a server that answers from a script."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from del_lightning.privacy import SecureSampler
from del_lightning.serve.bundle import PRIOR, THRESHOLDS, TOKENIZER, Manifest, file_hash, quantize_prior
from del_lightning.wire import Frame, decode_frame

DIM = 6


def make_bundle(folder: Path, tokenizer: Tokenizer, mu: float = 4.0, bits: int = 4, dim: int = DIM) -> Manifest:
    """Write a bundle with random thresholds; the same for the same arguments."""
    folder.mkdir(parents=True)
    size = tokenizer.get_vocab_size()
    generator = np.random.default_rng(0)
    sampler = SecureSampler(bits, 1.0, mu, dim)
    tokenizer.save(str(folder / TOKENIZER))
    np.save(folder / THRESHOLDS, sampler.thresholds(generator.uniform(-1.5, 1.5, (size, dim))))
    np.save(folder / PRIOR, quantize_prior(generator.integers(1, 1000, size).astype(np.float64)))
    manifest = Manifest(
        model="0011223344556677",
        model_name="tiny",
        setting="8899aabbccddeeff",
        label="DEL, ASR 0.1",
        bits=bits,
        dim=dim,
        bound=1.0,
        mu=mu,
        a_plus=sampler.threshold,
        amplitude=sampler.amplitude,
        vocab_size=size,
        prefix="go on: ",
        prefix_ids=(5, 6, 7),
        delta=1e-5,
        budget_tokens=100,
        budget_epsilon=sampler.accountant(100).epsilon(1e-5),
        statement="made up",
        files={name: str(file_hash(folder / name)) for name in (TOKENIZER, THRESHOLDS, PRIOR)},
    )
    manifest.save(folder)
    return manifest


def event(name: str, **content: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n".encode()


ANSWER = (
    b": a comment keeps the connection open\n\n"
    + event("token", text="Once", ids=[1])
    + event("token", text=" upon", ids=[2, 3])
    + event("token", text="", ids=[4])
    + event("done", tokens=4, finish="stop")
)
INFO: dict[str, Any] = {
    "settings": [{"setting": "8899aabbccddeeff", "virtual_tokens": 5}],
    "limits": {"prompt_tokens": 40, "new_tokens": 60, "public_bytes": 100, "context": 120},
    "key_needed": False,
}
"""What ``/v1/info`` of a server of the bundle says."""

Reply = tuple[int, dict[str, str], bytes]
OK: Reply = (200, {"Content-Type": "text/event-stream"}, ANSWER)


def refusal(status: int, message: str, **headers: str) -> Reply:
    body = json.dumps({"error": {"type": "made_up", "message": message}}).encode()
    return status, {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}, body


@dataclass
class Script:
    """What the server says, one reply a request (the last one for ever), and what it was sent."""

    replies: list[Reply] = field(default_factory=lambda: [OK])
    info: Any = field(default_factory=lambda: deepcopy(INFO))
    url: str = ""
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def next_reply(self) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    @property
    def frames(self) -> list[Frame]:
        return [decode_frame(body) for body in self.bodies]


@contextmanager
def scripted_server() -> Iterator[Script]:
    """A server on a free port of this machine."""
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply((200, {}, json.dumps(script.info).encode()))

        def do_POST(self) -> None:
            script.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            script.keys.append(self.headers["Authorization"])
            self._reply(script.next_reply())

        def _reply(self, reply: Reply) -> None:
            script.paths.append(self.path)
            self.send_response(reply[0])
            for name, value in reply[1].items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply[2])

        def log_message(self, format: str, *args: Any) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
