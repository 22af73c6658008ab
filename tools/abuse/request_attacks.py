"""Attacks by requests: new sessions, commands for sessions that don't exist, permissions, metrics and hosts."""

import asyncio
import contextlib
import json
import secrets

from .attack import Attack
from .attacker import Attacker, pace, repeat, together
from .connections import Http, WebSocket, connect, post
from .harm import amount, each, rate

__all__ = ["REQUEST_ATTACKS"]

_FOREIGN_HOST = "rebound.example"
_NEEDED = {"allowed_hosts": ["127.0.0.1"]}


class _Sessions(Attacker):
    """Clients that connect, and leave at once, as fast as the app lets them."""

    async def _attack(self) -> None:
        await repeat(self._visit, self.target.sized(50, 10), self.counts)

    async def _visit(self) -> None:
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address())
        self.counts["sessions"] += 1
        socket.abort()


class _MadeUpSessions(Attacker):
    """POSTs with made-up session ids of other workers, while another program subscribes to everything on NATS."""

    async def _prepare(self) -> None:
        self._reader, writer = await asyncio.open_connection("127.0.0.1", self.target.nats_port)
        writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB > 1\r\nPING\r\n')
        await self._reader.readuntil(b"PONG\r\n")
        self._writer = writer

    async def _attack(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._spy())
            for _ in range(self.target.sized(300, 10)):
                group.create_task(self._post(Http(self.target.port, self.target.address())))

    async def _post(self, connection: Http) -> None:
        while True:
            async with pace(1):
                session = secrets.token_urlsafe(12) + secrets.token_urlsafe(24)
                body = json.dumps({"session": session, "subjects": ["a"]}).encode()
                try:
                    self.counts[f"status {await connection.request(post('/nats/subscribe?profile=all', body))}"] += 1
                except OSError:
                    self.counts["failed"] += 1

    async def _spy(self) -> None:
        """Count the requests of the worker to others on NATS."""
        wanted = f"MSG {self.target.prefix}.worker.".encode()
        while line := await self._reader.readline():
            if line.startswith(b"PING"):
                self._writer.write(b"PONG\r\n")
            elif line.startswith((b"MSG ", b"HMSG ")):
                await self._reader.readexactly(int(line.split()[-1]) + 2)
                self.counts["requests on NATS"] += line.startswith(wanted)


class _SlowPermissions(Attacker):
    """WebSockets of one client for which the app's permissions function takes a minute."""

    async def _attack(self) -> None:
        await together(self._open, self.target.sized(1100, 30), at_once=1100, failures=self.counts)

    async def _open(self, number: int) -> None:
        # Each ends by a rejection, or by the end of the attack.
        await WebSocket.open(self.target.port, "profile=slow", self.target.address())


class _Scrapes(Attacker):
    """Requests to /metrics on several connections, as fast as the app responds."""

    async def _attack(self) -> None:
        request = b"GET /nats/metrics HTTP/1.1\r\nHost: app\r\n\r\n"
        await self.repeat_request(request, self.target.sized(256, 4))


class _Rebinding(Attacker):
    """A page of another site whose name resolves to the app's address: to its browser, both have the same origin."""

    async def _attack(self) -> None:
        reader, writer = await connect(self.target.port, self.target.address())
        writer.write(
            f"GET /nats/events?profile=all&subjects=honest.%3E HTTP/1.1\r\nHost: {_FOREIGN_HOST}\r\n"
            f"Origin: http://{_FOREIGN_HOST}\r\nSec-Fetch-Site: same-origin\r\n\r\n".encode()
        )
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                line = await reader.readuntil(b"\n")
                self.counts["read messages"] += b'"type":"message"' in line


class _RevokedUser(Attacker):
    """Thousands of WebSockets of one user, whom the app then revokes."""

    async def _prepare(self) -> None:
        await together(self._open, self.target.sized(4000, 300), failures=self.counts)

    async def _open(self, number: int) -> None:
        # From many addresses, because the limits on one address are not those that are measured.
        address = self.target.address(number % 200)
        socket = await WebSocket.open(self.target.port, "profile=user", address)
        await socket.command("subscribe", ["own.>"])
        self.keep(socket)
        self.counts["sessions"] += 1

    async def _attack(self) -> None:
        await asyncio.sleep(1)
        await Http(self.target.port, self.target.address()).request(
            b"POST /revoke/mallory HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n"
        )


class _DroppedSessions(Attacker):
    """Thousands of WebSockets of many clients that all end at once."""

    async def _prepare(self) -> None:
        self._sockets = await together(self._open, self.target.sized(8000, 100), failures=self.counts)

    async def _open(self, number: int) -> WebSocket:
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address(number % 20))
        await socket.command("subscribe", ["common.>"])
        self.counts["sessions"] += 1
        return socket

    async def _attack(self) -> None:
        await asyncio.sleep(1)
        for socket in self._sockets:
            socket.abort()


REQUEST_ATTACKS = (
    Attack(
        "sessions",
        "one client opens WebSockets as fast as it can, 50 at a time",
        _Sessions,
        rate("sessions per second", "sessions", 100),
        unlimited={"request_rate": 0},
        onset=3,
    ),
    Attack(
        "made-up-sessions",
        "one client sends 300 POSTs/s with made-up session ids of other workers; a program subscribes to > on NATS",
        _MadeUpSessions,
        rate("requests per second to other workers on NATS", "requests on NATS", 200),
        unlimited={"request_rate": 0, "max_relays": 100_000, "max_relays_per_client": 100_000},
        lifted=("workers",),
        onset=3,
    ),
    Attack(
        "slow-permissions",
        "1,100 WebSockets of one client, for whom the app's permissions function takes a minute",
        _SlowPermissions,
        amount("newcomers that cannot connect", "refused newcomers", 5),
        unlimited={"request_rate": 0, "max_permissions_calls_per_client": 1_000_000},
        onset=2,
    ),
    Attack(
        "metrics",
        "256 connections request /metrics as fast as they can",
        _Scrapes,
        settings={"metrics": True},
        lifted=("metrics",),
    ),
    Attack(
        "rebinding",
        "a page of another site, whose name resolves to the app's address, requests an event stream",
        _Rebinding,
        amount("messages that the page reads", "read messages", 1),
        limited=_NEEDED,
    ),
    Attack(
        "revoked-user",
        "one user opens 4,000 WebSockets, and the app then revokes the user",
        _RevokedUser,
        unlimited={"max_sessions_per_identity": 20_000},
        settings={"request_rate": 0},
    ),
    Attack(
        "dropped-sessions",
        "8,000 WebSockets of 20 clients end at once",
        _DroppedSessions,
        each("longest delay for each closed session (µs)", "longest delay", "sessions", 250, 0.001),
        bounds=(),
        built_in="sessions that clients end aren't spread over turns of the event loop",
    ),
)
