"""Commands by POST for event streams, each on a connection of its own, and how long they take."""

import contextlib
import json
import re
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final, NamedTuple

__all__ = ["Posts", "Times"]

_STREAM: Final = b"GET /nats/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
_POST: Final = (
    b"POST /nats/%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
)
_DONE: Final = re.compile(rb'HTTP/1\.1 200 .*"success":true.*', re.DOTALL)
_SESSION: Final = re.compile(rb'"session":"([^"]+)"')
_ACTIONS: Final = ("subscribe", "unsubscribe")
_READ_BYTES: Final = 65_536
_PATIENCE_SECONDS: Final = 15.0
_RETRY_SECONDS: Final = 0.05
_REHEARSALS: Final = 10


class Times(NamedTuple):
    """From before a connection is made until the whole answer has been read, each in nanoseconds."""

    local: list[int]
    relayed: list[int]


class Posts:
    """Event streams of one worker, and commands for them that arrive there and at another."""

    def __init__(self, home: int, away: int, streams: int) -> None:
        """The workers are named by their ports; the streams are at ``home``."""
        self._ports = (home, away)
        opened = [_open_stream(home) for _ in range(streams)]
        self._streams = [connection for connection, _ in opened]
        self._sessions = [session for _, session in opened]
        self._names = (f"bench.post.{number}" for number in count())

    def rehearse(self) -> None:
        """Wait until commands are answered on both ways, and have some answered.

        Raises:
            RuntimeError: They are not.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                self.measure(_ACTIONS[0], _REHEARSALS)
            except RuntimeError:
                # A worker may not have found NATS yet, and so the other.
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def measure(self, action: str, rounds: int) -> Times:
        """Subscribe and unsubscribe all streams at once, so many times on both ways in turns; the times of one action.

        Each time it is a subject that nobody has followed, for which NATS is asked.

        Raises:
            RuntimeError: A command was not carried out.
        """
        times = Times([], [])
        for _ in range(rounds):
            for port, taken in zip(self._ports, times, strict=True):
                names = [next(self._names) for _ in self._sessions]
                for each in _ACTIONS:
                    found = _carry_out(port, list(self._requests(each, names)))
                    if each == action:
                        taken.extend(found)
        return times

    def close(self) -> None:
        """Have the streams end."""
        for connection in self._streams:
            connection.close()

    def _requests(self, action: str, names: Sequence[str]) -> Iterator[bytes]:
        for session, name in zip(self._sessions, names, strict=True):
            body = json.dumps({"session": session, "subjects": [name]}).encode()
            yield _POST % (action.encode(), len(body), body)


class _Exchange:
    """A request on a connection of its own, and what is answered."""

    def __init__(self, port: int, request: bytes) -> None:
        self.started = self.ended = time.monotonic_ns()
        self.heard = b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request)

    def read(self) -> bool:
        """Read what has come; whether it goes on."""
        data = self.socket.recv(_READ_BYTES)
        if data:
            self.ended = time.monotonic_ns()
            self.heard += data
        return bool(data)


def _open_stream(port: int) -> tuple[socket.socket, str]:
    """A connection, and the id of its session."""
    exchange = _Exchange(port, _STREAM)
    while (found := _SESSION.search(exchange.heard)) is None:
        if not exchange.read():
            raise RuntimeError(f"An event stream was refused: {exchange.heard!r}")
    return exchange.socket, found[1].decode()


def _carry_out(port: int, requests: Sequence[bytes]) -> list[int]:
    """Send the commands at once, and read until all are answered; how long each took, in nanoseconds."""
    exchanges = []
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for request in requests:
            exchange = _Exchange(port, request)
            exchanges.append(exchange)
            stack.enter_context(exchange.socket)
            selector.register(exchange.socket, selectors.EVENT_READ, exchange)
        while selector.get_map():
            ready = selector.select(_PATIENCE_SECONDS)
            if not ready:
                raise RuntimeError("A command was not answered")
            for key, _ in ready:
                if not key.data.read():
                    selector.unregister(key.fileobj)
    for exchange in exchanges:
        if not _DONE.fullmatch(exchange.heard):
            raise RuntimeError(f"A command was not carried out: {exchange.heard!r}")
    return [exchange.ended - exchange.started for exchange in exchanges]
