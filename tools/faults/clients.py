"""In the browsers' place: sessions by WebSocket and by Server-Sent Events, which write down what they get."""

import asyncio
import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from .checker import Log, Publication
from .payloads import Key, carried, key_of
from .permission_profiles import VIEWS

__all__ = ["Client", "EventClient", "RestlessClient", "WebSocketClient"]

_PATIENCE_SECONDS: Final = 15.0
_FLIP_SECONDS: Final = 0.1
"""Slower than the bridge's ``command_rate``."""


class Client(ABC):
    """One session, from its first frame until its connection ends.

    Attributes:
        access: What it may follow.
        query: How it says so when it connects.
        session: The id of its session, once it has been welcomed.
        retry: After how many seconds it is to come back if its session ends, where it was told.
        closing_retry: The same, as the ``close`` of its session has said.
        left: It has ended the session by itself.
        at: When each message was read first, by any of its patterns.
    """

    def __init__(self, name: str, patterns: Sequence[str], view: str = "open") -> None:
        self.access = VIEWS[view]
        self.log = Log(name, self.access.view, to_the_end=False)
        self.patterns = tuple(patterns)
        self.query = [("view", view)]
        self.at: dict[Key, float] = {}
        self.got: set[tuple[str, Key]] = set()
        self.session: str | None = None
        self.retry: float | None = None
        self.closing_retry: float | None = None
        self.left = False
        self._settling = False
        self._expected: set[tuple[str, Key]] = set()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def join(self, address: str) -> None:
        """Connect to a host and port, and follow the patterns; returns when the bridge has answered.

        Raises:
            ConnectionError: The bridge has not, or has refused.
        """
        self._task = asyncio.create_task(self._live(address))
        reply = await self._frame("reply")
        if not reply["success"]:
            raise ConnectionError(f"{self.log.client} was refused: {reply['message']}")

    @property
    def connected(self) -> bool:
        """The session is still the one that it began as."""
        return self._task is not None and not self._task.done()

    def expect(self, last: Iterable[Publication]) -> None:
        """Take these for the last messages that are published."""
        self._expected = {
            (pattern, each.key)
            for pattern in self.patterns
            for each in last
            if self.access.view.brings(pattern, each.subject)
        }

    @property
    def has_all(self) -> bool:
        """It is still the session that it began as, and has the last message of every subject that it follows."""
        return self.connected and self._expected <= self.got

    def first(self, since: float, *kinds: str) -> float | None:
        """When the first frame of one of these kinds was read at or after the moment."""
        return next((at for at, frame in self.log.entries if at >= since and kind_of(frame) in kinds), None)

    async def settle(self) -> None:
        """Come to rest, with the patterns subscribed."""
        self._settling = True

    async def ended(self) -> None:
        """Wait until the session has ended."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def leave(self) -> None:
        """End the session."""
        self.left = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _frame(self, kind: str, after: int = 0) -> Mapping[str, Any]:
        """The first frame of that kind behind so many."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                self._arrived.clear()
                for _, frame in self.log.entries[after:]:
                    if frame["type"] == kind:
                        return frame
                after = len(self.log.entries)
                if not self.connected:
                    raise ConnectionError(f"{self.log.client} has no connection")
                await self._arrived.wait()

    async def _live(self, address: str) -> None:
        try:
            with contextlib.suppress(OSError, WebSocketException, aiohttp.ClientError):
                async for text in self._texts(address):
                    self._take(time.monotonic(), json.loads(text))
        finally:
            self._arrived.set()

    def _take(self, now: float, frame: Mapping[str, Any]) -> None:
        self.log.entries.append((now, frame))
        self._arrived.set()
        if frame["type"] == "welcome":
            self.session = frame["session"]
        elif frame["type"] == "close" and "retry" in frame:
            self.retry = self.closing_retry = frame["retry"] / 1000
        elif frame["type"] == "message":
            data = carried(frame)
            key = None if data is None else key_of(data)
            if key is not None:
                self.at.setdefault(key, now)
                self.got.add((frame.get("pattern", frame["subject"]), key))

    @abstractmethod
    def _texts(self, address: str) -> AsyncIterator[str | bytes]:
        """The frames as they come, each one JSON object; the patterns are asked for."""


def kind_of(frame: Mapping[str, Any]) -> str:
    """What the frame says: its type; for a failed reply its code, for a status or a welcome how NATS is."""
    if frame["type"] == "reply":
        return str(frame.get("code", "reply"))
    return str(frame["nats"]) if frame["type"] in ("status", "welcome") else str(frame["type"])


class WebSocketClient(Client):
    """By the `websockets` library."""

    _connection: ClientConnection | None = None

    async def ask(self, action: str, patterns: Iterable[str]) -> Mapping[str, Any]:
        """Send a command; returns its reply.

        Raises:
            ConnectionError: The connection has ended.
        """
        assert self._connection is not None
        before = len(self.log.entries)
        command = {"action": action, "subjects": list(patterns)}
        with contextlib.suppress(WebSocketException):
            await self._connection.send(json.dumps(command))
        return await self._frame("reply", before)

    def stall(self) -> None:
        """Read nothing more from the socket."""
        assert self._connection is not None
        self._connection.transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        assert self._connection is not None
        self._connection.transport.resume_reading()

    async def _texts(self, address: str) -> AsyncIterator[str | bytes]:
        url = f"ws://{address}/nats/stream?{urlencode(self.query)}"
        async with connect(url, max_size=None, max_queue=None, compression=None, ping_interval=None) as connection:
            self._connection = connection
            await connection.send(json.dumps({"action": "subscribe", "subjects": self.patterns}))
            async for text in connection:
                yield text


class RestlessClient(WebSocketClient):
    """One that subscribes and unsubscribes without end."""

    _flipping: asyncio.Task[None] | None = None

    async def join(self, address: str) -> None:
        """Connect, and begin."""
        await super().join(address)
        self._flipping = asyncio.create_task(self._flip())

    async def leave(self) -> None:
        """End the session."""
        if self._flipping is not None:
            self._flipping.cancel()
            await asyncio.wait({self._flipping})
        await super().leave()

    async def settle(self) -> None:
        """Come to rest, with the patterns subscribed."""
        await super().settle()
        if self._flipping is not None:
            await self._flipping

    async def _flip(self) -> None:
        while not self._settling:
            for action in ("unsubscribe", "subscribe"):
                await self.ask(action, self.patterns)
                await asyncio.sleep(_FLIP_SECONDS)


class EventClient(Client):
    """By `aiohttp`."""

    worker: str | None = None
    """The process that holds the session, where the app tells."""

    async def _texts(self, address: str) -> AsyncIterator[str | bytes]:
        url = f"http://{address}/nats/events"
        query = [*self.query, *(("subjects", pattern) for pattern in self.patterns)]
        forever = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=forever) as http, http.get(url, params=query) as response:
            self.worker = response.headers.get("x-worker")
            async for line in response.content:
                name, _, value = line.partition(b": ")
                if name == b"data":
                    yield value
                elif name == b"retry":
                    self.retry = int(value) / 1000
