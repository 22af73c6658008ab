"""Count messages by their marker, and parse those of a sample of the clients."""

from .payloads import MARKER, find_stamps

__all__ = ["Counter", "Sample"]

_CARRY_BYTES = len(MARKER) - 1
_MARKER_START = MARKER[:1]


class Counter:
    """A counter of a client's messages, which doesn't parse frames or chunks."""

    __slots__ = ("_carry", "count")

    def __init__(self) -> None:
        self.count = 0
        self._carry = b""

    def add(self, buffer: bytearray, size: int) -> int:
        """Count the messages whose marker ends in the first ``size`` bytes, and return their number."""
        if self._carry:
            buffer = bytearray(self._carry) + buffer[:size]
            size = len(buffer)
            self._carry = b""
        found = buffer.count(MARKER, 0, size)
        # Split markers are rare, so it is enough to look for the first byte of one.
        tail = max(size - _CARRY_BYTES, 0)
        if buffer.find(_MARKER_START, tail, size) >= 0:
            self._carry = bytes(buffer[tail:size])
        self.count += found
        return found


class Sample:
    """The number and the latency of each message of one client."""

    __slots__ = ("_carry", "_unparsed", "latencies", "numbers")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.latencies: list[int] = []
        """In nanoseconds."""
        self._unparsed: list[tuple[bytes, int]] = []
        self._carry = b""

    def add(self, data: bytes, now: int) -> None:
        """Store data that was received at this time (CLOCK_MONOTONIC, in nanoseconds)."""
        self._unparsed.append((data, now))

    def parse(self) -> None:
        """Parse the stored data. This takes time, so `add` leaves it to the end of a measurement."""
        for data, now in self._unparsed:
            found, self._carry = find_stamps(self._carry + data)
            for number, sent in found:
                self.numbers.append(number)
                self.latencies.append(now - sent)
        self._unparsed.clear()
