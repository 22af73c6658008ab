"""Attacks by patterns: permissions that are long, patterns that overlap, and patterns in large numbers."""

import asyncio
import itertools
from collections.abc import Iterator

from .attack import Attack, Stream
from .attacker import Attacker, pace, together
from .connections import Http, WebSocket
from .harm import amount, each, ratio
from .names import LISTED

__all__ = ["PATTERN_ATTACKS", "overlapping_patterns"]

_SUBJECT = "shop.eu.store42.customer7.item9.created.v1.x.y"
"""A subject of nine tokens, which is matched by 510 patterns with wildcards in some places."""
_PER_SOCKET = 126
_SILENT = "silent"
_COMMANDS_PER_SECOND = 20.0
_SOCKETS = 8
_BURST = 400


def overlapping_patterns(subject: str, fixed: int = 0) -> list[str]:
    """Return all patterns with ``*`` in some places that match a subject, those with the most alternatives first.

    Args:
        subject: The subject.
        fixed: The number of tokens at the beginning, and at the end, without a wildcard.
    """
    tokens = subject.split(".")
    places = range(fixed, len(tokens) - fixed)
    middle = len(places) / 2
    numbers = sorted(range(1, len(places)), key=lambda number: abs(number - middle))
    return list(itertools.chain.from_iterable(_with_wildcards(tokens, places, number) for number in numbers))


def _with_wildcards(tokens: list[str], places: range, number: int) -> Iterator[str]:
    for wild in itertools.combinations(places, number):
        yield ".".join("*" if place in wild else token for place, token in enumerate(tokens))


class _LongLists(Attacker):
    """Clients whose permissions are long. Each command has 127 allowed patterns, and a forbidden one that undoes it."""

    async def _attack(self) -> None:
        patterns = [f"rooms.{LISTED - 1}.a.{number}" for number in range(127)]
        await asyncio.gather(*(self._subscribe([*patterns, "forbidden"]) for _ in range(self.target.sized(8, 2))))

    async def _subscribe(self, patterns: list[str]) -> None:
        socket: WebSocket | None = None
        while True:
            async with pace(_COMMANDS_PER_SECOND):
                try:
                    if socket is None or socket.is_closed:
                        socket = await WebSocket.open(self.target.port, "profile=lists", self.target.address())
                        socket.drain()
                    socket.send("subscribe", patterns)
                    self.counts["commands"] += 1
                except OSError:
                    self.counts["failed"] += 1


class _LongQueries(Attacker):
    """Requests with 120 patterns in the query, several at once, for a client whose permissions are long."""

    async def _attack(self) -> None:
        patterns = [f"rooms.{LISTED - 1}.a.{number}" for number in range(120)]
        query = Http.query({"profile": "lists", "subjects": patterns})
        request = f"HEAD /nats/events?{query} HTTP/1.1\r\nHost: app\r\n\r\n".encode()
        await self.repeat_request(request, self.target.sized(8, 2))


class _Overlapping(Attacker):
    """Eight WebSockets with 126 patterns each that match the subject of an honest client."""

    stalled = False

    async def _prepare(self) -> None:
        self._sockets: list[WebSocket] = await together(self._open, self.target.sized(_SOCKETS, 2))

    async def _attack(self) -> None:
        if not self.stalled:
            for socket in self._sockets:
                self.keep(socket)

    async def _open(self, number: int) -> WebSocket:
        patterns = overlapping_patterns(_SUBJECT)
        begin = number * _PER_SOCKET % len(patterns)
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address(), stalled=self.stalled)
        await socket.command("subscribe", (patterns * 2)[begin : begin + _PER_SOCKET])
        return socket


class _OverlappingUnread(_Overlapping):
    """The same, but the WebSockets read nothing."""

    stalled = True


class _BelowBusyGrant(Attacker):
    """A WebSocket with nine patterns that match one silent subject, below a pattern with many messages."""

    async def _prepare(self) -> None:
        subject = ".".join([_SUBJECT.partition(".")[0], *[_SILENT] * 8])
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address())
        await socket.command("subscribe", overlapping_patterns(subject, fixed=1)[:9])
        self.keep(socket)


class _WholeGrant(Attacker):
    """A WebSocket with the pattern that covers the nine."""

    async def _prepare(self) -> None:
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address())
        await socket.command("subscribe", [f"{_SUBJECT.partition('.')[0]}.>"])
        self.keep(socket)


class _AllPatterns(Attacker):
    """WebSockets of one client with 128 patterns each, as many as one worker may have."""

    async def _attack(self) -> None:
        await together(self._open, 156, failures=self.counts)
        # One by one, because a command with too many patterns is rejected as a whole.
        await together(self._take_rest, 40, failures=self.counts)

    async def _open(self, number: int) -> None:
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address())
        socket.send("subscribe", [f"taken.{number}.{each}" for each in range(128)])
        self.keep(socket)

    async def _take_rest(self, number: int) -> None:
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address())
        self.keep(socket)
        for place in range(40):
            async with pace(5):
                socket.send("subscribe", [f"taken.rest.{number}.{place}"])


class _ManyDeliveries(Attacker):
    """WebSockets that follow a subject with bursts of messages."""

    async def _prepare(self) -> None:
        self._subject = _SUBJECT.replace("shop", "busy")
        await together(self._open, self.target.sized(1900, 20))
        self._nats = await asyncio.open_connection("127.0.0.1", self.target.nats_port)
        self._nats[1].write(b'CONNECT {"verbose":false}\r\n')

    async def _open(self, number: int) -> None:
        socket = await WebSocket.open(self.target.port, "profile=all", self.target.address(number % 4))
        await socket.command("subscribe", [self._subject])
        self.keep(socket)

    async def _attack(self) -> None:
        message = b"PUB %b 100\r\n%b\r\n" % (self._subject.encode(), bytes(100))
        while True:
            async with pace(1):
                self._nats[1].write(message * _BURST)


_OVERLAP = Stream(_SUBJECT, rate=1000)
_COPIES = each("copies of a message from NATS", "NATS messages", "published", 9)

PATTERN_ATTACKS = (
    Attack(
        "permission-lists",
        f"8 WebSockets send 20 commands/s of 128 patterns, their permissions allow and deny {LISTED} patterns each",
        _LongLists,
        lifted=("index", "units"),
    ),
    Attack(
        "head-requests",
        "8 connections send HEAD requests with 120 patterns, for the same permissions",
        _LongQueries,
        unlimited={"request_rate": 0},
        lifted=("index",),
        onset=2,
    ),
    Attack(
        "overlap",
        "8 WebSockets subscribe to 126 patterns each that match one subject, with 1,000 messages/s",
        _Overlapping,
        _COPIES,
        unlimited={"max_overlap": 1000},
        lifted=("copies",),
        stream=_OVERLAP,
    ),
    Attack(
        "overlap-unread",
        "the same, and the WebSockets read nothing",
        _OverlappingUnread,
        _COPIES,
        unlimited={"max_overlap": 1000},
        lifted=("copies",),
        stream=_OVERLAP,
    ),
    Attack(
        "overlap-silent",
        "a WebSocket subscribes to 9 patterns that match one silent subject, below a subject with 1,000 messages/s",
        _BelowBusyGrant,
        ratio("bytes from NATS, as a multiple of the quiet time's", "NATS bytes per message", 1.1),
        control_attacker=_WholeGrant,
        stream=_OVERLAP,
    ),
    Attack(
        "deliveries",
        f"1,900 WebSockets of 4 clients follow a subject with bursts of {_BURST} messages, one per second",
        _ManyDeliveries,
        amount("turns of the event loop over 60 ms", "long turns", 5),
        # The kernel delays all of this machine's sockets while so much is sent to some of them.
        bounds=(),
        lifted=("flush turns",),
        onset=2,
    ),
    Attack(
        "max-patterns",
        "196 WebSockets of one client subscribe to 20,000 patterns",
        _AllPatterns,
        amount("newcomers that cannot subscribe", "refused newcomers", 5),
        unlimited={"max_patterns_per_client": 1_000_000},
        onset=3,
    ),
)
