"""The HTTP side: every answer that a client can get, limits, metrics, logs, and the end."""

import asyncio
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from del_lightning.config import ServeConfig
from del_lightning.errors import RemoteError
from del_lightning.privacy import BudgetLedger
from del_lightning.serve.access import KeyLimits
from del_lightning.serve.base import BusyError, Delta, Engine, Failed, Finished, Generation, Request
from del_lightning.serve.client import Client, read_events
from del_lightning.serve.logs import log_json
from del_lightning.serve.sampling import Sampling
from tests.serve.stand import Stand, codes_of, frame_of, make_service, offline, serving

GREEDY = Sampling(12, temperature=0.0)
QUERY = {"max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def url(stand: Stand) -> Iterator[str]:
    """A server without keys, with tight limits."""
    config = ServeConfig(
        port=0,
        requests_per_minute=0,
        max_prompt_tokens=40,
        max_new_tokens=60,
        max_context=100,
        max_public_bytes=200,
        body_timeout=0.5,
    )
    with serving(make_service(stand, config)) as (url, _):
        yield url


def post(url: str, body: bytes, **query: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/generate", content=body, params=query or QUERY, timeout=30)


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    return [(name, json.loads(data)) for name, data in read_events(response.text.split("\n"))]


def refusal(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert set(error) == {"type", "message"}
    assert "\n" not in error["message"]
    return response.status_code, error["type"], error["message"]


def test_a_frame_is_answered_token_by_token(stand: Stand, url: str) -> None:
    codes = codes_of(stand, 5, 0)
    expected = offline(stand, codes, GREEDY)
    response = post(url, frame_of(stand, codes))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    *tokens, last = events(response)
    assert [name for name, _ in tokens] == ["token"] * len(tokens)
    assert [token for _, data in tokens for token in data["ids"]] == expected
    assert "".join(data["text"] for _, data in tokens) == stand.llm.tokenizer.decode(expected)
    finish = "length" if len(expected) == 12 else "stop"
    assert last == ("done", {"tokens": len(expected), "finish": finish})


def test_the_seed_decides_and_without_one_answers_differ(stand: Stand, url: str) -> None:
    body = frame_of(stand, codes_of(stand, 5, 0))
    answers = [post(url, body, max_tokens=20, temperature=3, top_p=1, seed=seed).text for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    free = {post(url, body, max_tokens=20, temperature=3, top_p=1).text for _ in range(3)}
    assert len(free) > 1


def test_without_a_wish_the_answer_is_as_long_as_it_may_be(stand: Stand, url: str) -> None:
    entries = events(post(url, frame_of(stand, codes_of(stand, 5, 0)), temperature=100, top_p=1, seed=2))
    assert entries[-1] == ("done", {"tokens": 60, "finish": "length"})


def test_both_settings_are_served(stand: Stand, url: str) -> None:
    for number in range(2):
        codes = codes_of(stand, 6, 3, number)
        ids = [
            i
            for name, data in events(post(url, frame_of(stand, codes, number)))
            if name == "token"
            for i in data["ids"]
        ]
        assert ids == offline(stand, codes, GREEDY, number)


def test_the_client_talks_to_it(stand: Stand, url: str, tmp_path: Any) -> None:
    ledger = BudgetLedger(tmp_path / "ledger.db", epsilon=1e9, delta=1e-5)
    for coding in (False, True):
        with Client(stand.bundle(), url, ledger=ledger, entropy_coding=coding) as client:
            assert isinstance("".join(client.ask("the cat sat", suffix=" on", max_tokens=5, seed=1)), str)
    assert ledger.spent("me").tokens > 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "at least 52 bytes, got 0 bytes"),
        (b"hello" * 20, "`magic` of the frame"),
    ],
)
def test_a_bad_frame_gets_400(url: str, body: bytes, message: str) -> None:
    status, kind, text = refusal(post(url, body))
    assert (status, kind) == (400, "bad_frame")
    assert message in text


def test_any_damaged_byte_gets_an_answer(stand: Stand, url: str) -> None:
    whole = frame_of(stand, codes_of(stand, 3, 0))
    with httpx.Client() as http:
        for place in range(len(whole)):
            damaged = whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]
            response = http.post(f"{url}/v1/generate", content=damaged, params=QUERY)
            assert response.status_code == 400, place
        assert http.post(f"{url}/v1/generate", content=whole, params=QUERY).status_code == 200


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"max_tokens": 0}, "`max_tokens`: Input should be greater than or equal to 1"),
        ({"max_tokens": 61}, "`max_tokens` must be at most 60, got 61"),
        ({"temperature": "nan"}, "`temperature`"),
        ({"temperature": -1}, "`temperature`"),
        ({"temperature": 1e-9}, "`temperature`: Value error, must be 0 or at least 0.001"),
        ({"top_p": 0}, "`top_p`"),
        ({"top_p": 1.01}, "`top_p`"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 1 << 63}, "`seed`"),
        ({"temprature": 1}, "`temprature`: Extra inputs are not permitted"),
    ],
)
def test_a_bad_wish_gets_400(stand: Stand, url: str, query: dict[str, Any], message: str) -> None:
    status, kind, text = refusal(post(url, frame_of(stand, codes_of(stand, 3, 0)), **query))
    assert (status, kind) == (400, "bad_request")
    assert message in text


def test_public_ids_beyond_the_vocabulary_get_400(stand: Stand, url: str) -> None:
    status, kind, _ = refusal(post(url, frame_of(stand, codes_of(stand, 3, 0), suffix=(99_999,))))
    assert (status, kind) == (400, "bad_frame")


def test_another_setting_gets_409_with_what_there_is(stand: Stand, url: str) -> None:
    codes = codes_of(stand, 3, 0)
    for change in ({"setting": "0" * 16}, {"model": "0" * 16}):
        status, kind, message = refusal(post(url, frame_of(stand, codes, **change)))
        assert (status, kind) == (409, "mismatch")
        assert all(stand.bundle(number).manifest.setting in message for number in range(2))
    status, _, message = refusal(post(url, frame_of(stand, codes, a_plus=(1 << 31) + 5)))
    assert status == 409
    assert "`a_plus` of the frame must be" in message


def test_wider_codes_of_another_setting_get_409(stand: Stand, url: str) -> None:
    """Also where the frame is longer than any that is served: a few bytes of it tell whose it is."""
    wide = np.zeros((3, 9), dtype=np.uint8)
    long = np.zeros((400, 900), dtype=np.uint8)
    for codes in (wide, long):
        body = frame_of(stand, codes, setting="0" * 16)
        for content in (body, iter([body[:20], body[20:70], body[70:]])):  # told in advance how long it is, and not
            status, kind, message = refusal(httpx.post(f"{url}/v1/generate", content=content, params=QUERY))
            assert (status, kind) == (409, "mismatch")
            assert stand.bundle().manifest.setting in message
    status, _, message = refusal(post(url, frame_of(stand, wide)))
    assert (status, message) == (409, "`dim` of the frame must be 4 for its setting, got 9")


def test_what_is_too_large_gets_413(stand: Stand, url: str) -> None:
    tokens = refusal(post(url, frame_of(stand, codes_of(stand, 41, 0))))
    assert tokens == (413, "too_large", "a prompt must have at most 40 private tokens, got 41")
    context = refusal(post(url, frame_of(stand, codes_of(stand, 40, 0), prefix=(1,) * 40), max_tokens=20))
    assert context == (413, "too_large", "prompt and max_tokens must together be at most 100 tokens, got 105")
    for body in (bytes(500), iter([bytes(200)] * 1000)):  # told in advance, and not
        assert refusal(httpx.post(f"{url}/v1/generate", content=body, params=QUERY))[:2] == (413, "too_large")


def test_a_body_that_does_not_come_gets_408(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nDELf")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_other_paths_and_methods(url: str) -> None:
    assert httpx.get(f"{url}/v1/generate").status_code in (404, 405)
    assert httpx.get(f"{url}/v1/nothing").status_code == 404
    assert httpx.get(f"{url}/bundle/../../server/adapter_model.safetensors").status_code == 404
    assert httpx.get(f"{url}/docs").status_code == 404  # FastAPI's page loads from elsewhere


def test_page_and_bundle_run_nothing_from_elsewhere(stand: Stand, url: str) -> None:
    for path in ("/", "/bundle/manifest.json"):
        response = httpx.get(url + path)
        assert response.status_code == 200
        assert response.headers["content-security-policy"] == "default-src 'self'"
    assert response.json()["setting"] == stand.bundle().manifest.setting


def test_info_tells_what_is_served(stand: Stand, url: str) -> None:
    info = httpx.get(f"{url}/v1/info").json()
    manifest = stand.bundle().manifest
    assert info["model"] == {"name": manifest.model_name, "fingerprint": manifest.model}
    assert [one["setting"] for one in info["settings"]] == [stand.bundle(n).manifest.setting for n in range(2)]
    first = info["settings"][0]
    assert all(
        first[name] == getattr(manifest, name) for name in ("bits", "dim", "mu", "a_plus", "statement", "prefix")
    )
    assert info["limits"]["prompt_tokens"] == 40
    assert info["engine"] == "transformers"
    assert info["key_needed"] is False


def metric(url: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_metrics_count_what_happened(stand: Stand, url: str) -> None:
    names = ['del_requests_total{status="200"}', 'del_requests_total{status="409"}', "del_private_tokens_total"]
    names += ["del_new_tokens_total", "del_frame_bytes_total", "del_first_token_seconds_count"]
    codes = codes_of(stand, 5, 0)
    body = frame_of(stand, codes)
    before = [metric(url, name) for name in names]
    post(url, body)
    post(url, frame_of(stand, codes, model="0" * 16))
    grown = [1, 1, 5, len(offline(stand, codes, GREEDY)), len(body), 1]
    wait_for(lambda: [metric(url, name) for name in names] == [b + g for b, g in zip(before, grown, strict=True)])
    assert metric(url, "del_running_requests") == metric(url, "del_waiting_requests") == 0


class Puppet(Engine):
    """An engine that says what it is told to."""

    name = "puppet"

    def __init__(self, *script: Any, pause: float = 0.0) -> None:
        self.script, self.pause, self.places = list(script), pause, 1000
        self.cancelled, self.healthy_now = 0, True

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def submit(self, request: Request) -> Generation:
        if not self.places:
            raise BusyError("full")
        generation = Generation(self.cancel)
        self.task = asyncio.get_running_loop().create_task(self.play(generation))
        return generation

    async def play(self, generation: Generation) -> None:
        for event in self.script:
            await asyncio.sleep(self.pause)
            generation.put(event)

    def cancel(self) -> None:
        self.cancelled += 1

    @property
    def healthy(self) -> bool:
        return self.healthy_now

    @property
    def load(self) -> tuple[int, int]:
        return 2, 7


def test_only_keys_open_and_each_has_its_rate(stand: Stand) -> None:
    config = ServeConfig(port=0, requests_per_minute=3)
    body = frame_of(stand, codes_of(stand, 3, 0))
    service = make_service(stand, config, ["alpha", "beta"], Puppet(Finished(0, "stop")))
    with serving(service) as (url, _):
        ask = lambda key: httpx.post(f"{url}/v1/generate", content=body, headers={"Authorization": key})  # noqa: E731
        for wrong in ("Bearer gamma", "alpha", "Basic alpha"):
            response = ask(wrong)
            assert refusal(response)[:2] == (401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        assert [ask("Bearer alpha").status_code for _ in range(4)] == [200, 200, 200, 429]
        limited = ask("Bearer alpha")
        assert refusal(limited)[1] == "rate_limit"
        assert 1 <= int(limited.headers["retry-after"]) <= 20
        assert ask("Bearer beta").status_code == 200
        assert httpx.get(f"{url}/v1/info").json()["key_needed"] is True
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_key_may_have_limits_of_its_own(stand: Stand, tmp_path: Any) -> None:
    config = ServeConfig(port=0, requests_per_minute=3, max_prompt_tokens=10)
    keys = {"small": KeyLimits(4, 1), "large": KeyLimits(1000, 0), "plain": KeyLimits()}
    with serving(make_service(stand, config, keys, Puppet(Finished(0, "stop")))) as (url, _):

        def ask(key: str, tokens: int) -> httpx.Response:
            body = frame_of(stand, codes_of(stand, tokens, 0))
            return httpx.post(f"{url}/v1/generate", content=body, headers={"Authorization": f"Bearer {key}"})

        assert refusal(ask("small", 5)) == (413, "too_large", "a prompt must have at most 4 private tokens, got 5")
        assert refusal(ask("small", 4)) == (429, "rate_limit", "at most 1 requests a minute are allowed for this key")
        assert [ask("large", 10).status_code for _ in range(5)] == [200] * 5
        assert ask("large", 11).status_code == 413
        assert [ask("plain", 10).status_code for _ in range(4)] == [200, 200, 200, 429]

        def limits(**headers: str) -> list[int]:
            told = httpx.get(f"{url}/v1/info", headers=headers).json()["limits"]
            return [told["prompt_tokens"], told["requests_per_minute"]]

        assert limits() == [10, 3]
        assert limits(Authorization="Bearer small") == [4, 1]
        assert limits(Authorization="Bearer large") == [10, 0]
        ledger = BudgetLedger(tmp_path / "ledger.db", epsilon=1e9, delta=1e-5)
        for key, message in (("small", "at most 4 private tokens"), ("wrong", "refused with status 401")):
            refused = pytest.raises(RemoteError, match=message)
            with Client(stand.bundle(), url, ledger=ledger, key=key) as client, refused:
                client.ask("the cat sat on a mat")
        assert ledger.spent("me").tokens == 0


def test_a_full_queue_gets_429_and_when_to_come_back(stand: Stand) -> None:
    engine = Puppet()
    engine.places = 0
    with serving(make_service(stand, engine=engine)) as (url, _):
        response = post(url, frame_of(stand, codes_of(stand, 3, 0)))
        assert refusal(response)[:2] == (429, "busy")
        assert 1 <= int(response.headers["retry-after"]) <= 60


def test_time_out_before_the_first_token_is_504(stand: Stand) -> None:
    engine = Puppet(Delta("late", [1]), pause=5)
    with serving(make_service(stand, ServeConfig(port=0, timeout=0.2), engine=engine)) as (url, _):
        assert refusal(post(url, frame_of(stand, codes_of(stand, 3, 0)))) == (
            504,
            "timeout",
            "no token within 0.2 seconds",
        )
        assert engine.cancelled == 1


def test_time_out_later_is_an_event(stand: Stand) -> None:
    engine = Puppet(*[Delta("x", [1])] * 100, pause=0.05)
    with serving(make_service(stand, ServeConfig(port=0, timeout=0.4), engine=engine)) as (url, _):
        *tokens, last = events(post(url, frame_of(stand, codes_of(stand, 3, 0))))
        assert tokens
        assert last == ("error", {"message": "the request took longer than 0.4 seconds"})
        wait_for(lambda: engine.cancelled == 1)


def test_engine_failures_are_told(stand: Stand) -> None:
    body = frame_of(stand, codes_of(stand, 3, 0))
    engine = Puppet(Failed("it broke"))
    with serving(make_service(stand, engine=engine)) as (url, _):
        assert refusal(post(url, body)) == (502, "engine", "it broke")
        engine.script = [Delta("x", [1]), Failed("it broke")]
        assert events(post(url, body))[-1] == ("error", {"message": "it broke"})
        engine.healthy_now = False
        assert refusal(post(url, body))[:2] == (503, "unavailable")
        assert httpx.get(f"{url}/health").json() == {"status": "failed"}


@pytest.mark.parametrize("first", [True, False])
def test_who_hangs_up_is_noticed(stand: Stand, first: bool) -> None:
    """Before the first token and in the middle of the stream."""
    engine = Puppet(*[Delta("x", [1])] * 1000, pause=0.02 if first else 0.4)
    service = make_service(stand, engine=engine)
    with serving(service) as (url, _):
        with httpx.Client(timeout=httpx.Timeout(5, read=5 if first else 0.15)) as http:
            try:
                with http.stream(
                    "POST", f"{url}/v1/generate", content=frame_of(stand, codes_of(stand, 3, 0))
                ) as response:
                    next(response.iter_lines())
            except httpx.ReadTimeout:
                assert not first
        wait_for(lambda: service.open == 0)
        assert engine.cancelled >= 1
        assert metric(url, f'del_requests_total{{status="{200 if first else 499}"}}') == 1


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_draining_finishes_what_was_accepted(stand: Stand) -> None:
    """The first signal: no new request, but every token of the old ones; then the server is gone."""
    engine = Puppet(*[Delta("x", [1])] * 20, Finished(20, "length"), pause=0.03)
    service = make_service(stand, engine=engine)
    body = frame_of(stand, codes_of(stand, 3, 0))
    with serving(service) as (url, server), httpx.Client(timeout=10) as http:
        with http.stream("POST", f"{url}/v1/generate", content=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.handle_exit(15, None)
            refused = post(url, body)
            assert refusal(refused)[:2] == (503, "unavailable")
            assert "retry-after" in refused.headers
            assert httpx.get(f"{url}/health").json() == {"status": "draining"}
            rest = list(lines)
        assert sum(line.startswith("event: token") for line in rest) == 19
        assert any(line.startswith("event: done") for line in rest)
        wait_for(lambda: server.should_exit)


def test_draining_has_an_end(stand: Stand) -> None:
    engine = Puppet(*[Delta("x", [1])] * 1000, pause=0.05)
    service = make_service(stand, ServeConfig(port=0, drain_timeout=0.3), engine=engine)
    body = frame_of(stand, codes_of(stand, 3, 0))
    with serving(service) as (url, server), httpx.stream("POST", f"{url}/v1/generate", content=body) as response:
        next(response.iter_lines())
        server.handle_exit(15, None)
        wait_for(lambda: server.should_exit, 3)


def test_a_second_signal_stops_at_once(stand: Stand) -> None:
    service = make_service(stand, engine=Puppet())
    service.open = 1
    with serving(service) as (_, server):
        server.handle_exit(15, None)
        time.sleep(0.3)
        assert not server.should_exit
        server.handle_exit(15, None)
        assert server.should_exit
        server._captured_signals.clear()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    names = ("del_lightning", "uvicorn")
    before = [(logging.getLogger(name).handlers, logging.getLogger(name).level) for name in names]
    stream = io.StringIO()
    log_json(stream)
    yield stream
    for name, (handlers, level) in zip(names, before, strict=True):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, True
        logger.setLevel(level)


def test_logs_tell_of_every_request_and_of_no_payload(stand: Stand, log: io.StringIO) -> None:
    codes = codes_of(stand, 30, 5)
    good = frame_of(stand, codes, suffix="a public suffix")
    service = make_service(stand, keys=["alpha-key"])
    headers = {"Authorization": "Bearer alpha-key"}
    with serving(service) as (url, _):
        ask = lambda body: httpx.post(  # noqa: E731
            f"{url}/v1/generate", content=body, headers=headers, params={"max_tokens": 40, "seed": 1}
        )
        answer = ask(good)
        ask(good[:-3])
        ask(frame_of(stand, codes, model="0" * 16))
        service.engine.submit = None  # whatever goes wrong inside
        with pytest.raises(httpx.HTTPError):
            assert ask(good).raise_for_status()
        httpx.post(f"{url}/v1/generate", content=good)
    text = log.getvalue()
    entries = [json.loads(line) for line in text.splitlines()]
    requests = [entry for entry in entries if entry["event"] == "request"]
    assert [entry["status"] for entry in requests] == [200, 400, 409, 500, 401]
    assert requests[0]["private_tokens"] == 30
    assert requests[0]["id"] == answer.headers["x-request-id"]
    assert {"finish", "new_tokens", "seconds", "first_token_seconds", "frame_bytes", "key", "setting"} <= set(
        requests[0]
    )
    assert any(entry.get("error") == "TypeError" for entry in entries)  # the failure is there, without its message
    ids = [i for name, data in events(answer) if name == "token" for i in data["ids"]]
    spoken = "".join(data["text"] for name, data in events(answer) if name == "token")
    payload = good[52:]
    for secret in (
        "alpha-key",
        "a public suffix",
        payload.hex()[-40:],
        str(payload)[2:22],
        str(codes[0].tolist())[1:-1],
        str(ids[:4])[1:-1],
        json.dumps(spoken)[1:13],
        spoken[:8],
    ):
        assert secret not in text


def test_many_clients_at_once_each_get_their_own(stand: Stand) -> None:
    config = ServeConfig(port=0, requests_per_minute=0, rows=4, queue=100)
    jobs = [(n, codes_of(stand, 2 + n % 9, n, n % 2), Sampling(5 + n % 17, 1.0, 0.95, seed=n)) for n in range(24)]
    expected = [offline(stand, codes, sampling, n % 2) for n, codes, sampling in jobs]
    found: dict[int, list[int]] = {}

    def run(mine: list[Any], url: str) -> None:
        with httpx.Client(timeout=30) as http:
            for n, codes, sampling in mine:
                query = {"max_tokens": sampling.max_tokens, "temperature": 1.0, "top_p": 0.95, "seed": n}
                answer = http.post(f"{url}/v1/generate", content=frame_of(stand, codes, n % 2), params=query)
                found[n] = [i for name, data in events(answer) if name == "token" for i in data["ids"]]

    with serving(make_service(stand, config)) as (url, _):
        threads = [threading.Thread(target=run, args=(jobs[start::8], url)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[n] for n in range(24)] == expected
    assert np.unique([len(tokens) for tokens in expected]).size > 3
