"""A publisher in bare NATS protocol, which costs one write for each message or for each block of messages."""

import socket
import time
from dataclasses import dataclass

from .payloads import document

__all__ = ["Publication", "Publisher"]

_BLOCK = 100
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Publication:
    """Messages to publish.

    Attributes:
        first: The number of the first message.
        count: The number of messages.
        size: Bytes of each payload.
        rate: Messages per second, evenly spaced. 0 publishes as fast as NATS accepts them.
    """

    first: int
    count: int
    size: int
    rate: float = 0.0

    @property
    def end(self) -> int:
        """Number after that of the last message."""
        return self.first + self.count


class Publisher:
    """A connection to NATS. Message number n is published to the n-th subject, cyclically."""

    def __init__(self, port: int, subjects: tuple[str, ...]) -> None:
        self._subjects = [subject.encode() for subject in subjects]
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
        self._flush()

    def publish(self, publication: Publication) -> int:
        """Publish messages, and wait until NATS has received all of them.

        Returns:
            The time of the first message (CLOCK_MONOTONIC, in nanoseconds).
        """
        started = time.monotonic_ns()
        step = 1 if publication.rate else _BLOCK
        for number in range(publication.first, publication.end, step):
            if publication.rate:
                _sleep_until(started + int((number - publication.first) / publication.rate * 1e9))
            last = min(number + step, publication.end)
            self._socket.sendall(b"".join([self._line(each, publication.size) for each in range(number, last)]))
        self._flush()
        return started

    def _line(self, number: int, size: int) -> bytes:
        subject = self._subjects[number % len(self._subjects)]
        return b"PUB %b %d\r\n%b\r\n" % (subject, size, document(number, time.monotonic_ns(), size))

    def _flush(self) -> None:
        self._socket.sendall(b"PING\r\n")
        for line in self._file:
            if line.startswith(b"PONG"):
                return
            if line.startswith(b"PING"):
                self._socket.sendall(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                raise RuntimeError(line.decode().strip())
        raise RuntimeError("NATS has closed the publisher's connection")


def _sleep_until(moment: int) -> None:
    left = moment - time.monotonic_ns()
    if left > 0:
        time.sleep(left / 1e9)
