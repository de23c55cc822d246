"""The gateway against a local fake that speaks the protocol of vLLM's completions with prompt embeddings."""

import asyncio
import base64
import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from del_lightning.serve import vllm
from del_lightning.serve.base import BusyError, Delta, Event, Failed, Finished
from del_lightning.serve.logs import JsonFormatter
from del_lightning.serve.sampling import Sampling
from del_lightning.serve.text import TextStream
from del_lightning.serve.vllm import VllmEngine, encode_embeddings
from tests.serve.stand import Stand, codes_of, collect, make_service, offline, request_of, serving, with_engine


@dataclass
class Fake:
    """A vLLM server: what it does, what it was asked, and its address.

    Its completions come from a real model run on the embeddings that it was sent, a few tokens a chunk.
    """

    stand: Stand
    status: int = 200
    chunks: list[str] | None = None
    pause: float = 0.0
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    broken_pipes: int = 0
    health: int = 200
    probes: int = 0

    def load(self, text: str) -> Tensor:
        """What vLLM does with ``prompt_embeds``, and what it demands of it."""
        tensor = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True, map_location="cpu")
        assert isinstance(tensor, Tensor)
        assert tensor.layout == torch.strided
        assert tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        assert tensor.shape[1:] == (self.stand.llm.hidden_size,)
        return tensor

    def complete(self, body: dict[str, Any]) -> list[str]:
        llm = self.stand.llm
        embeddings = self.load(body["prompt_embeds"])[None]
        mask = torch.ones(1, embeddings.shape[1], dtype=torch.bool)
        ids = llm.generate(embeddings, mask, max_new_tokens=body["max_tokens"])[0]
        stopped = len(ids) < body["max_tokens"]
        stream = TextStream(llm.tokenizer)  # as in vLLM, a character comes when it is whole
        shown = [*ids, body["stop_token_ids"][0]] if stopped else ids  # vLLM's ids include the one that stopped it
        chunks = []
        for start in range(0, len(shown), 3):
            part = shown[start : start + 3]
            last = start + 3 >= len(shown)
            choice = {
                "index": 0,
                "text": "".join(map(stream.push, part)) + (stream.finish() if last else ""),
                "token_ids": part,
                "finish_reason": ("stop" if stopped else "length") if last else None,
                "stop_reason": None,
            }
            chunks.append(json.dumps({"id": "cmpl-1", "object": "text_completion", "choices": [choice]}))
        return [*chunks, "[DONE]"]


@contextmanager
def fake_vllm(fake: Fake) -> Iterator[Fake]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health"
            fake.probes += 1
            self.send_response(fake.health)
            self.end_headers()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.bodies.append(body)
            fake.paths.append(self.path)
            fake.keys.append(self.headers["Authorization"])
            self.send_response(fake.status)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.end_headers()
            try:
                for chunk in fake.complete(body) if fake.chunks is None else fake.chunks:
                    self.wfile.write(f"data: {chunk}\n\n".encode())
                    time.sleep(fake.pause)
            except (BrokenPipeError, ConnectionResetError):
                fake.broken_pipes += 1

        def log_message(self, format: str, *args: Any) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def fake(stand: Stand) -> Iterator[Fake]:
    with fake_vllm(Fake(stand)) as fake:
        yield fake


def make(fake: Fake, rows: int = 4, queue: int = 4, key: str | None = None) -> VllmEngine:
    return VllmEngine(fake.url, "org/model", key, rows=rows, queue=queue)


GREEDY = Sampling(10, temperature=0.0)


def test_prompt_embeddings_lead_to_the_offline_tokens(stand: Stand, fake: Fake) -> None:
    """Soft prompt, public prefix and decoded codes arrive in full: greedy completions are the same."""
    engine, exports = make(fake), stand.exports()
    jobs = [(number % 2, codes_of(stand, 3 + number, number, number % 2)) for number in range(6)]

    async def work() -> list[Any]:
        requests = [request_of(stand, codes, GREEDY, exports, number) for number, codes in jobs]
        return await asyncio.gather(*[collect(engine.submit(request)) for request in requests])

    for (number, codes), (ids, text, last) in zip(jobs, with_engine(engine, work), strict=True):
        expected = offline(stand, codes, GREEDY, number)
        assert ids == expected
        assert text == stand.llm.tokenizer.decode(expected)
        assert last == Finished(len(expected), "length" if len(expected) == 10 else "stop")


def test_the_request_is_what_vllm_documents(stand: Stand, fake: Fake) -> None:
    engine, exports = make(fake, key="upstream"), stand.exports()
    sampling = Sampling(3, 0.5, 0.8, seed=7)
    with_engine(engine, lambda: collect(engine.submit(request_of(stand, codes_of(stand, 4, 0), sampling, exports))))
    (body,) = fake.bodies
    embeddings = fake.load(body.pop("prompt_embeds"))
    manifest = stand.bundle().manifest
    assert embeddings.shape[0] == 5 + len(manifest.prefix_ids) + 4
    assert torch.equal(embeddings[:5], exports[manifest.setting].soft_prompt.embeddings)
    assert body == {
        "model": "org/model",
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "seed": 7,
        "stop_token_ids": [0],
        "stream": True,
        "return_token_ids": True,
    }
    assert fake.paths == ["/v1/completions"]
    assert fake.keys == ["Bearer upstream"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_survive_the_journey(fake: Fake, dtype: torch.dtype) -> None:
    rows = torch.randn(60, fake.stand.llm.hidden_size).to(dtype)
    sent = encode_embeddings(rows[10:14])
    assert torch.equal(fake.load(sent), rows[10:14])
    assert len(base64.b64decode(sent)) < 4000  # the view's rows, not all of its storage


DELTA = json.dumps({"choices": [{"text": "a", "token_ids": [5], "finish_reason": None}]})
BAD = {
    "breaks off": ([DELTA], "the engine behind this server broke off"),
    "no json": ([DELTA, "{"], "sent what is no completion"),
    "no choices": ([json.dumps({"choices": []})], "sent what is no completion"),
    "error": ([DELTA, json.dumps({"error": {"message": "the prompt was ..."}})], "reported an error"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_vllm_should_not_say_is_a_clear_failure(stand: Stand, fake: Fake, case: str) -> None:
    fake.chunks, message = BAD[case]
    assert message in failure(stand, fake).message


def test_a_refusal_of_vllm_is_a_failure(stand: Stand, fake: Fake) -> None:
    fake.status, fake.chunks = 400, ["the prompt was ..."]
    assert failure(stand, fake) == Failed("the engine behind this server answered with status 400")


def test_no_vllm_is_a_failure(stand: Stand) -> None:
    assert failure(stand, Fake(stand, url="http://127.0.0.1:9")) == Failed(
        "the engine behind this server cannot be reached"
    )


def test_whatever_goes_wrong_inside_ends_the_stream(stand: Stand, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that httpx refuses, and a body that cannot be built; logged without what the request held."""
    broken = Failed("the server failed while it talked to its engine")
    stream, logger = io.StringIO(), logging.getLogger("del_lightning.serve.vllm")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    monkeypatch.setattr(logger, "handlers", [handler])
    assert failure(stand, Fake(stand, url="http://host:port")) == broken
    monkeypatch.setattr(vllm, "encode_embeddings", lambda _: {}["a private payload"])
    assert failure(stand, fake) == broken
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [entry["error"] for entry in entries] == ["InvalidURL", "KeyError"]
    assert {entry["event"] for entry in entries} == {"a request to vLLM failed"}
    assert "private" not in stream.getvalue()


def test_health_of_the_gateway_is_that_of_vllm(stand: Stand, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(stand, engine=make(fake))
    with serving(service) as (url, _):
        health = lambda: httpx.get(f"{url}/health")  # noqa: E731
        assert [health().status_code for _ in range(3)] == [200] * 3
        assert fake.probes == 1  # kept for a while
        monkeypatch.setattr(vllm, "_PROBE_KEPT", 0.0)
        fake.health = 404
        assert health().status_code == 200
        fake.health = 503
        assert (health().status_code, health().json()) == (503, {"status": "unreachable"})
    with serving(make_service(stand, engine=make(Fake(stand, url="http://127.0.0.1:9")))) as (url, _):
        assert health().json() == {"status": "unreachable"}


def failure(stand: Stand, fake: Fake) -> Failed:
    engine, exports = make(fake), stand.exports()
    request = request_of(stand, codes_of(stand, 3, 0), GREEDY, exports)
    _, _, last = with_engine(engine, lambda: collect(engine.submit(request)))
    assert isinstance(last, Failed)
    return last


def test_older_vllm_sends_no_ids(stand: Stand, fake: Fake) -> None:
    fake.chunks = [json.dumps({"choices": [{"text": "ab", "finish_reason": "length"}]}), "[DONE]"]
    engine, exports = make(fake), stand.exports()
    request = request_of(stand, codes_of(stand, 3, 0), GREEDY, exports)
    assert with_engine(engine, lambda: collect(engine.submit(request))) == ([], "ab", Finished(0, "length"))


def test_load_is_bounded_and_who_leaves_is_cut_off(stand: Stand, fake: Fake) -> None:
    fake.chunks, fake.pause = [DELTA] * 200, 0.02
    engine, exports = make(fake, rows=2, queue=1), stand.exports()

    async def work() -> tuple[int, list[Event]]:
        submit = lambda: engine.submit(request_of(stand, codes_of(stand, 3, 0), GREEDY, exports))  # noqa: E731
        taken = [submit() for _ in range(3)]
        firsts = [await one.next() for one in taken[:2]]
        assert engine.load == (2, 1)
        with pytest.raises(BusyError):
            submit()
        taken[0].cancel()
        assert isinstance(await taken[2].next(), Delta)  # the third one takes its place
        return len(fake.bodies), firsts

    asked, firsts = with_engine(engine, work)
    assert asked == 3
    assert firsts == [Delta("a", [5])] * 2
    assert engine.load == (0, 0)
    assert not engine.healthy
