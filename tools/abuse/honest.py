"""The honest clients, in a process of their own: one follows a subject, others come and go."""

import asyncio
import contextlib
import time
from collections import Counter

from ..benchmarks.payloads import find_stamps
from .connections import WebSocket
from .results import Seen, seen

__all__ = ["HonestClients"]

_PATIENCE_SECONDS = 5.0
"""The time that messages may still take after the last one was published. Then they are lost."""
_RECONNECT_SECONDS = 0.2
_NEWCOMER_SECONDS = 0.25


class HonestClients:
    """A client that follows a subject, and newcomers that subscribe to a new one each.

    Args:
        port: The port of the app.
        subject: The subject.
    """

    def __init__(self, port: int, subject: str) -> None:
        self._port = port
        self._subject = subject
        self._loop = asyncio.new_event_loop()
        self._connection: WebSocket | None = None
        self._newcomers = 0
        self._counts: Counter[str] = Counter()

    def connect(self) -> None:
        """Connect the client, and subscribe."""
        self._loop.run_until_complete(self._connect())

    def follow(self, first: int, count: int, seconds: float) -> Seen:
        """Receive messages, until all have arrived or some seconds after the last one was published.

        Args:
            first: The number of the first message.
            count: The number of messages.
            seconds: The time in which they are published.
        """
        return self._loop.run_until_complete(self._follow(first, count, seconds))

    def counted(self) -> dict[str, float]:
        """Return the numbers of newcomers, and of those that were refused, since the last call."""
        counts, self._counts = self._counts, Counter()
        return {name: float(count) for name, count in counts.items()}

    async def _connect(self) -> None:
        connection = await WebSocket.open(self._port, "profile=honest")
        reply = await connection.command("subscribe", [self._subject])
        if not reply.get("success"):
            connection.abort()
            raise ConnectionError(str(reply))
        self._connection = connection

    async def _follow(self, first: int, count: int, seconds: float) -> Seen:
        delays: dict[int, float] = {}
        lost_connections = 0
        newcomers = asyncio.create_task(self._come(seconds))
        try:
            async with asyncio.timeout(seconds + _PATIENCE_SECONDS):
                while len(delays) < count:
                    try:
                        await self._receive(first, count, delays)
                    except ConnectionError:
                        lost_connections += 1
                        await self._reconnect()
        except TimeoutError:
            pass
        newcomers.cancel()
        await asyncio.wait({newcomers})
        return seen(count, list(delays.values()), lost_connections)

    async def _receive(self, first: int, count: int, delays: dict[int, float]) -> None:
        assert self._connection is not None
        while len(delays) < count:
            data = await self._connection.receive_bytes()
            now = time.monotonic_ns()
            if data.startswith(b'{"type":"gap"'):
                self._counts["gaps"] += 1
            for number, sent in find_stamps(data)[0]:
                if number >= first:
                    delays.setdefault(number, (now - sent) / 1e6)

    async def _reconnect(self) -> None:
        while True:
            await asyncio.sleep(_RECONNECT_SECONDS)
            with contextlib.suppress(OSError):
                await self._connect()
                return

    async def _come(self, seconds: float) -> None:
        """Let a newcomer connect and subscribe several times per second."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        visits = set()
        while loop.time() < end:
            visits.add(asyncio.create_task(self._visit()))
            await asyncio.sleep(_NEWCOMER_SECONDS)
        await asyncio.gather(*visits)

    async def _visit(self) -> None:
        self._newcomers += 1
        self._counts["newcomers"] += 1
        connection: WebSocket | None = None
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                connection = await WebSocket.open(self._port, "profile=honest")
                reply = await connection.command("subscribe", [f"fresh.{self._newcomers}"])
            succeeded = bool(reply.get("success"))
        except (OSError, TimeoutError):
            succeeded = False
        finally:
            if connection is not None:
                connection.abort()
        if not succeeded:
            self._counts["refused newcomers"] += 1
