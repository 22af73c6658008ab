"""The observations of a page on one link, and the facts that follow from them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Received", "Record", "Row"]


class Row(NamedTuple):
    """One observation of a page. The time is that of the wall clock."""

    time: float
    role: str
    kind: str
    value: Any = None


@dataclass
class Received:
    """The messages and frames of one receiver.

    Attributes:
        first: Seconds until the first message, if there was one.
        count: The number of different messages.
        pause: The longest time in seconds without a message, from the first one to the end.
        goes_on: The receiver got the last messages.
        frames: The number of frames that aren't messages, on a quiet link mainly heartbeats.
        ends: The number of times at which its connection ended.
    """

    first: float | None = None
    count: int = 0
    pause: float = 0.0
    goes_on: bool = False
    frames: int = 0
    ends: int = 0


@dataclass
class Record:
    """The rows of one link, in their order."""

    rows: list[Row] = field(default_factory=list)

    def of(self, role: str, *kinds: str) -> Iterator[Row]:
        """Return the rows of a role, of these kinds or of any."""
        return (row for row in self.rows if row.role == role and (not kinds or row.kind in kinds))

    def numbers(self, role: str) -> set[int]:
        """Return the numbers of the messages that a receiver got."""
        return {row.value for row in self.of(role, "message")}

    @property
    def start(self) -> float:
        """The time at which the page started the receivers."""
        return next((row.time for row in self.of("page", "start")), 0.0)

    @property
    def ready(self) -> float | None:
        """The time at which the client's subscription was ready for the first time."""
        return next((row.time for row in self.of("client", "ready")), None)

    def received(self, role: str, end: float, last: int) -> Received:
        """Return what a receiver got until the end, at which this number was the last one that had to arrive."""
        found = Received()
        times = [row.time for row in self.of(role, "message")]
        numbers = self.numbers(role)
        if times:
            found.first = times[0] - self.start
            found.pause = max(after - before for before, after in zip(times, [*times[1:], end], strict=True))
        found.count = len(numbers)
        found.goes_on = bool(numbers) and max(numbers) >= last
        found.frames = sum(1 for _ in self.of(role, "frame"))
        found.ends = sum(1 for _ in self.of(role, "error", "close"))
        if role == "client":
            found.ends = sum(row.value["state"] in ("waiting", "closed") for row in self.of("client", "status"))
        return found
