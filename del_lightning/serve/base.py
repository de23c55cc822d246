"""What every engine is to the server: requests in, events out.

submit(request) -> Generation      or Busy, at once
Generation.next() -> Delta ... Delta, Finished | Failed
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from del_lightning.errors import DelError
from del_lightning.serve.exports import Export, Prompt
from del_lightning.serve.sampling import Sampling


class BusyError(DelError):
    """As many requests wait as may."""


@dataclass(frozen=True)
class Delta:
    """New tokens and the text that is certain since; the text may be empty."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Finished:
    """The end: how many tokens there were, and why no more, "stop" (end of text) or "length"."""

    tokens: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """The end, too early: what went wrong, in words that may be shown to the client."""

    message: str


Event = Delta | Finished | Failed


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt, the export that it was made for, and the client's wishes."""

    prompt: Prompt
    export: Export
    sampling: Sampling


class Generation:
    """Events of one request, in order; belongs to the event loop.

    Args:
        cancel: Called when nobody waits for further events.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Add an event; only from the event loop's thread."""
        self._events.put_nowait(event)

    async def next(self) -> Event:
        """Wait for the next event. Behind Finished or Failed there is none."""
        return await self._events.get()


class Engine(ABC):
    """Runs requests. Must be started and used on one event loop.

    Attributes:
        name: Word used in configuration and in ``/v1/info``.
    """

    name: str

    @abstractmethod
    async def start(self) -> None:
        """Get ready for requests."""

    @abstractmethod
    async def close(self) -> None:
        """Stop; requests that still run fail."""

    @abstractmethod
    def submit(self, request: Request) -> Generation:
        """Take a request.

        Raises:
            BusyError: The queue is full.
        """

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """Whether requests can be served."""

    async def reachable(self) -> bool:
        """Whether what the engine depends on answers; asked by ``/health`` only."""
        return self.healthy

    @property
    @abstractmethod
    def load(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
