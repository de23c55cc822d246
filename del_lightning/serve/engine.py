"""The embedded engine: the frozen LLM in this process, many requests in one batch.

    event loop                           scheduler thread
    submit(request) --> waiting --+      while there is work:
                                  +----->  drop who has left; admit waiting requests into free rows (prompt, 1st token)
    Generation <-- events --------+------  one decoding step of all rows: one token each; who is done leaves

Requests thus join and leave between any two tokens. The keys and values of a soft prompt are computed once and copied
into every row that uses it. What one request gets does not depend on the others, but for the order in which a batch
sums floating-point numbers: each has a generator of its own (:mod:`del_lightning.serve.sampling`).
"""

import asyncio
import copy
import logging
import threading
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from del_lightning.llm import FrozenLLM
from del_lightning.serve.base import BusyError, Delta, Engine, Event, Failed, Finished, Generation, Request
from del_lightning.serve.batch import RunningBatch, States
from del_lightning.serve.exports import Export
from del_lightning.serve.sampling import Sampler
from del_lightning.serve.text import TextStream

_PROMPTS_A_STEP = 512
"""Prompt tokens that may be read between two decoding steps, a first request aside: others wait for their tokens."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    """A request on its way."""

    request: Request
    sampler: Sampler
    text: TextStream
    generation: Generation = field(init=False)
    tokens: int = 0
    last: int = -1
    left: bool = False


class TransformersEngine(Engine):
    """Continuous batching on a :class:`FrozenLLM`.

    Args:
        llm: The language model of all exports.
        exports: Those whose soft prompts are computed in advance.
        rows: Most requests that generate at the same time.
        queue: Most requests that wait for a row.
        threads: Processor threads that decoding uses; None leaves what torch has. See
            :func:`del_lightning.stages.serve.reserve_cores`.
    """

    name = "transformers"

    def __init__(
        self, llm: FrozenLLM, exports: list[Export], *, rows: int, queue: int, threads: int | None = None
    ) -> None:
        self._rows, self._queue, self._threads = rows, queue, threads
        self._device = llm.device
        self._tokenizer = copy.deepcopy(llm.tokenizer)  # the event loop's thread uses the other one
        self._batch = RunningBatch(llm)
        self._states = {export.manifest.setting: self._soft_prompt(export) for export in exports}
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._outbox: list[tuple[Generation, Event]] = []
        self._change = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)

    # --- on the event loop -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the scheduler."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Stop after the current step; requests that still run fail."""
        with self._change:
            self._closing = True
            self._change.notify()
        await asyncio.to_thread(self._thread.join)

    def submit(self, request: Request) -> Generation:
        """Queue a request.

        Raises:
            BusyError: All rows and places in the queue are taken.
        """
        job = _Job(request, Sampler(request.sampling, self._device), TextStream(self._tokenizer))
        job.generation = Generation(lambda: self._cancel(job))
        with self._change:
            if len(self._running) + len(self._waiting) >= self._rows + self._queue:
                raise BusyError(f"{len(self._waiting)} requests wait already")
            self._waiting.append(job)
            self._change.notify()
        return job.generation

    @property
    def healthy(self) -> bool:
        """Whether the scheduler runs."""
        return self._thread.is_alive() and not self._closing

    @property
    def load(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        return len(self._running), len(self._waiting)

    def _cancel(self, job: _Job) -> None:
        with self._change:
            job.left = True
            if job in self._waiting:
                self._waiting.remove(job)

    # --- on the scheduler's thread ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def _work(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)  # of this thread
        try:
            while self._wait():
                self._turn()
                self._deliver()
        finally:
            self._closing = True
            self._fail("the server stops")
            self._deliver()

    def _wait(self) -> bool:
        """Sleep until there is work; whether there is."""
        with self._change:
            self._change.wait_for(lambda: self._closing or self._running or self._waiting)
            return not self._closing

    def _turn(self) -> None:
        """Everything between two decoding steps, and one of these."""
        try:
            for row in reversed(range(len(self._running))):
                if self._running[row].left:
                    self._leave(row)
            self._admit()
            if self._running:
                self._step()
        except RuntimeError as error:  # torch's, out of memory for one; the message may show what it was about
            log.error("a step failed", extra={"error": type(error).__name__})
            self._batch = RunningBatch(self._batch.llm)
            self._fail("the engine could not compute this request")

    def _admit(self) -> None:
        """Give free rows to waiting requests, and each its first token."""
        read = 0
        while len(self._running) < self._rows and read < _PROMPTS_A_STEP:
            with self._change:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                self._running.append(job)
            prompt, export = job.request.prompt, job.request.export
            logits = self._batch.join(export.embed(prompt), self._states[export.manifest.setting])
            self._advance(len(self._running) - 1, logits)
            read += len(prompt)

    def _step(self) -> None:
        """One more token for every row; from the last row on, because the last takes the place of one that leaves."""
        logits = self._batch.step([job.last for job in self._running])
        for row in reversed(range(len(self._running))):
            self._advance(row, logits[row])

    def _advance(self, row: int, logits: Tensor) -> None:
        """Choose a request's next token and tell the client; the request leaves if that was its last one."""
        job = self._running[row]
        token = job.sampler.choose(logits)
        if token in job.request.export.end_ids:
            self._finish(row, "stop")
            return
        job.tokens, job.last = job.tokens + 1, token
        self._outbox.append((job.generation, Delta(job.text.push(token), [token])))
        if job.tokens == job.request.sampling.max_tokens:
            self._finish(row, "length")

    def _finish(self, row: int, reason: str) -> None:
        job = self._running[row]
        if rest := job.text.finish():
            self._outbox.append((job.generation, Delta(rest, [])))
        self._outbox.append((job.generation, Finished(job.tokens, reason)))
        self._leave(row)

    def _leave(self, row: int) -> None:
        self._batch.leave(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last

    def _fail(self, message: str) -> None:
        """End all requests that run, and when closing those that wait."""
        with self._change:
            failed, self._running = self._running, []
            if self._closing:
                failed, self._waiting = [*failed, *self._waiting], deque()
        self._outbox += [(job.generation, Failed(message)) for job in failed]

    def _deliver(self) -> None:
        """Hand the step's events to the event loop at once."""
        events, self._outbox = self._outbox, []
        if events and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_put, events)

    @torch.inference_mode()
    def _soft_prompt(self, export: Export) -> States:
        """Keys and values of a soft prompt."""
        self._batch.join(export.soft_prompt.embeddings.detach())
        states = self._batch.states(0)
        self._batch.leave(0)
        return states


def _put(events: list[tuple[Generation, Event]]) -> None:
    for generation, event in events:
        generation.put(event)
