"""Attacks by publishes and requests: too many, large ones, those that nothing answers, and those behind slow checks."""

import asyncio
import contextlib
import json
from typing import Any

from .attack import Attack
from .attacker import Attacker, pace, repeat, together
from .connections import Http, WebSocket, frame, post
from .harm import amount, memory, rate

__all__ = ["PUBLISH_ATTACKS"]

_UNLIMITED_RATE = {"publish_rate": 1_000_000, "publish_burst": 1_000_000}
_AT_ONCE = 100
_SILENT, _ECHO = "silent", "echo"
_LARGE_BYTES = 64_000
_SESSIONS = 100
"""The default of ``max_sessions_per_identity``."""


def _command(action: str, subject: str, **fields: Any) -> bytes:
    return frame(json.dumps({"action": action, "subject": subject, "id": 1} | fields).encode())


class _Publishes(Attacker):
    """WebSockets that publish as fast as the app reads, and reconnect when they are closed."""

    size = 1

    async def _attack(self) -> None:
        self._sent = _command("publish", "flood", data="x" * self.size) * (_AT_ONCE if self.size == 1 else 1)
        await repeat(self._publish, self.target.sized(20, 2), self.counts)

    async def _publish(self) -> None:
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address())
        socket.drain()
        try:
            while not socket.is_closed:
                socket.writer.write(self._sent)
                await socket.writer.drain()
        finally:
            socket.abort()


class _LargePublishes(_Publishes):
    """The same with 64 kB in each publish."""

    size = _LARGE_BYTES


class _Posts(Attacker):
    """POSTs to /publish on several connections, as fast as the app responds."""

    async def _attack(self) -> None:
        body = json.dumps({"subject": "flood", "data": 1}).encode()
        await self.repeat_request(post("/nats/publish?profile=all", body), self.target.sized(100, 4))


class _Unanswered(Attacker):
    """Requests of one user that a service never answers, while another client sends requests to a quick service."""

    async def _prepare(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target.nats_port)
        writer.write(
            f'CONNECT {{"verbose":false,"headers":true}}\r\nSUB {_SILENT} 1\r\nSUB {_ECHO} 2\r\nPING\r\n'.encode()
        )
        await reader.readuntil(b"PONG\r\n")
        self._reader, self._writer = reader, writer

    async def _attack(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._answer())
            await together(self._open, self.target.sized(_SESSIONS, 5), failures=self.counts)
            group.create_task(self._ask())

    async def _answer(self) -> None:
        """Answer requests on one of the subjects."""
        while line := await self._reader.readline():
            if line.startswith(b"PING"):
                self._writer.write(b"PONG\r\n")
            elif line.startswith((b"MSG ", b"HMSG ")):
                fields = line.split()
                await self._reader.readexactly(int(fields[-1]) + 2)
                if fields[1] == _ECHO.encode():
                    self._writer.write(b"PUB %b 1\r\n1\r\n" % fields[3])

    async def _open(self, number: int) -> None:
        socket = await WebSocket.open(self.target.port, "profile=user", self.target.address())
        self.keep(socket)
        self._loop.create_task(self._request(socket))

    async def _request(self, socket: WebSocket) -> None:
        """Keep as many requests waiting as the app allows."""
        with contextlib.suppress(OSError):
            while not socket.is_closed:
                async with pace(8):
                    socket.writer.write(_command("request", _SILENT))
                    await socket.writer.drain()

    async def _ask(self) -> None:
        """Send requests as another client does."""
        connection = Http(self.target.port, self.target.address(1))
        request = post("/nats/request?profile=honest", json.dumps({"subject": _ECHO}).encode())
        while True:
            async with pace(10):
                status = await connection.request(request)
                self.counts["requests of another client"] += 1
                self.counts["refused requests of another client"] += status != 200


class _SlowChecks(Attacker):
    """WebSockets of one user with large publishes, for which the app's check takes a minute."""

    async def _attack(self) -> None:
        await together(self._open, self.target.sized(_SESSIONS, 5), failures=self.counts)

    async def _open(self, number: int) -> None:
        socket = await WebSocket.open(self.target.port, "profile=user", self.target.address())
        self.keep(socket)
        for _ in range(100):
            socket.writer.write(_command("publish", "slow.a", data="x" * _LARGE_BYTES))
        await socket.writer.drain()
        self.counts["connections"] += 1


PUBLISH_ATTACKS = (
    Attack(
        "publishes",
        "20 WebSockets of one client publish as fast as they can, and reconnect when they are closed",
        _Publishes,
        rate("messages per second to NATS", "messages to NATS", 5_000),
        unlimited=_UNLIMITED_RATE,
        onset=3,
    ),
    Attack(
        "large-publishes",
        "the same with 64 kB in each publish",
        _LargePublishes,
        rate("messages per second to NATS", "messages to NATS", 1_000),
        unlimited=_UNLIMITED_RATE,
        onset=3,
    ),
    Attack(
        "publish-posts",
        "100 connections of one client send POSTs to /publish as fast as they can",
        _Posts,
        rate("messages per second to NATS", "messages to NATS", 200),
        unlimited={"request_rate": 0} | _UNLIMITED_RATE,
        onset=3,
    ),
    Attack(
        "unanswered-requests",
        "100 WebSockets of one user keep sending requests that nothing answers, while another client sends requests",
        _Unanswered,
        amount("refused requests of another client", "refused requests of another client", 3),
        lifted=("shares",),
        onset=3,
    ),
    Attack(
        "slow-checks",
        "100 WebSockets of one user publish 100 times 64 kB, for which the app's check takes a minute",
        _SlowChecks,
        memory(3000),
        unlimited={"max_pending_bytes": 64 * 2**20} | _UNLIMITED_RATE,
    ),
)
