"""The newest messages of the patterns that sessions follow on streams, kept in memory for clients that resume."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

from msgspec import Struct

from ..protocol.stream_messages import Operation

__all__ = ["Record", "Window", "WindowMemory"]

_OVERHEAD_BYTES = 256
"""The approximate memory of a record beside its payload."""
_MAX_KNOWN = 64
_SPARE = 1024
"""The number of removed records, or of entries of closed windows, that may be left in a list."""


class Record(Struct, frozen=True, gc=False):
    """One message of a stream, as clients see it."""

    seq: int
    """Its sequence in the stream."""
    time: int
    """The time at which the stream has stored it, in Unix milliseconds."""
    subject: str
    """Its real subject."""
    headers: bytes
    """The headers that clients get, as a JSON object, or empty."""
    payload: bytes
    operation: Operation = ""
    """The operation of a marker in a key-value bucket."""

    @property
    def size(self) -> int:
        """The memory that it takes, in bytes."""
        return len(self.payload) + len(self.headers) + _OVERHEAD_BYTES

    @property
    def length(self) -> int:
        """The bytes that were read from the stream, without what the worker adds."""
        return len(self.payload) + len(self.headers) + len(self.subject)


class WindowMemory:
    """The memory of all windows of a worker. The oldest records are removed first.

    Args:
        max_bytes: The largest size of all records together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.order: deque[Window] = deque()
        """The window of each record, in the order of their arrival."""
        self._closed = 0
        """The number of entries of closed windows."""
        self.bytes = 0
        """The size of all records."""

    def make_room(self) -> None:
        """Remove the oldest records if all are too large."""
        while self.bytes > self.max_bytes:
            oldest = self.order.popleft()
            if oldest.is_closed:
                self._closed -= 1
            else:
                self.bytes -= oldest.remove_oldest()

    def closed(self, records: int, size: int) -> None:
        """Note that a window with so many records was closed."""
        self.bytes -= size
        self._closed += records
        if self._closed > len(self.order) // 2 + _SPARE:
            self.order = deque(window for window in self.order if not window.is_closed)
            self._closed = 0


class Window:
    """Every message of one pattern whose sequence is above `floor`, up to the position of the feed.

    Args:
        memory: The memory that the windows of the worker share.
        floor: The sequence above which the window has all messages.
    """

    def __init__(self, memory: WindowMemory, floor: int) -> None:
        self._memory = memory
        self.floor = floor
        self.is_closed = False
        self._records: list[Record] = []
        self._removed = 0
        """The number of removed records at the start of the list."""
        self._bytes = 0
        self._deleted = 0
        """The number of records that the list has had before its present start."""
        self._known: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return len(self._records) - self._removed

    def add(self, record: Record) -> None:
        """Add the newest message of the pattern."""
        # Once for each message that is followed, so without further calls.
        self._records.append(record)
        size = len(record.payload) + len(record.headers) + _OVERHEAD_BYTES
        self._bytes += size
        memory = self._memory
        memory.order.append(self)
        memory.bytes += size
        if memory.bytes > memory.max_bytes:
            memory.make_room()

    def prepend(self, records: Sequence[Record], floor: int) -> None:
        """Add older messages if there is room: all that the pattern has between a sequence and the present `floor`."""
        size = sum(record.size for record in records)
        memory = self._memory
        if self.is_closed or memory.bytes + size > memory.max_bytes:
            return
        self._records[: self._removed] = records
        # The slices still end at the same records.
        self._deleted += self._removed - len(records)
        self._removed = 0
        self._bytes += size
        memory.bytes += size
        memory.order.extendleft([self] * len(records))
        self.floor = floor

    def note_known(self, seq: int, time: int) -> None:
        """Note that a position is of the same life of the stream as the window."""
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known.add((seq, time))

    def knows(self, seq: int, time: int) -> bool:
        """Return whether a position was noted, or is that of a message of the window."""
        if (seq, time) in self._known:
            return True
        begin = bisect_left(self._records, seq, self._removed, key=_seq)
        return begin < len(self._records) and self._records[begin].seq == seq and self._records[begin].time == time

    def after(self, seq: int, most: int | None = None) -> Sequence[Record]:
        """Return the records above a sequence that isn't below `floor`; the first ones if ``most`` is given."""
        begin = bisect_right(self._records, seq, self._removed, key=_seq)
        return self._records[begin : None if most is None else begin + most]

    def slice_after(self, seq: int, most: int) -> Sequence[Record]:
        """Return the first records above a sequence, as `after` does, or some of them.

        They end at the same records for every sequence, so that clients share their bytes.
        """
        begin = bisect_right(self._records, seq, self._removed, key=_seq)
        return self._records[begin : begin + most - (self._deleted + begin) % most]

    def count_after(self, seq: int) -> int:
        """Return the number of records above a sequence."""
        return len(self._records) - bisect_right(self._records, seq, self._removed, key=_seq)

    def remove_oldest(self) -> int:
        """Remove the oldest record, and return its size."""
        record = self._records[self._removed]
        self.floor = record.seq
        self._removed += 1
        size = record.size
        self._bytes -= size
        if self._removed > _SPARE and self._removed * 2 > len(self._records):
            del self._records[: self._removed]
            self._deleted += self._removed
            self._removed = 0
        else:
            # Its memory is freed at once.
            self._records[self._removed - 1] = _NO_RECORD
        return size

    def close(self) -> None:
        """Free the memory. The window isn't used any more."""
        self.is_closed = True
        self._memory.closed(len(self), self._bytes)
        self._records, self._removed, self._bytes = [], 0, 0


_seq = attrgetter("seq")
_NO_RECORD = Record(0, 0, "", b"", b"")
