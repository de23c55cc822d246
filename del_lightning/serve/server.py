"""The server: frames in, text out, token by token.

    POST /v1/generate   body: one frame (:mod:`del_lightning.wire`); query: max_tokens, temperature, top_p, seed
                        -> server-sent events: token {"text", "ids"} ..., then done {"tokens", "finish"} or
                           error {"message"}; whatever is wrong before the first token is a status and JSON instead
    GET  /v1/info       fingerprints, mechanisms, limits
    GET  /health        200, or 503 while it drains, after the engine failed, or if what is behind it does not answer
    GET  /metrics       for Prometheus
    GET  /              the web page; /bundle/ the client's files

It never sees the private text: a frame holds codes, and neither they nor what is generated are written anywhere.
"""

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from del_lightning import __version__
from del_lightning.config import ServeConfig
from del_lightning.errors import FrameError
from del_lightning.serve.access import KeyLimits, Keys, RateLimit
from del_lightning.serve.base import BusyError, Delta, Engine, Event, Failed, Finished, Generation
from del_lightning.serve.base import Request as EngineRequest
from del_lightning.serve.exports import Export, MismatchError, find_export
from del_lightning.serve.metrics import Metrics
from del_lightning.serve.sampling import Sampling
from del_lightning.serve.wishes import DEFAULT_NEW_TOKENS, LEAST_TEMPERATURE, MOST_TEMPERATURE, SEEDS
from del_lightning.wire import HEADER_BYTES, Limits, check_whole, decode_frame, read_header

WEB = Path(__file__).parent / "web"
GONE = 499
"""Status, in logs and metrics only, of a request whose client left before the first token."""

_RETRY_SECONDS = (1, 60)
_SAFE_PAGE = {"Content-Security-Policy": "default-src 'self'", "X-Content-Type-Options": "nosniff"}

log = logging.getLogger(__name__)


class Refusal(Exception):  # noqa: N818 - it is an answer
    """A request that gets a status and one JSON object instead of a stream."""

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, dict(headers or {})

    def response(self) -> JSONResponse:
        """{"error": {"type", "message"}}."""
        content = {"error": {"type": self.kind, "message": str(self)}}
        return JSONResponse(content, status_code=self.status, headers=self.headers)


class Wishes(BaseModel):
    """The query of ``/v1/generate``; without a seed, one is drawn."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.7, ge=0, le=MOST_TEMPERATURE, allow_inf_nan=False)
    top_p: float = Field(0.9, gt=0, le=1)
    seed: int = Field(default_factory=lambda: secrets.randbits(63), ge=0, lt=SEEDS)

    @field_validator("temperature")
    @classmethod
    def _divides_logits(cls, value: float) -> float:
        """Logits are divided by it: a tiny one would make infinities."""
        if 0 < value < LEAST_TEMPERATURE:
            raise ValueError(f"must be 0 or at least {LEAST_TEMPERATURE:g}")
        return value


@dataclass
class _Entry:
    """What is known of a request, for its line in the log; sizes and times, nothing of its content."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    start: float = field(default_factory=time.perf_counter)
    facts: dict[str, Any] = field(default_factory=dict)
    new_tokens: int = 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


class Service:
    """Everything behind the routes.

    Args:
        config: Limits.
        exports: What can be served, by the fingerprint of its setting.
        engine: Runs requests.
        keys: API keys and their limits; without any, everyone may ask.

    Attributes:
        draining: Set once: new requests are refused, those accepted are finished.
        open: Requests that are being answered.
    """

    def __init__(
        self,
        config: ServeConfig,
        exports: Mapping[str, Export],
        engine: Engine,
        keys: Mapping[str, KeyLimits] | None = None,
    ) -> None:
        self.config, self.exports, self.engine = config, exports, engine
        self.keys = Keys(keys or {})
        self.rate = RateLimit()
        self.metrics = Metrics(lambda: engine.load)
        self.draining, self.open = False, 0
        self._mean_seconds = 1.0
        dim = max(export.manifest.dim for export in exports.values())
        self._largest = Limits(config.max_prompt_tokens, dim, config.max_public_bytes).frame_bytes
        # More tokens than may come are still read, to be refused as too many; their number is bounded by the bytes.
        self._limits = Limits(8 * self._largest, dim, config.max_public_bytes)

    def info(self, name: str) -> dict[str, Any]:
        """What ``/v1/info`` tells; ``name`` is that of the key whose limits are told."""
        shown = ("setting", "label", "bits", "dim", "mu", "a_plus", "amplitude", "prefix", "statement")
        manifest = next(iter(self.exports.values())).manifest
        return {
            "version": __version__,
            "engine": self.engine.name,
            "model": {"name": manifest.model_name, "fingerprint": manifest.model},
            "settings": [
                {name: getattr(export.manifest, name) for name in shown}
                | {"virtual_tokens": export.soft_prompt.virtual_tokens}
                for export in self.exports.values()
            ],
            "limits": {
                "prompt_tokens": self._prompt_tokens(name),
                "new_tokens": self.config.max_new_tokens,
                "context": self.config.max_context,
                "public_bytes": self.config.max_public_bytes,
                "frame_bytes": self._largest,
                "requests_per_minute": self._requests_per_minute(name),
            },
            "key_needed": self.keys.needed,
        }

    def _prompt_tokens(self, name: str) -> int:
        own = self.keys.limits(name).max_prompt_tokens
        return self.config.max_prompt_tokens if own is None else min(own, self.config.max_prompt_tokens)

    def _requests_per_minute(self, name: str) -> int:
        own = self.keys.limits(name).requests_per_minute
        return self.config.requests_per_minute if own is None else own

    def key_name(self, authorization: str | None) -> str:
        """Name of the key that a request shows.

        Raises:
            Refusal: There is none, or it is not valid.
        """
        name = self.keys.name(authorization)
        if name is None:
            message = "the Authorization header must be `Bearer` and a valid API key"
            raise Refusal(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})
        return name

    def health(self) -> str:
        """One of ok, draining, failed."""
        if not self.engine.healthy:
            return "failed"
        return "draining" if self.draining else "ok"

    async def generate(self, request: Request, wishes: Wishes) -> Response:
        """Answer a request; counts and logs it, however it ends."""
        entry = _Entry()
        self.open += 1
        try:
            first, generation = await self._begin(request, wishes, entry)
        except Refusal as refusal:
            self._close(entry, refusal.status, refusal.kind)
            refusal.headers["X-Request-Id"] = entry.id
            return refusal.response()
        except BaseException:  # the server's own failure, or its end: counted, then passed on
            self._close(entry, 500, "internal")
            raise
        return _EventStream(
            self._events(first, generation, entry),
            lambda: self._leave(generation, entry),
            {"X-Request-Id": entry.id, "Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _begin(self, request: Request, wishes: Wishes, entry: _Entry) -> tuple[Event, Generation]:
        """Check a request, hand it to the engine and wait for its first event."""
        name = self._admit(request, entry)
        body = await self._body(request)
        entry.facts["frame_bytes"] = len(body)
        generation = self._submit(self._read(body, wishes, entry, name))
        try:
            first = await self._first(request, generation, entry)
        except BaseException:  # whoever it is that no longer waits, the row must become free
            generation.cancel()
            raise
        entry.facts["first_token_seconds"] = round(entry.seconds, 4)
        self.metrics.first_token.observe(entry.seconds)
        return first, generation

    def _admit(self, request: Request, entry: _Entry) -> str:
        """Whether this key may ask at all, and now; returns its name."""
        if (health := self.health()) != "ok":
            raise Refusal(503, "unavailable", f"the server is not available: {health}", {"Retry-After": "5"})
        entry.facts["key"] = name = self.key_name(request.headers.get("authorization"))
        if wait := self.rate.wait(name, self._requests_per_minute(name)):
            message = f"at most {self._requests_per_minute(name)} requests a minute are allowed for this key"
            raise Refusal(429, "rate_limit", message, {"Retry-After": str(wait)})
        return name

    async def _body(self, request: Request) -> bytes:
        """The request's body, read no further than a frame can be long."""
        declared = request.headers.get("content-length", "")
        told = declared.isdecimal() and int(declared) > self._largest
        body = bytearray()
        try:
            async with asyncio.timeout(self.config.body_timeout):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._largest or (told and len(body) >= HEADER_BYTES):
                        raise self._too_large(bytes(body))
        except TimeoutError:
            message = f"the body must arrive within {self.config.body_timeout:g} seconds"
            raise Refusal(408, "timeout", message) from None
        except ClientDisconnect:
            raise Refusal(GONE, "gone", "the client left") from None
        return bytes(body)

    def _too_large(self, start: bytes) -> Refusal:
        """Why a frame that begins like this is not read to its end."""
        try:
            find_export(self.exports, read_header(start))
        except MismatchError as error:
            return Refusal(409, "mismatch", str(error))
        except FrameError:
            pass
        return Refusal(413, "too_large", f"a frame must have at most {self._largest} bytes")

    def _read(self, body: bytes, wishes: Wishes, entry: _Entry, name: str) -> EngineRequest:
        """Decode the frame and check it against what is served, to this key."""
        try:
            header = read_header(body)
            check_whole(body, header)
            # Before the limits, which are those of the exports here: a stranger's frame is no bad one.
            export = find_export(self.exports, header)
            frame = decode_frame(body, self._limits)
            prompt = export.prompt(frame)
        except FrameError as error:
            raise Refusal(400, "bad_frame", str(error)) from None
        except MismatchError as error:
            raise Refusal(409, "mismatch", str(error)) from None
        new = wishes.max_tokens or min(DEFAULT_NEW_TOKENS, self.config.max_new_tokens)
        entry.facts |= {"setting": frame.setting, "private_tokens": frame.tokens, "max_tokens": new}
        self._check_sizes(frame.tokens, self._prompt_tokens(name), export.soft_prompt.virtual_tokens + len(prompt), new)
        self.metrics.private_tokens.inc(frame.tokens)
        self.metrics.frame_bytes.inc(len(body))
        return EngineRequest(prompt, export, Sampling(new, wishes.temperature, wishes.top_p, wishes.seed))

    def _check_sizes(self, private: int, most: int, context: int, new: int) -> None:
        config = self.config
        if new > config.max_new_tokens:
            raise Refusal(400, "bad_request", f"`max_tokens` must be at most {config.max_new_tokens}, got {new}")
        if private > most:
            message = f"a prompt must have at most {most} private tokens, got {private}"
            raise Refusal(413, "too_large", message)
        if context + new > config.max_context:
            message = f"prompt and max_tokens must together be at most {config.max_context} tokens, got {context + new}"
            raise Refusal(413, "too_large", message)

    def _submit(self, request: EngineRequest) -> Generation:
        try:
            return self.engine.submit(request)
        except BusyError:
            running, waiting = self.engine.load
            low, high = _RETRY_SECONDS
            seconds = min(high, max(low, math.ceil(self._mean_seconds * waiting / max(1, running))))
            message = "the server is busy, and its queue is full"
            raise Refusal(429, "busy", message, {"Retry-After": str(seconds)}) from None

    async def _first(self, request: Request, generation: Generation, entry: _Entry) -> Event:
        """The first event, unless time runs out or the client leaves before."""
        event = asyncio.ensure_future(generation.next())
        gone = asyncio.ensure_future(_left(request))
        try:
            left = self.config.timeout - entry.seconds
            await asyncio.wait({event, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                if gone.done():
                    raise Refusal(GONE, "gone", "the client left")
                raise Refusal(504, "timeout", f"no token within {self.config.timeout:g} seconds")
        finally:
            event.cancel()
            gone.cancel()
        if isinstance(first := event.result(), Failed):
            raise Refusal(502, "engine", first.message)
        return first

    async def _events(self, first: Event, generation: Generation, entry: _Entry) -> AsyncIterator[str]:
        """Server-sent events up to the last one."""
        entry.facts["finish"] = "gone"
        event = first
        while isinstance(event, Delta):
            entry.new_tokens += len(event.ids)
            yield _sse("token", {"text": event.text, "ids": event.ids})
            try:
                async with asyncio.timeout(self.config.timeout - entry.seconds):
                    event = await generation.next()
            except TimeoutError:
                event = Failed(f"the request took longer than {self.config.timeout:g} seconds")
        if isinstance(event, Finished):
            entry.facts["finish"] = event.reason
            yield _sse("done", {"tokens": event.tokens, "finish": event.reason})
        else:
            entry.facts["finish"] = "error"
            yield _sse("error", {"message": event.message})

    def _leave(self, generation: Generation, entry: _Entry) -> None:
        """The stream's end, whoever ended it."""
        generation.cancel()
        self._mean_seconds += 0.1 * (entry.seconds - self._mean_seconds)
        self.metrics.whole.observe(entry.seconds)
        self.metrics.new_tokens.inc(entry.new_tokens)
        self._close(entry, 200, entry.facts.get("finish", "gone"))

    def _close(self, entry: _Entry, status: int, outcome: str) -> None:
        self.open -= 1
        self.metrics.requests.labels(status=str(status)).inc()
        known = {"id": entry.id, "status": status, "finish": outcome, "new_tokens": entry.new_tokens}
        log.info("request", extra=entry.facts | known | {"seconds": round(entry.seconds, 4)})


class _EventStream(StreamingResponse):
    """A stream that says when it is over, also if it never began."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], over: Callable[[], None], headers: Mapping[str, str]) -> None:
        super().__init__(events, headers=headers)
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


class _Page(StaticFiles):
    """Static files of which a browser runs nothing that came from elsewhere."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_SAFE_PAGE)
        return response


def create_app(service: Service) -> FastAPI:
    """The ASGI application; starts the engine with the application and closes it at its end."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.engine.start()
        try:
            yield
        finally:
            await service.engine.close()

    app = FastAPI(title="del-lightning", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.exception_handler(RequestValidationError)
    async def bad_query(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Refusal(400, "bad_request", f"`{first['loc'][-1]}`: {first['msg']}").response()

    @app.post("/v1/generate")
    async def generate(request: Request, wishes: Annotated[Wishes, Query()]) -> Response:
        return await service.generate(request, wishes)

    @app.get("/v1/info")
    async def info(request: Request) -> Response:
        shown = request.headers.get("authorization")
        try:
            return JSONResponse(service.info("anyone" if shown is None else service.key_name(shown)))
        except Refusal as refusal:
            return refusal.response()

    @app.get("/health")
    async def health() -> Response:
        status = service.health()
        if status == "ok" and not await service.engine.reachable():
            status = "unreachable"
        return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    bundle = next(iter(service.exports.values())).client
    if bundle.is_dir():  # a server's folder may have been copied without the client's
        app.mount("/bundle", _Page(directory=bundle))
    app.mount("/", _Page(directory=WEB, html=True))
    return app


def _sse(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def _left(request: Request) -> None:
    """Return when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
