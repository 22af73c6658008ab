"""The clients: sockets and epoll in one process, cheap enough that they are never what is measured.

For each event there is one ``recv_into`` a buffer that all share, and one count of a marker in it.
"""

import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..harness.processes import raise_file_limit
from .client_protocols import DIALECTS
from .connect_phase import join
from .sampling import Counter, Sample
from .subscribers import Audience, faults

__all__ = ["Load", "Outcome"]

_BUFFER_BYTES: Final = 2**20
_EVENTS: Final = 8192
_PATIENCE_SECONDS: Final = 15.0
_SETTLE_SECONDS: Final = 0.1


@dataclass
class Outcome:
    """What the clients got since `Load.start`.

    Attributes:
        latencies: Of the sampled clients' messages, in nanoseconds, from their sending to their being read.
        busy: The share of one core that the clients took while messages were on their way.
        faults: What is wrong with what was received: a line for each client, but for mere disorder.
        disordered: How many of the sampled clients got everything, but not in order.
    """

    latencies: list[int] = field(default_factory=list)
    busy: float = 0.0
    faults: list[str] = field(default_factory=list)
    disordered: int = 0


class Load:
    """The clients of one measurement."""

    def __init__(self, port: int, dialect: str, audience: Audience, samples: int) -> None:
        """``samples``: about so many clients, evenly spread, are looked into; the others are counted."""
        raise_file_limit()
        self._port = port
        self._dialect = DIALECTS[dialect]
        self._audience = audience
        self._sampled = _spread([index for index in range(audience.size) if index not in audience.idle], samples)
        self._clients: list[socket.socket] = []
        self._epoll = select.epoll()
        self._buffer = bytearray(_BUFFER_BYTES)
        self._receivers: dict[int, Callable[[bytearray], int]] = {}
        self._counters: dict[int, Counter] = {}
        self._samples: dict[int, Sample] = {}
        self._total = 0
        self._first = 0
        self._elapsed = self._used = 0

    def rehearse(self, clients: int) -> None:
        """Have some clients come and go, so that the server has done everything once."""
        for connection in self._join(range(min(clients, self._audience.size)), clients):
            connection.close()

    def connect(self, at_once: int) -> float:
        """Connect and subscribe all clients, so many at the same time; how long it took, in seconds."""
        began = time.monotonic()
        self._clients = self._join(range(self._audience.size), at_once)
        seconds = time.monotonic() - began
        for index, connection in enumerate(self._clients):
            if index not in self._audience.idle:
                self._follow(index, connection)
        return seconds

    def start(self, first: int) -> None:
        """Measure from here on; ``first`` is the number of the next message that is published."""
        self._first = first
        self._total = 0
        for fd in self._counters:
            self._counters[fd] = Counter()
        for fd in self._samples:
            self._samples[fd] = Sample()
        self._elapsed = self._used = 0

    def read(self, end: int) -> int:
        """Read until all messages before this number have come to all; when that was (CLOCK_MONOTONIC, ns).

        Returns without them when no more of them come; `outcome` then tells what is missing.
        """
        expected = self._audience.deliveries(self._first, end)
        began, used = _clocks()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._total < expected and (left := deadline - time.monotonic()) > 0:
            if self._turn(left):
                deadline = time.monotonic() + _PATIENCE_SECONDS
        now, used_now = _clocks()
        self._elapsed += now - began
        self._used += used_now - used
        for sample in self._samples.values():
            sample.digest()
        return now

    def outcome(self, end: int) -> Outcome:
        """What became of the messages from the first that was measured up to this number."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            self._turn(left)
        outcome = Outcome(busy=self._used / max(self._elapsed, 1))
        for client, connection in enumerate(self._clients):
            fd = connection.fileno()
            if fd in self._counters:
                self._check(outcome, client, self._counters[fd].count, self._samples.get(fd), end)
        return outcome

    def close(self) -> None:
        """Have all clients go."""
        self._epoll.close()
        for connection in self._clients:
            connection.close()

    def _check(self, outcome: Outcome, client: int, count: int, sample: Sample | None, end: int) -> None:
        expected = self._audience.expected(client, self._first, end)
        fault = None if count == len(expected) else f"{count} messages instead of {len(expected)}"
        if sample is not None:
            sample.digest()
            outcome.latencies += sample.latencies
            fault = faults(expected, sample.numbers) or fault
        if fault == "out of order":
            outcome.disordered += 1
        elif fault is not None:
            outcome.faults.append(f"client {client}: {fault}")

    def _turn(self, seconds: float) -> int:
        """Read what has come, or wait so long for something; how many messages that was."""
        before = self._total
        events = self._epoll.poll(seconds, _EVENTS)
        buffer, counters, samples = self._buffer, self._counters, self._samples
        for fd, _ in events:
            size = self._receivers[fd](buffer)
            if not size:
                raise RuntimeError("A client was closed")
            self._total += counters[fd].take(buffer, size)
            if fd in samples:
                samples[fd].take(bytes(memoryview(buffer)[:size]), time.monotonic_ns())
        return self._total - before

    def _join(self, indexes: Sequence[int], at_once: int) -> list[socket.socket]:
        return list(join(self._port, self._dialect, self._audience, indexes, at_once).values())

    def _follow(self, index: int, connection: socket.socket) -> None:
        fd = connection.fileno()
        self._epoll.register(fd, select.EPOLLIN)
        self._receivers[fd] = connection.recv_into
        self._counters[fd] = Counter()
        if index in self._sampled:
            self._samples[fd] = Sample()


def _spread(indexes: Sequence[int], count: int) -> frozenset[int]:
    """So many of the indexes, evenly spread."""
    count = min(count, len(indexes))
    return frozenset(indexes[place * len(indexes) // count] for place in range(count))


def _clocks() -> tuple[int, int]:
    return time.monotonic_ns(), time.process_time_ns()
