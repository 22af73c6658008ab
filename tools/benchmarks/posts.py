"""Commands by POST for event streams, each on a connection of its own, and the time that they take."""

import contextlib
import json
import re
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

__all__ = ["Posts", "Times"]

_STREAM = b"GET /nats/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
_POST = (
    b"POST /nats/%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
)
_SUCCESS = re.compile(rb'HTTP/1\.1 200 .*"success":true.*', re.DOTALL)
_SESSION = re.compile(rb'"session":"([^"]+)"')
_ACTIONS = ("subscribe", "unsubscribe")
_READ_BYTES = 65_536
_TIMEOUT_SECONDS = 15.0
_RETRY_SECONDS = 0.05
_WARMUP_ROUNDS = 10


class Times(NamedTuple):
    """Times from before connecting until the end of the answer, in nanoseconds."""

    local: list[int]
    relayed: list[int]


class Posts:
    """Event streams of one worker, and commands for them that are sent to that worker and to another.

    Args:
        stream_port: The port of the worker that holds the streams.
        other_port: The port of the other worker.
        streams: The number of streams.
    """

    def __init__(self, stream_port: int, other_port: int, streams: int) -> None:
        self._ports = (stream_port, other_port)
        opened = [_open_stream(stream_port) for _ in range(streams)]
        self._streams = [connection for connection, _ in opened]
        self._sessions = [session for _, session in opened]
        self._names = (f"bench.post.{number}" for number in count())

    def warm_up(self) -> None:
        """Send commands to both workers until they succeed.

        Raises:
            RuntimeError: The commands still fail after 15 seconds.
        """
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while True:
            try:
                self.measure(_ACTIONS[0], _WARMUP_ROUNDS)
            except RuntimeError:
                # A worker may not be connected to NATS yet, and so can't reach the other one.
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def measure(self, action: str, rounds: int) -> Times:
        """Subscribe and unsubscribe all streams at the same time, in turns by each worker.

        Each subject is new, so that a subscribe waits for NATS.

        Args:
            action: The action that is measured.
            rounds: The number of repetitions at each worker.

        Raises:
            RuntimeError: A command failed.
        """
        times = Times([], [])
        for _ in range(rounds):
            for port, measured in zip(self._ports, times, strict=True):
                names = [next(self._names) for _ in self._sessions]
                for each in _ACTIONS:
                    elapsed = _send_all(port, list(self._requests(each, names)))
                    if each == action:
                        measured.extend(elapsed)
        return times

    def close(self) -> None:
        """Close the streams."""
        for connection in self._streams:
            connection.close()

    def _requests(self, action: str, names: Sequence[str]) -> Iterator[bytes]:
        for session, name in zip(self._sessions, names, strict=True):
            body = json.dumps({"session": session, "subjects": [name]}).encode()
            yield _POST % (action.encode(), len(body), body)


class _Exchange:
    """A request on a connection of its own, and its response."""

    def __init__(self, port: int, request: bytes) -> None:
        self.started = self.ended = time.monotonic_ns()
        self.received = b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request)

    def read(self) -> bool:
        """Read once. Return False at the end of the response."""
        data = self.socket.recv(_READ_BYTES)
        if data:
            self.ended = time.monotonic_ns()
            self.received += data
        return bool(data)


def _open_stream(port: int) -> tuple[socket.socket, str]:
    """Return the connection of a new event stream, and the id of its session."""
    exchange = _Exchange(port, _STREAM)
    while (found := _SESSION.search(exchange.received)) is None:
        if not exchange.read():
            raise RuntimeError(f"An event stream was rejected: {exchange.received!r}")
    return exchange.socket, found[1].decode()


def _send_all(port: int, requests: Sequence[bytes]) -> list[int]:
    """Send the requests at the same time, wait for all responses, and return the times in nanoseconds."""
    exchanges = []
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for request in requests:
            exchange = _Exchange(port, request)
            exchanges.append(exchange)
            stack.enter_context(exchange.socket)
            selector.register(exchange.socket, selectors.EVENT_READ, exchange)
        while selector.get_map():
            ready = selector.select(_TIMEOUT_SECONDS)
            if not ready:
                raise RuntimeError("A command was not answered")
            for key, _ in ready:
                if not key.data.read():
                    selector.unregister(key.fileobj)
    for exchange in exchanges:
        if not _SUCCESS.fullmatch(exchange.received):
            raise RuntimeError(f"A command failed: {exchange.received!r}")
    return [exchange.ended - exchange.started for exchange in exchanges]
