"""The clients: sockets and epoll in one process, so cheap that they aren't the bottleneck.

Each event costs one ``recv_into`` a shared buffer, and one count of a marker in it.
"""

import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..harness.processes import raise_file_limit
from .client_protocols import CLIENT_PROTOCOLS
from .connect_phase import connect_clients
from .sampling import Counter, Sample
from .subscribers import OUT_OF_ORDER, Subscribers, delivery_error

__all__ = ["Load", "Outcome"]

_BUFFER_BYTES = 2**20
_EVENTS = 8192
_TIMEOUT_SECONDS = 15.0
_SETTLE_SECONDS = 0.1


@dataclass
class Outcome:
    """The messages that the clients received since `Load.start`.

    Attributes:
        latencies: Nanoseconds from sending to reading each message of the sampled clients.
        cpu_share: CPU time of the clients, as a share of one core, while messages were delivered.
        errors: Delivery errors, one for each client. Mere disorder isn't included.
        out_of_order: The number of sampled clients that received every message, but not in order.
    """

    latencies: list[int] = field(default_factory=list)
    cpu_share: float = 0.0
    errors: list[str] = field(default_factory=list)
    out_of_order: int = 0


class Load:
    """The clients of one measurement.

    Args:
        port: The port of the server.
        protocol: A key of `CLIENT_PROTOCOLS`.
        subscribers: The clients and their subjects.
        samples: The approximate number of clients, evenly spaced, whose messages are parsed. Those of the others are
            only counted.
    """

    def __init__(self, port: int, protocol: str, subscribers: Subscribers, samples: int) -> None:
        raise_file_limit()
        self._port = port
        self._protocol = CLIENT_PROTOCOLS[protocol]
        self._subscribers = subscribers
        reading = [index for index in range(subscribers.size) if index not in subscribers.stalled_clients]
        self._sampled = _evenly_spaced(reading, samples)
        self._clients: list[socket.socket] = []
        self._epoll = select.epoll()
        self._buffer = bytearray(_BUFFER_BYTES)
        self._receivers: dict[int, Callable[[bytearray], int]] = {}
        self._counters: dict[int, Counter] = {}
        self._samples: dict[int, Sample] = {}
        self._total = 0
        self._first = 0
        self._elapsed = self._cpu_time = 0

    def warm_up(self, clients: int) -> None:
        """Connect and disconnect some clients, so that the server has executed its code once."""
        for connection in self._connect(range(min(clients, self._subscribers.size)), clients):
            connection.close()

    def connect(self, concurrency: int) -> float:
        """Connect and subscribe all clients, at most ``concurrency`` at the same time.

        Returns:
            The time that it took, in seconds.
        """
        began = time.monotonic()
        self._clients = self._connect(range(self._subscribers.size), concurrency)
        seconds = time.monotonic() - began
        for index, connection in enumerate(self._clients):
            if index not in self._subscribers.stalled_clients:
                self._register(index, connection)
        return seconds

    def start(self, first: int) -> None:
        """Reset all counts. ``first`` is the number of the next message that is published."""
        self._first = first
        self._total = 0
        for fd in self._counters:
            self._counters[fd] = Counter()
        for fd in self._samples:
            self._samples[fd] = Sample()
        self._elapsed = self._cpu_time = 0

    def read(self, end: int) -> int:
        """Read until every client has received all messages with a number below ``end``.

        Stops if no more messages arrive. `outcome` then reports the missing ones.

        Returns:
            The time of the last message (CLOCK_MONOTONIC, in nanoseconds).
        """
        expected = self._subscribers.deliveries(self._first, end)
        began, used = _clocks()
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while self._total < expected and (left := deadline - time.monotonic()) > 0:
            if self._poll(left):
                deadline = time.monotonic() + _TIMEOUT_SECONDS
        now, used_now = _clocks()
        self._elapsed += now - began
        self._cpu_time += used_now - used
        for sample in self._samples.values():
            sample.parse()
        return now

    def outcome(self, end: int) -> Outcome:
        """Return the outcome for the messages from the first measured one up to, but without, ``end``."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            self._poll(left)
        outcome = Outcome(cpu_share=self._cpu_time / max(self._elapsed, 1))
        for client, connection in enumerate(self._clients):
            fd = connection.fileno()
            if fd in self._counters:
                self._check(outcome, client, self._counters[fd].count, self._samples.get(fd), end)
        return outcome

    def close(self) -> None:
        """Disconnect all clients."""
        self._epoll.close()
        for connection in self._clients:
            connection.close()

    def _check(self, outcome: Outcome, client: int, count: int, sample: Sample | None, end: int) -> None:
        expected = self._subscribers.expected(client, self._first, end)
        error = None if count == len(expected) else f"{count} messages instead of {len(expected)}"
        if sample is not None:
            sample.parse()
            outcome.latencies += sample.latencies
            error = delivery_error(expected, sample.numbers) or error
        if error == OUT_OF_ORDER:
            outcome.out_of_order += 1
        elif error is not None:
            outcome.errors.append(f"client {client}: {error}")

    def _poll(self, seconds: float) -> int:
        """Wait for data for at most ``seconds``, read it, and return the number of messages in it."""
        before = self._total
        events = self._epoll.poll(seconds, _EVENTS)
        buffer, counters, samples = self._buffer, self._counters, self._samples
        for fd, _ in events:
            size = self._receivers[fd](buffer)
            if not size:
                raise RuntimeError("The server has closed a client's connection")
            self._total += counters[fd].add(buffer, size)
            if fd in samples:
                samples[fd].add(bytes(memoryview(buffer)[:size]), time.monotonic_ns())
        return self._total - before

    def _connect(self, indexes: Sequence[int], concurrency: int) -> list[socket.socket]:
        clients = connect_clients(self._port, self._protocol, self._subscribers, indexes, concurrency)
        return [client.socket for client in clients.values()]

    def _register(self, index: int, connection: socket.socket) -> None:
        fd = connection.fileno()
        self._epoll.register(fd, select.EPOLLIN)
        self._receivers[fd] = connection.recv_into
        self._counters[fd] = Counter()
        if index in self._sampled:
            self._samples[fd] = Sample()


def _evenly_spaced(indexes: Sequence[int], count: int) -> frozenset[int]:
    """Return ``count`` of the indexes, evenly spaced."""
    count = min(count, len(indexes))
    return frozenset(indexes[place * len(indexes) // count] for place in range(count))


def _clocks() -> tuple[int, int]:
    return time.monotonic_ns(), time.process_time_ns()
