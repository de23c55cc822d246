"""The page of the server: its mechanism is the client's bit by bit, and it sends codes and nothing else.

The mechanism runs under Node.js, the page in headless Chromium against a real server of a tiny model.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright
from transformers import PreTrainedTokenizerFast

from del_lightning.privacy import SecureSampler, secure
from del_lightning.serve.access import KeyLimits
from del_lightning.serve.bundle import Bundle
from del_lightning.serve.client import read_pieces
from del_lightning.wire import Frame, decode_frame, encode_frame, pack
from tests.serve.factory import event, make_bundle
from tests.serve.stand import Stand, make_service, serving

WEB = Path(__file__).parents[2] / "del_lightning" / "serve" / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TEXTS = [
    "the cat sat on a mat",
    "The quick brown fox's 3,141 words, Dr. O'Neil — naïve café 你好 🙂!",
    "  two spaces\n\nand\tlines \n",
    "<eos> is no end",
]

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
needs_library = pytest.mark.skipif(not (WEB / "vendor" / "tokenizers.js").exists(), reason="needs `make web`")
needs_browser = pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="needs Chromium")


def node(scratch: Path, program: str, **given: Any) -> Any:
    """Run a module body that turns ``given`` into ``result``; the page's modules are in scope."""
    code = (
        f"import * as del from {json.dumps((WEB / 'del.js').as_uri())};\n"
        "import { readFileSync } from 'node:fs';\n"
        "const { given } = JSON.parse(readFileSync(0, 'utf8'));\n"
        "const file = (path) => { const b = readFileSync(path);"
        " return b.buffer.slice(b.byteOffset, b.byteOffset + b.length); };\n"
        f"{program}\n"
        "console.log(JSON.stringify(result, (_, v) => ArrayBuffer.isView(v) ? Array.from(v) : v));\n"
    )
    (scratch / "program.mjs").write_text(code)
    done = subprocess.run(
        ["node", str(scratch / "program.mjs")],
        input=json.dumps({"given": given}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


BUNDLE = """
const manifest = JSON.parse(readFileSync(given.folder + "/manifest.json"));
const tables = ["thresholds", "prior"].map((name) => file(`${given.folder}/${name}.npy`));
const mechanism = new del.Mechanism(manifest, ...tables);
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "client"
    make_bundle(folder, tiny_tokenizer.backend_tokenizer)
    return Bundle(folder)


def recorded_draw(monkeypatch: pytest.MonkeyPatch, sampler: SecureSampler, thresholds: Any) -> tuple[Any, bytes]:
    """Codes that the client draws, and the random bytes that it drew them from."""
    generator, used = np.random.default_rng(5), bytearray()

    def urandom(count: int) -> bytes:
        data = generator.bytes(count)
        used.extend(data)
        return data

    with monkeypatch.context() as patch:
        patch.setattr(secure.os, "urandom", urandom)
        return sampler.draw(thresholds), bytes(used)


@needs_node
@pytest.mark.parametrize("bits", range(1, 9))
def test_page_and_client_draw_the_same_codes_from_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    sampler = SecureSampler(bits, 1.0, 8.0, 6)
    thresholds = np.random.default_rng(bits).integers(0, 2**32, (40, 6), dtype=np.uint32)  # many of them out of range
    thresholds[0] = (0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1)
    codes, used = recorded_draw(monkeypatch, sampler, thresholds)
    found = node(
        tmp_path,
        "const bytes = Uint8Array.from(given.bytes); let at = 0;\n"
        "const source = (count) => bytes.subarray(at, at += count);\n"
        "const codes = del.drawCodes(Uint32Array.from(given.thresholds), given.bits, given.aPlus, source);\n"
        "const result = { codes, at };",
        bytes=list(used),
        thresholds=thresholds.ravel().tolist(),
        bits=bits,
        aPlus=sampler.threshold,
    )
    assert found == {"codes": codes.ravel().tolist(), "at": len(used)}


@needs_node
def test_page_and_client_agree_beyond_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure, "_CHUNK", 64)
    sampler = SecureSampler(3, 1.0, 8.0, 6)
    thresholds = np.random.default_rng(0).integers(2**31, 2**32, (33, 6), dtype=np.uint32)
    codes, used = recorded_draw(monkeypatch, sampler, thresholds)
    text = (WEB / "del.js").read_text()
    assert "const CHUNK = 1 << 16;" in text
    (tmp_path / "small.mjs").write_text(text.replace("const CHUNK = 1 << 16;", "const CHUNK = 64;"))
    found = node(
        tmp_path,
        f"const small = await import({json.dumps((tmp_path / 'small.mjs').as_uri())});\n"
        "const bytes = Uint8Array.from(given.bytes); let at = 0;\n"
        "const source = (count) => bytes.subarray(at, at += count);\n"
        "const result = small.drawCodes(Uint32Array.from(given.thresholds), 3, given.aPlus, source);",
        bytes=list(used),
        thresholds=thresholds.ravel().tolist(),
        aPlus=sampler.threshold,
    )
    assert found == codes.ravel().tolist()


@needs_node
def test_codes_of_the_page_follow_the_mechanism(tmp_path: Path, bundle: Bundle) -> None:
    repeats, m = 4000, bundle.sampler.levels
    codes = node(
        tmp_path,
        BUNDLE + "const result = mechanism.release(new Array(given.repeats).fill(17));",
        folder=str(bundle.folder),
        repeats=repeats,
    )
    p = bundle.thresholds[17] / 2**32
    means = np.reshape(codes, (repeats, -1)).mean(axis=0)
    assert (np.abs(means - m * p) < 5 * np.sqrt(m * p * (1 - p) / repeats)).all()


@needs_node
def test_page_and_client_write_the_same_frame(tmp_path: Path, bundle: Bundle) -> None:
    manifest = bundle.manifest
    codes = np.random.default_rng(2).integers(0, 16, (9, manifest.dim), dtype=np.uint8)
    found = node(
        tmp_path,
        BUNDLE + "const frame = del.encodeFrame(manifest, Uint8Array.from(given.codes));\n"
        "const packed = [1, 2, 3, 4, 5, 6, 7, 8].map((bits) => del.packCodes(Uint8Array.from(given.ones), bits));\n"
        "const result = { frame, packed };",
        folder=str(bundle.folder),
        codes=codes.ravel().tolist(),
        ones=[1, 0, 1, 1, 0, 1, 1],
    )
    frame = Frame(manifest.model, manifest.setting, manifest.bits, manifest.a_plus, codes, prefix=manifest.prefix_ids)
    assert bytes(found["frame"]) == encode_frame(frame)
    ones = np.array([1, 0, 1, 1, 0, 1, 1], dtype=np.uint8)
    assert [bytes(packed) for packed in found["packed"]] == [pack(ones, bits) for bits in range(1, 9)]


@needs_node
def test_page_and_client_attack_alike(tmp_path: Path, bundle: Bundle) -> None:
    codes = np.random.default_rng(3).integers(0, 16, (100, bundle.manifest.dim), dtype=np.uint8)
    found = node(
        tmp_path,
        BUNDLE + "const result = given.codes.map((row) => mechanism.invert(Uint8Array.from(row)));",
        folder=str(bundle.folder),
        codes=codes.tolist(),
    )
    assert (np.array(found) == bundle.invert(codes)).mean() >= 0.98  # the rest are ties within rounding


@needs_node
@needs_library
def test_page_and_client_tokenize_alike(tmp_path: Path, bundle: Bundle) -> None:
    library = json.dumps((WEB / "vendor" / "tokenizers.js").as_uri())
    found = node(
        tmp_path,
        f"const {{ Tokenizer }} = await import({library});\n"
        "const tokenizer = new Tokenizer(JSON.parse(readFileSync(given.folder + '/tokenizer.json')), {});\n"
        "const result = given.texts.map((text) => tokenizer.encode(text, { add_special_tokens: false }).ids);",
        folder=str(bundle.folder),
        texts=TEXTS,
    )
    assert found == [bundle.encode(text)[0].tolist() for text in TEXTS]


@needs_node
def test_unknown_tokens_and_damaged_bundles_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    found = node(
        tmp_path,
        BUNDLE + "const attempt = (work) => { try { work(); return ''; } catch (error) { return error.message; } };\n"
        "const result = [attempt(() => mechanism.release([300])),"
        " attempt(() => new del.Mechanism({ ...manifest, dim: 7 }, ...tables)),"
        " attempt(() => del.parseNpy(new ArrayBuffer(16)))];",
        folder=str(bundle.folder),
    )
    assert found == [
        "the text holds a token that the model does not know",
        "the bundle is damaged",
        "not a NumPy file of version 1",
    ]


# --- the page in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)))
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-sync", *quiet])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(stand: Stand) -> Iterator[str]:
    with serving(make_service(stand)) as (url, _):
        yield url


@pytest.fixture
def trouble() -> list[str]:
    """What the browser complains about, for instance a blocked script."""
    return []


@pytest.fixture
def page(browser: Browser, trouble: list[str]) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(20_000)
    page = context.new_page()

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            trouble.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    yield page
    context.close()


def write(page: Page, text: str) -> None:
    """Type a prompt and wait until its rehearsal is complete."""
    expect(page.locator("#prompt")).to_be_enabled()
    page.locator("#prompt").fill(text)
    expect(page.locator("#send")).to_be_enabled()


def table(page: Page) -> list[list[str]]:
    return page.locator("#tokens tr").evaluate_all("rows => rows.map(row => [...row.cells].map(c => c.textContent))")


@needs_browser
@needs_library
@pytest.mark.slow
def test_a_private_completion(page: Page, trouble: list[str], address: str, stand: Stand) -> None:
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))  # noqa: PLW0108 - it is marked with attributes
    page.goto(address)
    write(page, TEXTS[0])
    bundle = stand.bundle()
    ids, pieces = bundle.encode(TEXTS[0])
    assert "strongest" not in page.content()
    assert "who also uses the context reads more" in " ".join(page.content().split())
    rehearsal = table(page)
    assert [row[0] for row in rehearsal] == pieces
    assert f"{len(ids)} tokens" in page.locator("#summary").inner_text()
    expect(page.locator("#phase")).to_contain_text("never sent")
    expect(page.locator("#phase")).to_contain_text(f"of {len(ids)} tokens")

    page.locator("#temperature").fill("0")
    page.locator("#max-tokens").fill("9")
    page.locator("#send").click()
    expect(page.locator("#answer")).to_have_attribute("data-finished", "true")
    (post,) = [request for request in requests if request.method == "POST"]
    body = post.post_data_buffer
    assert body is not None
    frame = decode_frame(body)
    assert (frame.setting, frame.tokens, frame.prefix) == (
        bundle.manifest.setting,
        len(ids),
        bundle.manifest.prefix_ids,
    )
    # What the table shows is what was sent, and that was not the rehearsal.
    sent = [" ".join(f"{code:x}" for code in row) for row in frame.codes]
    assert [row[1] for row in table(page)] == sent
    assert sent != [row[1] for row in rehearsal]
    expect(page.locator("#phase")).to_contain_text(f"of {len(ids)} tokens")
    guesses = [bundle.text(guess[None]) for guess in bundle.invert(frame.codes)]
    assert sum(row[2] == guess for row, guess in zip(table(page), guesses, strict=True)) >= len(ids) - 1
    # The same bytes from another client give the same answer.
    wishes = {"max_tokens": 9, "temperature": 0}
    answer = httpx.post(f"{address}/v1/generate", content=body, params=wishes, timeout=30).text
    assert page.locator("#answer").inner_text() == "".join(piece.text for piece in read_pieces(answer.splitlines()))
    # Nothing was fetched from elsewhere, nothing but the frame was sent, and the browser found nothing wrong.
    assert {request.url.split("/")[2] for request in requests} == {address.split("/")[2]}
    assert all(not request.post_data_buffer for request in requests if request is not post)
    assert all("cat" not in request.url for request in requests)
    assert trouble == []


@needs_browser
@needs_library
@pytest.mark.slow
def test_every_click_draws_anew_and_counts(page: Page, address: str) -> None:
    bodies: list[bytes | None] = []
    page.on("request", lambda request: bodies.append(request.post_data_buffer) if request.method == "POST" else None)
    page.goto(address)
    write(page, TEXTS[0])
    for _ in range(2):
        page.locator("#send").click()
        expect(page.locator("#answer")).to_have_attribute("data-finished", "true")
        page.locator("#answer").evaluate("answer => { delete answer.dataset.finished; }")
    assert len(set(bodies)) == 2
    tokens = decode_frame(bodies[0] or b"").tokens
    expect(page.locator("#summary")).to_contain_text(f"{2 * tokens} of 10000 tokens of the privacy budget used")
    page.evaluate("for (const key of Object.keys(localStorage)) localStorage[key] = '9999'")
    page.locator("#prompt").fill(TEXTS[0] + "!")
    expect(page.locator("#error")).to_contain_text("The privacy budget of 10000 tokens is used up: 9999 were sent.")
    expect(page.locator("#send")).to_be_disabled()


@needs_browser
@needs_library
@pytest.mark.slow
def test_what_the_server_would_refuse_is_not_sent(page: Page, address: str) -> None:
    info = httpx.get(f"{address}/v1/info").json()
    info["limits"] |= {"new_tokens": 40, "context": 45}
    info["key_needed"] = True
    page.route("**/v1/info", fulfilled(200, "application/json", json.dumps(info).encode()))
    posts: list[Request] = []
    page.on("request", lambda request: posts.append(request) if request.method == "POST" else None)
    page.goto(address)
    expect(page.locator("#prompt")).to_be_enabled()
    assert page.locator("#max-tokens").input_value() == "40"
    page.locator("#prompt").fill(TEXTS[0])
    expect(page.locator("#error")).to_contain_text("Prompt and answer must have at most 45 tokens together, not ")
    expect(page.locator("#send")).to_be_disabled()
    page.locator("#max-tokens").fill("41")
    assert not page.locator("#max-tokens").evaluate("field => field.validity.valid")
    page.locator("#max-tokens").fill("5")
    expect(page.locator("#send")).to_be_enabled()
    page.locator("#send").click()  # the key is missing
    assert posts == []
    page.locator("#key").fill("secret")
    page.locator("#send").click()
    expect(page.locator("#answer")).to_have_attribute("data-finished", "true")
    assert len(posts) == 1


@needs_browser
@needs_library
@pytest.mark.slow
def test_a_key_with_limits_of_its_own(page: Page, stand: Stand) -> None:
    keys = {"small": KeyLimits(max_prompt_tokens=2), "large": KeyLimits()}
    with serving(make_service(stand, keys=keys)) as (url, _):
        page.goto(url)
        write(page, TEXTS[0])
        for key, message in (("wrong", "does not accept this key"), ("small", "takes at most 2 tokens")):
            page.locator("#key").fill(key)
            page.locator("#prompt").fill(TEXTS[0])
            expect(page.locator("#send")).to_be_enabled()
            page.locator("#send").click()
            expect(page.locator("#error")).to_contain_text(message)
            assert page.evaluate("localStorage.length") == 0
        second = page.context.new_page()
        second.goto(url)
        write(second, TEXTS[0])
        second.locator("#key").fill("large")
        second.locator("#send").click()
        expect(second.locator("#answer")).to_have_attribute("data-finished", "true")
        expect(second.locator("#error")).to_be_hidden()
        page.goto("about:blank")
        second.close()


def fulfilled(status: int, content_type: str, body: bytes) -> Any:
    def fulfil(route: Route) -> None:
        route.fulfill(status=status, content_type=content_type, body=body)

    return fulfil


TOKEN = event("token", text="<b>Once</b>", ids=[1])
FAILURES = {
    "The server refused (status 429): too many": (429, "application/json", b'{"error": {"message": "too many"}}'),
    "The server refused (status 502): no reason given": (502, "text/html", b"<html>"),
    "The server failed: engine died": (200, "text/event-stream", TOKEN + event("error", message="engine died")),
    "The server broke off.": (200, "text/event-stream", TOKEN),
}


@needs_browser
@needs_library
@pytest.mark.slow
def test_failures_are_said(page: Page, address: str) -> None:
    page.goto(address)
    write(page, TEXTS[0])
    for message, (status, content_type, body) in FAILURES.items():
        page.route("**/v1/generate?*", fulfilled(status, content_type, body))
        page.locator("#send").click()
        expect(page.locator("#error")).to_have_text(message)
        expect(page.locator("#send")).to_be_enabled()
        page.unroute("**/v1/generate?*")
    assert page.locator("#answer").inner_text() == "<b>Once</b>"  # the answer is text, never markup
    page.route("**/v1/generate?*", lambda route: route.abort())
    page.locator("#send").click()
    expect(page.locator("#error")).to_have_text("The connection to the server broke off.")


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "reply", "message"),
    [
        ("**/vendor/*", (404, "text/plain", b""), "run `make web` where the server is built"),
        # Without the library the page may say that first.
        pytest.param(
            *("**/bundle/prior.npy", (500, "text/plain", b""), "bundle/prior.npy cannot be loaded (status 500)"),
            marks=needs_library,
        ),
        pytest.param(
            *("**/v1/info", (200, "application/json", b'{"settings": []}'), "does not serve the setting"),
            marks=needs_library,
        ),
    ],
)
def test_what_is_missing_is_said(
    page: Page, address: str, path: str, reply: tuple[int, str, bytes], message: str
) -> None:
    page.route(path, fulfilled(*reply))
    page.goto(address)
    expect(page.locator("#error")).to_contain_text(message)
    expect(page.locator("#prompt")).to_be_disabled()
