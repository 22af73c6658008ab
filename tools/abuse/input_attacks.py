"""Attacks by input: bodies and messages in tiny parts, and messages that never end."""

import json
from abc import ABC, abstractmethod

from .attack import Attack
from .attacker import Attacker, repeat, together
from .connections import WebSocket, connect, frame
from .harm import memory

__all__ = ["INPUT_ATTACKS"]

_MEBIBYTE = 2**20
_BODY_BYTES = 65_000
_CONNECTIONS = 100
"""In tiny attacks too, because with fewer the memory for each would depend on everything else."""
_CONTINUATION, _TEXT = 0, 1
_LARGE = {"max_command_bytes": 64 * _MEBIBYTE}


class _TinyChunks(Attacker):
    """POSTs whose body comes in chunks of one byte."""

    async def _prepare(self) -> None:
        body = json.dumps({"session": "x", "subjects": ["a"], "p": "x" * self.target.sized(_BODY_BYTES, 2000)}).encode()
        self._request = (
            b"POST /nats/subscribe?profile=all HTTP/1.1\r\nHost: app\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            + b"".join(b"1\r\n%c\r\n" % byte for byte in body)
            + b"0\r\n\r\n"
        )

    async def _attack(self) -> None:
        await repeat(self._post, self.target.sized(8, 2), self.counts)

    async def _post(self) -> None:
        reader, writer = await connect(self.target.port, self.target.address())
        try:
            writer.write(self._request)
            self.counts[f"status {(await reader.readline())[9:12].decode()}"] += 1
            await reader.read()
        finally:
            writer.close()


class _TinyFragments(Attacker):
    """WebSockets that send messages in fragments of one byte."""

    async def _attack(self) -> None:
        await repeat(self._send, self.target.sized(16, 2), self.counts)

    async def _send(self) -> None:
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address())
        message = frame(b" ", _TEXT, final=False) + frame(b" ", _CONTINUATION, final=False) * 30_000
        message += frame(b'{"action":"ping"}', _CONTINUATION)
        socket.drain()
        try:
            while not socket.is_closed:
                socket.writer.write(message)
                await socket.writer.drain()
                self.counts["messages"] += 1
        finally:
            socket.abort()


class _Unfinished(Attacker, ABC):
    """Clients that send the beginning of a message, and keep it so. Subclasses decide which."""

    async def _attack(self) -> None:
        self._opened: list[object] = []
        await together(self._open, _CONNECTIONS, failures=self.counts)

    async def _open(self, number: int) -> None:
        self._opened.append(await self._begin(number))
        self.counts["connections"] += 1

    @abstractmethod
    async def _begin(self, number: int) -> object:
        """Connect, send the beginning, and return what keeps the connection open."""


class _HalfFrames(_Unfinished):
    """WebSockets that send a frame of 1 MiB, but for its last bytes."""

    async def _begin(self, number: int) -> object:
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address())
        socket.writer.write(frame(b"x" * (_MEBIBYTE - 64), length=_MEBIBYTE))
        socket.drain()
        return socket


class _Fragments(_Unfinished):
    """WebSockets that send a fragment of 1 MiB, but for its last bytes, after another one."""

    async def _begin(self, number: int) -> object:
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address())
        socket.writer.write(frame(b"x" * 60_000, final=False))
        socket.writer.write(frame(b"x" * (900_000 - 64), _CONTINUATION, final=False, length=900_000))
        socket.drain()
        return socket


class _HalfBodies(_Unfinished):
    """POSTs with a body of 1 MiB, but for its last bytes."""

    async def _begin(self, number: int) -> object:
        reader, writer = await connect(self.target.port, self.target.address())
        writer.write(
            b"POST /nats/subscribe?profile=all HTTP/1.1\r\nHost: app\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % _MEBIBYTE + b"x" * (_MEBIBYTE - 64)
        )
        return reader, writer


class _HalfHeads(_Unfinished):
    """Requests whose head doesn't end."""

    async def _begin(self, number: int) -> object:
        reader, writer = await connect(self.target.port, self.target.address())
        writer.write(b"GET /nats/events HTTP/1.1\r\nHost: app\r\nX: " + b"x" * 8000)
        return reader, writer


class _Pipelined(_Unfinished):
    """Event streams with 1 MiB of further requests behind them."""

    async def _begin(self, number: int) -> object:
        reader, writer = await connect(self.target.port, self.target.address())
        writer.write(b"GET /nats/events?profile=all HTTP/1.1\r\nHost: app\r\n\r\n")
        await reader.readuntil(b"welcome")
        request = b"GET /nats/health/live HTTP/1.1\r\nHost: app\r\n\r\n"
        writer.write(request * (_MEBIBYTE // len(request)))
        return reader, writer


INPUT_ATTACKS = (
    Attack(
        "tiny-chunks",
        "8 connections send POSTs whose body of 65 kB comes in chunks of one byte",
        _TinyChunks,
        unlimited={"request_rate": 0, "max_body_parts": 1_000_000_000},
        lifted=("body turns",),
    ),
    Attack(
        "tiny-fragments",
        "16 WebSockets send messages in fragments of one byte",
        _TinyFragments,
        unlimited={"request_rate": 0},
        lifted=("fragments", "slices"),
    ),
    Attack(
        "half-frames",
        "100 WebSockets send a frame of 1 MiB without its end",
        _HalfFrames,
        memory(512),
        unlimited=_LARGE,
    ),
    Attack(
        "half-fragments",
        "100 WebSockets send a fragment, then one of 900 kB without its end",
        _Fragments,
        memory(512),
        unlimited=_LARGE,
    ),
    Attack(
        "half-bodies",
        "100 POSTs with a body of 1 MiB without its end",
        _HalfBodies,
        memory(512),
        unlimited=_LARGE,
    ),
    Attack(
        "half-heads",
        "100 requests with a head of 8 kB without its end",
        _HalfHeads,
        memory(48),
        built_in="a limit of Sanic",
    ),
    Attack(
        "pipelining",
        "100 event streams with 1 MiB of further requests behind them",
        _Pipelined,
        memory(48),
        lifted=("pipelining",),
    ),
)
