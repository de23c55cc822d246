"""The distributed engine: a thin gateway in front of a vLLM deployment.

vLLM's OpenAI-compatible server takes a prompt as embeddings, if it was started with ``--enable-prompt-embeds``. So the
gateway decodes the codes, puts the soft prompt in front, and sends one request

    POST <url>/v1/completions   {"model", "prompt_embeds": base64 of torch.save'd (T, b), "stream": true, ...}

whose streamed answer it passes on. It holds embeddings and codecs, no layers; NVIDIA Dynamo takes the same requests.
vLLM draws from a generator of its own: the same seed gives other tokens than the embedded engine.
"""

import asyncio
import base64
import io
import json
import logging
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import torch
from torch import Tensor

from del_lightning.serve.base import BusyError, Delta, Engine, Event, Failed, Finished, Generation, Request

_CONNECT_SECONDS = 10.0
_PROBE_SECONDS = 2.0
"""Longest wait for vLLM's own /health."""

_PROBE_KEPT = 5.0
"""Seconds for which its answer holds."""

log = logging.getLogger(__name__)
_UNREACHABLE = "the engine behind this server cannot be reached"
_BROKEN = "the server failed while it talked to its engine"


class VllmEngine(Engine):
    """Sends requests on to vLLM.

    Args:
        url: Address of the deployment, without ``/v1``.
        model: Name under which it serves the language model.
        key: Its API key, if it has one.
        rows: Most requests that are sent at the same time.
        queue: Most requests that wait here.
        transport: For tests; None connects over the network.
    """

    name = "vllm"

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        *,
        rows: int,
        queue: int,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url, self._model = url.rstrip("/") + "/v1/completions", model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._rows, self._queue, self._transport = rows, queue, transport
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0
        self._client: httpx.AsyncClient | None = None
        self._health_url = url.rstrip("/") + "/health"
        self._probed, self._reachable = -math.inf, False

    async def start(self) -> None:
        """Open the connections."""
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)  # the server bounds whole requests
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(
            headers=self._headers, timeout=timeout, limits=limits, transport=self._transport
        )
        self._places = asyncio.Semaphore(self._rows)

    async def close(self) -> None:
        """Give up what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def submit(self, request: Request) -> Generation:
        """Queue a request.

        Raises:
            BusyError: All places here are taken.
        """
        if len(self._tasks) >= self._rows + self._queue:
            raise BusyError(f"{len(self._tasks) - self._running} requests wait already")
        generation = Generation(lambda: _cancel(task))
        task = asyncio.create_task(self._serve(request, generation))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, generation))
        return generation

    def _ended(self, task: "asyncio.Task[None]", generation: Generation) -> None:
        """However a request ended, whoever waits for its events gets a last one; behind it nobody looks."""
        self._tasks.discard(task)
        if task.cancelled():
            generation.put(Failed("the server stops"))
        elif (error := task.exception()) is not None:
            log.error("a request to vLLM failed", exc_info=error)  # in the log by its type and place only
            generation.put(Failed(_UNREACHABLE if isinstance(error, httpx.HTTPError) else _BROKEN))

    @property
    def healthy(self) -> bool:
        """Whether it was started and not closed; vLLM itself is asked by each request and by :meth:`reachable`."""
        return self._client is not None

    async def reachable(self) -> bool:
        """Whether vLLM answers; asked at most every few seconds. A deployment without /health (404) counts as there."""
        if self._client is None:
            return False
        if time.monotonic() - self._probed > _PROBE_KEPT:
            try:
                response = await self._client.get(self._health_url, timeout=_PROBE_SECONDS)
                self._reachable = response.status_code < httpx.codes.INTERNAL_SERVER_ERROR
            except (httpx.HTTPError, httpx.InvalidURL):
                self._reachable = False
            self._probed = time.monotonic()
        return self._reachable

    @property
    def load(self) -> tuple[int, int]:
        """Requests sent on, and waiting here."""
        return self._running, len(self._tasks) - self._running

    async def _serve(self, request: Request, generation: Generation) -> None:
        """Pass the events of one request on."""
        async with self._places:
            self._running += 1
            try:
                async for event in self._stream(request):
                    generation.put(event)
            finally:
                self._running -= 1

    def _body(self, request: Request) -> dict[str, Any]:
        """The request in vLLM's words. Everything that its own defaults would decide is said."""
        export, sampling = request.export, request.sampling
        soft = export.soft_prompt.embeddings.detach()
        restored = export.embed(request.prompt)
        return {
            "model": self._model,
            "prompt_embeds": encode_embeddings(torch.cat([soft.to(restored), restored])),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": -1,
            "repetition_penalty": 1.0,
            "seed": sampling.seed,
            "stop_token_ids": sorted(export.end_ids),
            "stream": True,
            "return_token_ids": True,
        }

    async def _stream(self, request: Request) -> AsyncIterator[Event]:
        """Events of one request: any number of Delta, then Finished or Failed."""
        assert self._client is not None
        tokens, body = 0, await asyncio.to_thread(self._body, request)
        async with self._client.stream("POST", self._url, json=body) as response:
            if response.status_code != httpx.codes.OK:
                yield Failed(f"the engine behind this server answered with status {response.status_code}")
                return
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                for event in _events(data, tokens, request.export.end_ids):
                    tokens += len(event.ids) if isinstance(event, Delta) else 0
                    yield event
                    if not isinstance(event, Delta):
                        return
        yield Failed("the engine behind this server broke off")


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()


def encode_embeddings(embeddings: Tensor) -> str:
    """Write embeddings (T, b) the way vLLM reads them: base64 of a dense tensor saved by torch, on the CPU."""
    buffer = io.BytesIO()
    torch.save(embeddings.detach().cpu().clone(), buffer)  # of a view, all of its storage would be saved
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _events(data: str, before: int, ends: frozenset[int]) -> list[Event]:
    """What one chunk of the answer says, end tokens left out; ``before``: tokens of the chunks before it."""
    try:
        content = json.loads(data)
        if "error" in content:
            return [Failed("the engine behind this server reported an error")]
        choice = content["choices"][0]
        text, reason = str(choice["text"]), choice.get("finish_reason")
        ids = [int(token) for token in choice.get("token_ids") or [] if token not in ends]
    except (ValueError, KeyError, IndexError, TypeError):
        return [Failed("the engine behind this server sent what is no completion")]
    events: list[Event] = [Delta(text, ids)] if text or ids else []
    if reason is not None:
        events.append(Finished(before + len(ids), str(reason)))
    return events
