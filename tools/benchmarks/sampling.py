"""What becomes of the bytes that a client gets: messages are counted by their marker, and a sample is looked into."""

from typing import Final

from .payloads import MARKER, stamps

__all__ = ["Counter", "Sample"]

_CARRIED: Final = len(MARKER) - 1
_MARKER_START: Final = MARKER[:1]


class Counter:
    """Counts a client's messages; frames and chunks are not looked at."""

    __slots__ = ("_carry", "count")

    def __init__(self) -> None:
        self.count = 0
        self._carry = b""

    def take(self, buffer: bytearray, size: int) -> int:
        """Count the messages whose marker ends in the first so many bytes; how many those are."""
        if self._carry:
            buffer = bytearray(self._carry) + buffer[:size]
            size = len(buffer)
            self._carry = b""
        found = buffer.count(MARKER, 0, size)
        # A marker that is split is rare: only its first byte is looked for.
        tail = max(size - _CARRIED, 0)
        if buffer.find(_MARKER_START, tail, size) >= 0:
            self._carry = bytes(buffer[tail:size])
        self.count += found
        return found


class Sample:
    """Keeps the number and the latency of each of a client's messages."""

    __slots__ = ("_carry", "_taken", "latencies", "numbers")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.latencies: list[int] = []
        """In nanoseconds."""
        self._taken: list[tuple[bytes, int]] = []
        self._carry = b""

    def take(self, data: bytes, now: int) -> None:
        """Keep what was received at this time (CLOCK_MONOTONIC, ns)."""
        self._taken.append((data, now))

    def digest(self) -> None:
        """Look at what was kept; apart from `take`, for it takes its time."""
        for data, now in self._taken:
            found, self._carry = stamps(self._carry + data)
            for number, sent in found:
                self.numbers.append(number)
                self.latencies.append(now - sent)
        self._taken.clear()
