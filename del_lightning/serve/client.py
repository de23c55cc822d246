"""The user's side of private inference: text stays here, codes go out, a continuation comes back.

    prepare(text) -> Preview      what a request would cost and give away; nothing leaves the device
    send(preview) -> pieces       enters the cost in the ledger, draws codes, sends them, streams the answer
    ask(text)     -> text         both

The preview attacks a rehearsal: codes drawn just like those to be sent, but never sent. Someone who looked at the very
codes and then chose whether to send them would change their distribution, and with it the guarantee.

Needs numpy, `tokenizers` and `httpx`; no torch, no language model.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from del_lightning.errors import ConfigError, RemoteError
from del_lightning.privacy.accountant import BinomialAccountant
from del_lightning.privacy.ledger import BudgetLedger, Spent
from del_lightning.serve.bundle import Bundle, Ids, Manifest
from del_lightning.serve.wishes import DEFAULT_NEW_TOKENS, check_wishes
from del_lightning.wire import Codes, Frame, Public, encode_frame, public_size

_TIMEOUT = httpx.Timeout(10.0, read=300.0, write=60.0)
KEY_VARIABLE = "DEL_LIGHTNING_KEY"
"""Environment variable from which the command reads the API key."""

_BUSY = (429, 503)
"""Answers after which the same request may be repeated."""


@dataclass(frozen=True)
class Piece:
    """A part of the answer: its text, which may be empty inside a character, and the tokens behind it."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Preview:
    """What a request would cost and give away.

    Attributes:
        ids: private token ids (T,); they stay on the device.
        pieces: the text that each of them stands for.
        suffix: public text behind the prompt.
        frame_bytes: size of the request.
        epsilon: of this request alone, all its tokens together, at ``total.delta``.
        total: the user's balance after it.
        budget: the epsilon that ``total`` must not pass.
        guesses: what the best attack on single tokens, given word frequencies, names in a rehearsal of this request, a
            token each; an attacker who also uses the context reads more (docs/serving.md).
        recovered: how many of the guesses are right.
    """

    ids: Ids
    pieces: tuple[str, ...]
    suffix: Public
    frame_bytes: int
    epsilon: float
    total: Spent
    budget: float
    guesses: Ids
    recovered: int

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.ids)

    @property
    def affordable(self) -> bool:
        """Whether the budget covers the request."""
        return self.total.epsilon <= self.budget


@dataclass(frozen=True)
class _Offer:
    """What ``/v1/info`` says about this bundle's setting, as far as a request could be refused for it.

    Attributes:
        public_bytes: most bytes of public text.
        context: soft prompt, prompt and new tokens together, at most.
        virtual_tokens: of the soft prompt.
    """

    prompt_tokens: int
    new_tokens: int
    public_bytes: int
    context: int
    virtual_tokens: int
    key_needed: bool


class Client:
    """A user's connection to one server.

    Args:
        bundle: the ``client`` folder that stage=export wrote, or one loaded before.
        url: of the server, for instance https://example.org.
        key: API key, if the server asks for one.
        user: whose budget pays.
        ledger: the budgets; None keeps one in the user's data folder, with the budget that the bundle names.
        entropy_coding: make requests shorter where possible; needs `constriction`.
        patience: seconds during which a busy server is asked again, with the same codes: that costs no privacy.
        http: connection to use, for instance with a proxy or certificates of one's own; it is closed with the client.

    Raises:
        ArtifactError: the bundle is damaged.

    Example:
        client = Client("runs/export/<key>/client", "http://127.0.0.1:8000")
        for text in client.ask("A private prompt"):
            print(text, end="", flush=True)
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        url: str,
        *,
        key: str | None = None,
        user: str = "me",
        ledger: BudgetLedger | None = None,
        entropy_coding: bool = False,
        patience: float = 60.0,
        http: httpx.Client | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self.url, self.user, self.entropy_coding, self.patience = url.rstrip("/"), user, entropy_coding, patience
        self.ledger = ledger or open_ledger(self.bundle.manifest)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = http or httpx.Client(timeout=_TIMEOUT)
        self._offer: _Offer | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def prepare(self, text: str, *, suffix: Public = "") -> Preview:
        """Work out what sending a private text would cost and give away. Nothing is sent or entered.

        Args:
            text: private.
            suffix: public text, or token ids, behind it.

        Raises:
            ConfigError: the text holds no token.
        """
        ids, pieces = self.bundle.encode(text)
        rehearsal = self.bundle.release(ids)
        guesses = self.bundle.invert(rehearsal)
        release = self._accountant(len(ids))
        return Preview(
            ids=ids,
            pieces=tuple(pieces),
            suffix=suffix,
            frame_bytes=len(self._encode(rehearsal, suffix)),
            epsilon=release.epsilon(self.ledger.delta),
            total=self.ledger.foresee(self.user, release),
            budget=self.ledger.epsilon,
            guesses=guesses,
            recovered=int((guesses == ids).sum()),
        )

    def send(
        self,
        preview: Preview,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.7,
        top_p: float = 0.9,
        seed: int | None = None,
    ) -> Iterator[Piece]:
        """Send a prepared text, with fresh codes; every call is a release of its own and pays.

        Args:
            preview: from :meth:`prepare`.
            max_tokens: longest answer; None takes 200, or the server's limit if that is lower.
            temperature: of the server's sampling; 0 takes the likeliest token every time.
            top_p: nucleus of the sampling, in (0, 1].
            seed: of the sampling; None leaves it to the server.

        Returns:
            The answer's pieces as they arrive. What can be refused is refused before this method returns.

        Raises:
            BudgetError: the budget does not cover the release; nothing was sent.
            ConfigError: a wish is out of range, or a key is missing; nothing was sent or entered.
            RemoteError: the server does not fit the bundle or the request, or cannot be reached, and nothing was sent
                or entered; while the pieces arrive: it refused the request or broke off.
        """
        check_wishes(max_tokens, temperature, top_p, seed)
        max_tokens = self._agree(preview, max_tokens)
        self.ledger.spend(self.user, self._accountant(preview.tokens))
        body = self._encode(self.bundle.release(preview.ids), preview.suffix)
        wishes: dict[str, float] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
        return self._stream(body, wishes if seed is None else wishes | {"seed": seed})

    def ask(self, text: str, *, suffix: Public = "", **sampling: Any) -> Iterator[str]:
        """:meth:`prepare` and :meth:`send` in one, without looking at the preview; yields the answer's text."""
        pieces = self.send(self.prepare(text, suffix=suffix), **sampling)
        return (piece.text for piece in pieces)

    def _accountant(self, tokens: int) -> BinomialAccountant:
        return self.bundle.sampler.accountant(tokens)

    def _encode(self, codes: Codes, suffix: Public) -> bytes:
        manifest = self.bundle.manifest
        frame = Frame(
            model=manifest.model,
            setting=manifest.setting,
            bits=manifest.bits,
            a_plus=manifest.a_plus,
            codes=codes,
            prefix=manifest.prefix_ids,
            suffix=suffix,
        )
        return encode_frame(frame, entropy_coding=self.entropy_coding)

    def _agree(self, preview: Preview, wished: int | None) -> int:
        """Find out, before anything is paid or drawn, whether the server takes this request; returns max_tokens."""
        offer = self._offer = self._offer or self._ask_offer()
        if offer.key_needed and not self._headers:
            raise ConfigError(f"`key` must be an API key of {self.url} ({KEY_VARIABLE} for the command), got none")
        vocabulary, suffix = self.bundle.manifest.vocab_size, self.bundle.public_ids(preview.suffix)
        if max(suffix, default=0) >= vocabulary:
            raise ConfigError(f"`suffix` must hold token ids below {vocabulary}, got {max(suffix)}")
        prefix = self.bundle.manifest.prefix_ids
        public = 4 * len(prefix) + public_size(preview.suffix)
        context = offer.virtual_tokens + len(prefix) + preview.tokens + len(suffix)
        default = max(1, min(DEFAULT_NEW_TOKENS, offer.new_tokens, offer.context - context))
        new = default if wished is None else wished
        self._at_most("private tokens", preview.tokens, offer.prompt_tokens)
        self._at_most("bytes of public text", public, offer.public_bytes)
        self._at_most("new tokens (`max_tokens`)", new, offer.new_tokens)
        self._at_most("tokens, soft prompt and `max_tokens` included,", context + new, offer.context)
        return new

    def _at_most(self, what: str, value: int, limit: int) -> None:
        if value > limit:
            raise RemoteError(f"the request must have at most {limit} {what} for {self.url}, got {value}")

    def _ask_offer(self) -> _Offer:
        """What the server serves, if that fits the bundle."""
        info, ours = self._info(), self.bundle.manifest.setting
        try:
            settings = {str(one["setting"]): int(one["virtual_tokens"]) for one in info["settings"]}
            names = ("prompt_tokens", "new_tokens", "public_bytes", "context")
            limits = {name: int(info["limits"][name]) for name in names}
            key_needed = bool(info["key_needed"])
        except (ValueError, KeyError, TypeError):
            raise self._stranger() from None
        if ours not in settings:
            raise RemoteError(f"{self.url} must serve the bundle's setting {ours}, it has {_line(', '.join(settings))}")
        return _Offer(**limits, virtual_tokens=settings[ours], key_needed=key_needed)

    def _info(self) -> Any:
        """The JSON of ``/v1/info``."""
        try:
            response = self._http.get(f"{self.url}/v1/info", headers=self._headers)
            if response.is_error:
                raise RemoteError(_refused(response))
            return response.json()
        except httpx.InvalidURL as error:
            raise ConfigError(f"`url` must be the address of a server, got {self.url!r}: {error}") from None
        except httpx.HTTPError as error:
            raise RemoteError(f"{self.url} cannot be reached: {_reason(error)}") from None
        except ValueError:
            raise self._stranger() from None

    def _stranger(self) -> RemoteError:
        return RemoteError(f"{self.url} must answer /v1/info as a DEL-Lightning server does, it did not")

    def _stream(self, body: bytes, wishes: Mapping[str, float]) -> Iterator[Piece]:
        """Post the same bytes until a server that is only busy takes them; then pass its answer on."""
        headers = self._headers | {"Content-Type": "application/octet-stream"}
        deadline = time.monotonic() + self.patience
        while True:
            try:
                with self._http.stream(
                    "POST", f"{self.url}/v1/generate", params=wishes, headers=headers, content=body
                ) as response:
                    if response.status_code == httpx.codes.OK:
                        yield from read_pieces(response.iter_lines())
                        return
                    wait = _wait_or_raise(response, deadline)
            except httpx.HTTPError as error:
                raise RemoteError(f"{self.url} broke off: {_reason(error)}") from None
            time.sleep(wait)


def open_ledger(manifest: Manifest, path: Path | None = None, epsilon: float | None = None) -> BudgetLedger:
    """The ledger of a bundle's user.

    Args:
        manifest: of the bundle; its delta holds.
        path: SQLite file; None takes ``del-lightning/ledger.db`` in the user's data folder.
        epsilon: budget; None takes the one that the bundle names.

    Raises:
        ConfigError: the file cannot be opened or is no ledger, or the budget is not positive.
    """
    if path is None:
        root = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        path = Path(root) / "del-lightning" / "ledger.db"
    budget = manifest.budget_epsilon if epsilon is None else epsilon
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return BudgetLedger(path, epsilon=budget, delta=manifest.delta)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"`ledger` must be a file that SQLite can open, got {str(path)!r}: {error}") from None


def read_pieces(lines: Iterable[str]) -> Iterator[Piece]:
    """The answer inside a stream of server-sent events, line by line.

    Raises:
        RemoteError: the server reports an error, says something that is no answer, or stops before the end.
    """
    for event, data in read_events(lines):
        try:
            content = json.loads(data)
            if event == "token":
                yield Piece(str(content["text"]), tuple(map(int, content["ids"])))
            elif event == "error":
                raise RemoteError(f"the server failed: {_line(str(content['message']))}")
            elif event == "done":
                return
        except (ValueError, KeyError, TypeError):
            raise RemoteError(
                f"the server's event {event!r} must be JSON of a known form, got {data[:100]!r}"
            ) from None
    raise RemoteError("the server's answer must end with `done`, it stopped before")


def read_events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names and data of server-sent events; comments and unknown fields are skipped, as the standard asks."""
    event, data = "message", list[str]()
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "" and data:
            yield event, "\n".join(data)
        if line == "":
            event, data = "message", []
        elif field == "event":
            event = value
        elif field == "data":
            data.append(value)


def _wait_or_raise(response: httpx.Response, deadline: float) -> float:
    """Seconds until a busy server wants to be asked again.

    Raises:
        RemoteError: the server refused for good, or stays busy for longer than until ``deadline``.
    """
    response.read()
    try:
        wait = max(0.1, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        wait = 1.0
    if response.status_code in _BUSY and time.monotonic() + wait < deadline:
        return wait
    raise RemoteError(_refused(response))


def _refused(response: httpx.Response) -> str:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    return f"the server refused with status {response.status_code}: {_line(message)}"


def _reason(error: httpx.HTTPError) -> str:
    return _line(str(error)) or type(error).__name__


def harmless(text: str) -> str:
    """Text without control characters: a server must not steer the user's terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def _line(text: str) -> str:
    """A server's words inside an error: one harmless line."""
    return harmless(" ".join(text.split()))
