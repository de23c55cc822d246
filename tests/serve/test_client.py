import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from del_lightning.errors import BudgetError, ConfigError, RemoteError
from del_lightning.privacy import BudgetLedger
from del_lightning.serve import cli
from del_lightning.serve.bundle import Bundle
from del_lightning.serve.client import Client, Piece, read_events, read_pieces
from tests.serve.factory import ANSWER, INFO, OK, Reply, Script, event, make_bundle, refusal, scripted_server

STRANGER = "must answer /v1/info as a DEL-Lightning server does"
ROOT = Path(__file__).parents[2]
TEXT = "the cat sat on a mat"


def limited(**limits: int) -> dict[str, Any]:
    return INFO | {"limits": INFO["limits"] | limits}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "client"
    make_bundle(folder, tiny_tokenizer.backend_tokenizer)
    return folder


@pytest.fixture
def server() -> Iterator[Script]:
    with scripted_server() as script:
        yield script


@pytest.fixture
def ledger(tmp_path: Path) -> BudgetLedger:
    return BudgetLedger(tmp_path / "ledger.db", epsilon=1e6, delta=1e-5)


@pytest.fixture
def client(bundle: Path, server: Script, ledger: BudgetLedger) -> Iterator[Client]:
    with Client(bundle, server.url, ledger=ledger, key="secret") as client:
        yield client


def test_an_answer_streams_in(client: Client, server: Script) -> None:
    assert "".join(client.ask(TEXT, suffix=" and", max_tokens=7, temperature=0.5, top_p=0.8, seed=3)) == "Once upon"
    (frame,) = server.frames
    manifest = client.bundle.manifest
    assert (frame.model, frame.setting, frame.a_plus) == (manifest.model, manifest.setting, manifest.a_plus)
    assert (frame.prefix, frame.suffix) == (manifest.prefix_ids, " and")
    assert frame.codes.shape == (len(client.bundle.encode(TEXT)[0]), manifest.dim)
    assert server.paths[-1] == "/v1/generate?max_tokens=7&temperature=0.5&top_p=0.8&seed=3"
    assert server.keys == ["Bearer secret"]
    pieces = list(client.send(client.prepare(TEXT)))
    assert pieces == [Piece("Once", (1,)), Piece(" upon", (2, 3)), Piece("", (4,))]
    assert "seed" not in server.paths[-1]


def test_preview_says_what_it_costs_and_sends_nothing(client: Client, server: Script, ledger: BudgetLedger) -> None:
    before = client.bundle.sampler.accountant(5)
    ledger.spend("me", before)
    preview = client.prepare(TEXT, suffix="!")
    tokens = preview.tokens
    assert preview.pieces == tuple(client.bundle.encode(TEXT)[1])
    assert preview.epsilon == client.bundle.sampler.accountant(tokens).epsilon(1e-5)
    assert (preview.total.tokens, preview.total.epsilon) == (
        tokens + 5,
        client.bundle.sampler.accountant(tokens + 5).epsilon(1e-5),
    )
    assert preview.affordable
    assert preview.recovered == (preview.guesses == preview.ids).sum()
    assert (server.paths, ledger.spent("me").tokens) == ([], 5)
    list(client.send(preview))
    assert len(server.bodies[0]) == preview.frame_bytes
    assert ledger.spent("me") == preview.total


def test_what_is_sent_was_never_looked_at(client: Client, server: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    attacked = []
    invert = client.bundle.invert
    monkeypatch.setattr(client.bundle, "invert", lambda codes: attacked.append(codes) or invert(codes))
    preview = client.prepare(TEXT)
    list(client.send(preview))
    list(client.send(preview))
    first, second = (frame.codes for frame in server.frames)
    assert len(attacked) == 1
    assert not np.array_equal(attacked[0], first)
    assert not np.array_equal(first, second)


def test_a_release_beyond_the_budget_never_leaves(bundle: Path, server: Script, tmp_path: Path) -> None:
    with Client(bundle, server.url, ledger=BudgetLedger(tmp_path / "l.db", epsilon=0.5, delta=1e-5)) as client:
        preview = client.prepare(TEXT)
        assert not preview.affordable
        with pytest.raises(BudgetError):
            client.send(preview)  # at once, not when the first piece is asked for
        with pytest.raises(BudgetError):
            client.ask(TEXT)
    assert set(server.paths) == {"/v1/info"}
    assert server.bodies == []


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (
            INFO | {"settings": [{"setting": 16 * x, "virtual_tokens": 5} for x in "ab"]},
            r"it has a{16}, b{16}",
        ),
        (limited(prompt_tokens=2), "must have at most 2 private tokens"),
        (limited(public_bytes=14), r"must have at most 14 bytes of public text for http\S+, got 15"),
        (limited(new_tokens=6), r"must have at most 6 new tokens \(`max_tokens`\) for http\S+, got 7"),
        (limited(context=9), "must have at most 9 tokens, soft prompt and `max_tokens` included, for"),
        (INFO | {"settings": 3}, STRANGER),
        (INFO | {"settings": ["8899aabbccddeeff"]}, STRANGER),
        (INFO | {"settings": [{"setting": "8899aabbccddeeff", "virtual_tokens": None}]}, STRANGER),
        (INFO | {"limits": {"prompt_tokens": 9}}, STRANGER),
        ([], STRANGER),
    ],
)
def test_a_server_that_does_not_fit_costs_nothing(
    client: Client, server: Script, ledger: BudgetLedger, info: Any, message: str
) -> None:
    server.info = info
    with pytest.raises(RemoteError, match=message):
        client.ask(TEXT, suffix=" on", max_tokens=7)
    assert (server.bodies, ledger.spent("me").tokens) == ([], 0)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"max_tokens": 0}, "`max_tokens` must be at least 1, got 0"),
        ({"temperature": -1.0}, "`temperature` must be 0 or between 0.001 and 100, got -1.0"),
        ({"temperature": 1e-4}, "`temperature` must be 0 or between"),
        ({"temperature": 101}, "`temperature` must be 0 or between"),
        ({"temperature": float("nan")}, "`temperature` must be 0 or between"),
        ({"top_p": 0}, r"`top_p` must be in \(0, 1\], got 0"),
        ({"top_p": float("nan")}, "`top_p` must be"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"seed": 1 << 63}, "`seed` must be at least 0"),
        ({"suffix": (1, 300)}, "`suffix` must hold token ids below 300, got 300"),
    ],
)
def test_an_impossible_wish_costs_nothing(
    client: Client, server: Script, ledger: BudgetLedger, wish: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        client.ask(TEXT, **wish)
    assert (server.bodies, ledger.spent("me").tokens) == ([], 0)


def test_a_missing_key_costs_nothing(bundle: Path, server: Script, ledger: BudgetLedger) -> None:
    server.info["key_needed"] = True
    with Client(bundle, server.url, ledger=ledger) as client, pytest.raises(ConfigError, match="`key` must be an API"):
        client.ask(TEXT)
    assert (server.bodies, ledger.spent("me").tokens) == ([], 0)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"new_tokens": 500, "context": 1000}, 200), ({"new_tokens": 60}, 60), ({"new_tokens": 60, "context": 30}, None)],
)
def test_an_answer_is_as_long_as_it_may_be(
    client: Client, server: Script, limits: dict[str, int], expected: int | None
) -> None:
    server.info = limited(**limits)
    preview = client.prepare(TEXT)
    list(client.send(preview))
    left = 30 - 5 - 3 - preview.tokens
    assert f"max_tokens={expected or left}&" in server.paths[-1]


def test_a_server_that_is_not_there_costs_nothing(bundle: Path, ledger: BudgetLedger) -> None:
    with Client(bundle, "http://127.0.0.1:9", ledger=ledger) as client, pytest.raises(RemoteError, match="be reached"):
        client.ask(TEXT)
    with (
        Client(bundle, "http://127.0.0.1:port", ledger=ledger) as client,
        pytest.raises(ConfigError, match="`url` must be"),
    ):
        client.ask(TEXT)
    with Client(bundle, "nonsense", ledger=ledger) as client, pytest.raises(RemoteError, match="be reached"):
        client.ask(TEXT)
    assert ledger.spent("me").tokens == 0


def test_a_busy_server_gets_the_same_codes_again(client: Client, server: Script, ledger: BudgetLedger) -> None:
    server.replies = [refusal(429, "busy", Retry_After="0.2"), refusal(503, "stopping", Retry_After="0"), OK]
    start = time.monotonic()
    assert "".join(client.ask(TEXT)) == "Once upon"
    assert time.monotonic() - start >= 0.3
    first, second, third = server.bodies
    assert first == second == third
    assert ledger.spent("me").tokens == server.frames[0].tokens


def test_a_server_busy_for_too_long_is_given_up(bundle: Path, server: Script, ledger: BudgetLedger) -> None:
    server.replies = [refusal(429, "too many requests,\nwait", Retry_After="100")]
    refused = pytest.raises(RemoteError, match="refused with status 429: too many requests, wait")
    with Client(bundle, server.url, ledger=ledger, patience=5.0) as client, refused:
        list(client.ask(TEXT))
    assert len(server.bodies) == 1


TOKEN = event("token", text="a", ids=[1])
BROKEN = {
    "refused with status 401: no key": refusal(401, "no key"),
    "refused with status 409: other setting": refusal(409, "other setting"),
    "refused with status 500: <html>oops": (500, {}, b"<html>oops"),
    "the server failed: engine died": (200, {}, TOKEN + event("error", message="engine died")),
    "must end with `done`, it stopped before": (200, {}, TOKEN),
    "event 'token' must be JSON of a known form, got '{'": (200, {}, b"event: token\ndata: {\n\n"),
    "event 'token' must be JSON of a known form, got 'null'": (200, {}, b"event: token\ndata: null\n\n"),
    "broke off: ": (200, {"Content-Length": "9999"}, TOKEN),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_goes_wrong_is_said_in_one_line(client: Client, server: Script, message: str) -> None:
    server.replies = [BROKEN[message]]
    with pytest.raises(RemoteError) as caught:
        list(client.ask(TEXT))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_events_are_read_as_the_standard_says() -> None:
    lines = ["data: a", "data:b", "", "", ": comment", "event:x", "id: 3", "data:  c", "", "event: lost", "", "data: d"]
    assert list(read_events(lines)) == [("message", "a\nb"), ("x", " c")]
    assert [piece.text for piece in read_pieces(ANSWER.decode().splitlines())] == ["Once", " upon", ""]


def test_entropy_coding_makes_requests_shorter(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, server: Script, ledger: BudgetLedger
) -> None:
    make_bundle(tmp_path / "client", tiny_tokenizer.backend_tokenizer, mu=1.0, bits=8)
    server.info = limited(prompt_tokens=1000, context=2000)
    sizes = []
    for coding in (False, True):
        with Client(tmp_path / "client", server.url, ledger=ledger, entropy_coding=coding) as client:
            list(client.ask(" ".join([TEXT] * 5)))
            sizes.append(len(server.bodies[-1]))
    assert sizes[1] < 0.9 * sizes[0]
    assert all(frame.tokens == server.frames[0].tokens for frame in server.frames)


def test_a_connection_of_ones_own(bundle: Path, ledger: BudgetLedger) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, content=ANSWER)
        return httpx.Response(200, json=INFO)

    http = httpx.Client(transport=httpx.MockTransport(answer))
    with Client(bundle, "https://example.org/", ledger=ledger, http=http) as client:
        assert "".join(client.ask(TEXT)) == "Once upon"
    assert http.is_closed


HEAVY = ("torch", "transformers", "lightning", "scipy", "pydantic", "hydra", "omegaconf", "constriction", "safetensors")


def run_cli(*arguments: str, tmp_path: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process in which nothing can be imported that a device need not have."""
    code = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY}))\nfrom del_lightning.serve.cli import main\nmain()"
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path), "DEL_LIGHTNING_KEY": "secret", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env=environment, cwd=tmp_path, input=given, capture_output=True, text=True, timeout=60, check=False
    )


def test_command_line_needs_no_heavy_package(bundle: Path, server: Script, tmp_path: Path) -> None:
    done = run_cli("ask", "--bundle", str(bundle), "--url", server.url, "--yes", TEXT, tmp_path=tmp_path)
    assert (done.returncode, done.stdout) == (0, "Once upon\n")
    shown = dict(line.split(maxsplit=1) for line in done.stderr.splitlines())
    (frame,) = server.frames
    assert shown["tokens"].startswith(f"{frame.tokens}: the|")
    assert shown["request"].startswith(f"{len(server.bodies[0])} bytes")
    assert f"{frame.tokens} tokens in total epsilon" in shown["privacy"]
    assert f"of {frame.tokens} tokens in a rehearsal" in shown["attack"]
    assert "the best attack on single tokens" in shown["attack"]
    assert cli.CONTEXT in done.stderr
    assert "strongest" not in done.stderr
    assert server.keys == ["Bearer secret"]
    assert (tmp_path / "del-lightning" / "ledger.db").exists()


def test_command_line_does_not_send_unasked(bundle: Path, server: Script, tmp_path: Path) -> None:
    done = run_cli("ask", "--bundle", str(bundle), "--url", server.url, "-", tmp_path=tmp_path, given=TEXT)
    assert (done.returncode, done.stdout, server.bodies) == (cli.DECLINED, "", [])
    assert "add --yes" in done.stderr
    assert done.stderr.endswith("Nothing was sent.\n")


def test_command_line_says_what_is_wrong_in_one_line(bundle: Path, server: Script, tmp_path: Path) -> None:
    done = run_cli("ask", "--url", server.url, "--yes", TEXT, tmp_path=tmp_path)
    assert done.returncode == cli.USER_ERROR
    assert done.stderr == "error: . must be a folder that stage=export wrote, found no manifest.json\n"
    budget = ("--bundle", str(bundle), "--budget", "0.1", "--ledger", str(tmp_path / "a" / "l.db"))
    done = run_cli("ask", *budget, "--url", server.url, "--yes", TEXT, tmp_path=tmp_path)
    assert done.returncode == cli.USER_ERROR
    assert done.stderr.splitlines()[-1].startswith("error: the privacy budget of epsilon 0.1")
    assert server.bodies == []


@pytest.mark.parametrize(("answer", "sent"), [("y\n", 1), ("Yes\n", 1), ("\n", 0), ("n\n", 0), ("", 0)])
def test_confirmation_on_a_terminal(
    bundle: Path, server: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, sent: int
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    monkeypatch.setattr(sys, "stdin", Terminal())
    options = ["--bundle", str(bundle), "--url", server.url, "--ledger", str(tmp_path / "l.db")]
    monkeypatch.setattr(sys, "argv", ["del-lightning-client", "ask", *options, TEXT])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == (0 if sent else cli.DECLINED)
    assert len(server.bodies) == sent


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--bundle", "file"], "error: file must be a folder that stage=export wrote, found no manifest.json"),
        (["--ledger", "folder"], "error: `ledger` must be a file that SQLite can open, got 'folder': unable to open"),
        (["--ledger", "file"], "error: `ledger` must be a file that SQLite can open, got 'file': file is not a data"),
        (["--ledger", "file/l.db"], "error: `ledger` must be a file that SQLite can open, got 'file/l.db': "),
        ([], f"error: http://127.0.0.1:PORT {STRANGER}"),
    ],
)
def test_wrong_options_are_one_line(
    bundle: Path,
    server: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    message: str,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("this is neither a folder nor a data base" * 100)
    monkeypatch.chdir(tmp_path)
    server.info = INFO | {"settings": ["8899aabbccddeeff"]}
    options = ["--bundle", str(bundle), "--ledger", "l.db", "--yes", *wrong, "--url", server.url]
    monkeypatch.setattr(sys, "argv", ["del-lightning-client", "ask", *options, TEXT])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == cli.USER_ERROR
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(message.replace("http://127.0.0.1:PORT", server.url))


@pytest.mark.parametrize(("given", "prompt"), [("a cat\n", "a cat"), ("a cat", "a cat"), ("a cat\n\n", "a cat\n")])
def test_the_last_line_break_of_standard_input_is_none_of_the_prompts(
    bundle: Path,
    server: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    prompt: str,
) -> None:
    options = ["--bundle", str(bundle), "--url", server.url, "--ledger", str(tmp_path / "l.db"), "--yes"]
    monkeypatch.setattr(sys, "argv", ["del-lightning-client", "ask", *options, "-"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert server.frames[0].tokens == len(Bundle(bundle).encode(prompt)[0])


STEER = "\x1b[2Jgone\x07\u202e"
STEERING: dict[str, Reply] = {
    "refusal": refusal(401, STEER),
    "html": (500, {}, STEER.encode()),
    "failure": (200, {}, event("error", message=f"{STEER}\nnext")),
    "event": (200, {}, f"event: token{STEER}\ndata: {STEER}\n\n".encode()),
}


@pytest.mark.parametrize("case", [*STEERING, "settings", "manifest"])
def test_what_a_server_says_cannot_steer_the_terminal(
    client: Client,
    bundle: Path,
    server: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    if case == "settings":
        server.info = INFO | {"settings": [{"setting": STEER, "virtual_tokens": 1}]}
    elif case == "manifest":  # the bundle was downloaded, too
        shutil.copytree(bundle, tmp_path / "client")
        bundle = tmp_path / "client"
        manifest = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps(manifest | {"label": STEER}))
    else:
        server.replies = [STEERING[case]]
    options = ["--bundle", str(bundle), "--url", server.url, "--ledger", str(tmp_path / "l.db"), "--yes"]
    monkeypatch.setattr(sys, "argv", ["del-lightning-client", "ask", *options, TEXT])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().err
    assert "gone" in shown
    assert not any(character in shown for character in STEER if not character.isprintable())
    assert case == "manifest" or shown.splitlines()[-1].startswith("error: ")
    if case in STEERING:
        with pytest.raises(RemoteError) as caught:
            list(client.ask(TEXT))
        assert str(caught.value).isprintable()


def test_an_answer_cannot_steer_the_terminal() -> None:
    assert cli.harmless("a\x1b[2Jb\nc\td\x07ü…") == "a\ufffd[2Jb\nc\td\ufffdü…"
