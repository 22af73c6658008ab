"""Clients in place of browsers: sessions by WebSocket and by Server-Sent Events, which log every frame."""

import asyncio
import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import aiohttp
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from .checker import Log
from .gap_analysis import Publication
from .payloads import Key, frame_payload, key_of
from .permission_profiles import PROFILES

__all__ = ["ChurningClient", "Client", "EventClient", "Receiver", "WebSocketClient"]

_TIMEOUT_SECONDS = 60.0
_CHURN_SECONDS = 0.1
"""Between two commands. Slower than the bridge's ``command_rate``."""


class Receiver(ABC):
    """A client as the workload and the checker see it: what it has received.

    Attributes:
        access: The permissions of the client.
        query: The query of its URL, which names its permission profile.
        session: The id of the session, once ``welcome`` was received.
        retry: Seconds after which the client must reconnect if the session ends, if it has received them.
        closing_retry: The ``retry`` of the ``close`` frame of the session.
        closed: The client itself has closed the session.
        arrival_times: The time at which each message was read first, for any of the patterns.
        received: The pattern and key of each message.
    """

    def __init__(self, name: str, patterns: Sequence[str], profile: str = "open") -> None:
        self.access = PROFILES[profile]
        self.log = Log(name, self.access.profile, complete=False)
        self.patterns = tuple(patterns)
        self.query = [("profile", profile)]
        self.arrival_times: dict[Key, float] = {}
        self.received: set[tuple[str, Key]] = set()
        self.session: str | None = None
        self.retry: float | None = None
        self.closing_retry: float | None = None
        self.closed = False
        self._settling = False
        self._expected: set[tuple[str, Key]] = set()
        self._frame_received = asyncio.Event()

    @property
    @abstractmethod
    def connected(self) -> bool:
        """True while it has a session with its subscriptions."""

    async def settle(self) -> None:
        """Stop changing subscriptions, with all patterns subscribed."""
        self._settling = True

    @abstractmethod
    async def close(self) -> None:
        """End the client."""

    def expect(self, last: Iterable[Publication]) -> None:
        """Set the last published messages, on which `has_last_messages` depends."""
        self._expected = {
            (pattern, each.key)
            for pattern in self.patterns
            for each in last
            if self.access.profile.delivers(pattern, each.subject)
        }

    @property
    def has_last_messages(self) -> bool:
        """True if the session lasts, and has the last message of every subject to which it is subscribed."""
        return self.connected and self._expected <= self.received

    def first_frame_time(self, since: float, *kinds: str) -> float | None:
        """Return the time of the first frame of one of these kinds that was read at or after ``since``."""
        return next((at for at, frame in self.log.entries if at >= since and frame_kind(frame) in kinds), None)

    def _record(self, now: float, frame: Mapping[str, Any]) -> None:
        self.log.entries.append((now, frame))
        self._frame_received.set()
        if frame["type"] == "welcome":
            self.session = frame["session"]
        elif frame["type"] == "close" and "retry" in frame:
            self.retry = self.closing_retry = frame["retry"] / 1000
        elif frame["type"] == "message":
            data = frame_payload(frame)
            key = None if data is None else key_of(data)
            if key is not None:
                self.arrival_times.setdefault(key, now)
                self.received.add((frame.get("pattern", frame["subject"]), key))


class Client(Receiver):
    """One session, from its first frame until its connection ends."""

    def __init__(self, name: str, patterns: Sequence[str], profile: str = "open") -> None:
        super().__init__(name, patterns, profile)
        self._task: asyncio.Task[None] | None = None

    async def connect(self, address: str) -> None:
        """Connect to a host and port, subscribe to the patterns, and wait for the reply.

        Raises:
            ConnectionError: The bridge did not reply, or rejected the command.
        """
        self._task = asyncio.create_task(self._run(address))
        reply = await self._wait_for_frame("reply")
        if not reply["success"]:
            raise ConnectionError(f"{self.log.client} was rejected: {reply['message']}")

    @property
    def connected(self) -> bool:
        """True until the session ends."""
        return self._task is not None and not self._task.done()

    async def wait_ended(self) -> None:
        """Wait until the session has ended."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        """End the session."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _wait_for_frame(self, kind: str, after: int = 0) -> Mapping[str, Any]:
        """Return the first frame of this type after the first ``after`` entries of the log."""
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            while True:
                self._frame_received.clear()
                for _, frame in self.log.entries[after:]:
                    if frame["type"] == kind:
                        return frame
                after = len(self.log.entries)
                if not self.connected:
                    raise ConnectionError(f"{self.log.client} has no connection")
                await self._frame_received.wait()

    async def _run(self, address: str) -> None:
        try:
            with contextlib.suppress(OSError, WebSocketException, aiohttp.ClientError):
                async for text in self._frames(address):
                    self._record(time.monotonic(), json.loads(text))
        finally:
            self._frame_received.set()

    @abstractmethod
    def _frames(self, address: str) -> AsyncIterator[str | bytes]:
        """Connect, subscribe to the patterns, and yield each frame, a JSON object, as it arrives."""


def frame_kind(frame: Mapping[str, Any]) -> str:
    """Return the type of a frame; for a failed reply its code, for a status or a welcome the status of NATS."""
    if frame["type"] == "reply":
        return str(frame.get("code", "reply"))
    return str(frame["nats"]) if frame["type"] in ("status", "welcome") else str(frame["type"])


class WebSocketClient(Client):
    """A client that uses the `websockets` library."""

    _connection: ClientConnection | None = None

    async def send_command(self, action: str, patterns: Iterable[str]) -> Mapping[str, Any]:
        """Send a command, and return its reply.

        Raises:
            ConnectionError: The connection has ended.
        """
        assert self._connection is not None
        before = len(self.log.entries)
        command = {"action": action, "subjects": list(patterns)}
        with contextlib.suppress(WebSocketException):
            await self._connection.send(json.dumps(command))
        return await self._wait_for_frame("reply", before)

    def stall(self) -> None:
        """Stop reading from the socket."""
        assert self._connection is not None
        self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Read from the socket again."""
        assert self._connection is not None
        self._connection.transport.resume_reading()

    async def _frames(self, address: str) -> AsyncIterator[str | bytes]:
        url = f"ws://{address}/nats/stream?{urlencode(self.query)}"
        async with connect(url, max_size=None, max_queue=None, compression=None, ping_interval=None) as connection:
            self._connection = connection
            await connection.send(json.dumps({"action": "subscribe", "subjects": self.patterns}))
            async for text in connection:
                yield text


class ChurningClient(WebSocketClient):
    """A client that continuously unsubscribes and subscribes."""

    _churn_task: asyncio.Task[None] | None = None

    async def connect(self, address: str) -> None:
        """Connect, and begin to unsubscribe and subscribe."""
        await super().connect(address)
        self._churn_task = asyncio.create_task(self._churn())

    async def close(self) -> None:
        """End the session."""
        if self._churn_task is not None:
            self._churn_task.cancel()
            await asyncio.wait({self._churn_task})
        await super().close()

    async def settle(self) -> None:
        """Stop changing subscriptions, with all patterns subscribed."""
        await super().settle()
        if self._churn_task is not None:
            await self._churn_task

    async def _churn(self) -> None:
        while not self._settling:
            for action in ("unsubscribe", "subscribe"):
                await self.send_command(action, self.patterns)
                await asyncio.sleep(_CHURN_SECONDS)


class EventClient(Client):
    """A client that uses `aiohttp`."""

    worker: str | None = None
    """The process that holds the session, if the app names it."""

    async def _frames(self, address: str) -> AsyncIterator[str | bytes]:
        url = f"http://{address}/nats/events"
        query = [*self.query, *(("subjects", pattern) for pattern in self.patterns)]
        no_timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=no_timeout) as http, http.get(url, params=query) as response:
            self.worker = response.headers.get("x-worker")
            async for line in response.content:
                name, _, value = line.partition(b": ")
                if name == b"data":
                    yield value
                elif name == b"retry":
                    self.retry = int(value) / 1000
