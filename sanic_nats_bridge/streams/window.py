"""The newest messages of the patterns that sessions follow on streams, kept in memory for clients that resume."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

from msgspec import Struct

from ..protocol.stream_messages import Operation

__all__ = ["Record", "Window", "WindowMemory"]

_OVERHEAD_BYTES = 256
"""The approximate memory of a record beside its payload, its headers and its subject."""
_BLOCK_BYTES = 144
"""The approximate memory of a block beside its records."""
_MAX_KNOWN = 64
_SPARE = 1024
"""The number of entries of closed windows that may be left in a list."""


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
        return len(self.payload) + len(self.headers) + len(self.subject) + _OVERHEAD_BYTES

    @property
    def length(self) -> int:
        """The bytes that were read from the stream, without what the worker adds."""
        return len(self.payload) + len(self.headers) + len(self.subject)


class WindowMemory:
    """The memory of all windows of a worker. The oldest records are removed first.

    Args:
        max_bytes: The largest size of all records together.
        span: The number of bytes that all windows add while the records of one window form a block. The records of a
            block are removed together, so each message costs less.
    """

    def __init__(self, max_bytes: int, span: int = 0) -> None:
        self.span = span
        self.order: deque[Window] = deque()
        """The window of each block, in the order in which the blocks have begun."""
        self._closed = 0
        """The number of entries of closed windows."""
        self.added = 0
        """The size of all records that were ever added."""
        self.limit = max_bytes
        """The value of `added` above which the oldest records are removed."""
        self._max_bytes = max_bytes

    @property
    def max_bytes(self) -> int:
        """The largest size of all records together. To set it removes no record before the next one is added."""
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int) -> None:
        self.limit += value - self._max_bytes
        self._max_bytes = value

    @property
    def bytes(self) -> int:
        """The size of all records."""
        return self.added + self._max_bytes - self.limit

    def make_room(self) -> None:
        """Remove the oldest records if all are too large."""
        while self.added > self.limit:
            oldest = self.order.popleft()
            if oldest.is_closed:
                self._closed -= 1
            else:
                self.limit += oldest.remove_oldest()

    def closed(self, blocks: int, size: int) -> None:
        """Note that a window with so many blocks was closed."""
        self.limit += size
        self._closed += blocks
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
        self._deleted = 0
        """The number of records that the list has had before its present start."""
        self._added = 0
        """The size of all records that were ever added."""
        self._blocks: list[tuple[int, int]] = []
        """The values of `_deleted` and `_added` at the start of each block."""
        self._block_ends_at = 0
        """The size of all records that were ever added to the memory with which the last block ends."""
        self._known: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> None:
        """Add the newest message of the pattern."""
        # Once for each message that is followed, so without further calls.
        memory = self._memory
        added = memory.added
        if added >= self._block_ends_at:
            added = self._begin_block()
        self._records.append(record)
        size = len(record.payload) + len(record.headers) + len(record.subject) + _OVERHEAD_BYTES
        self._added += size
        memory.added = added = added + size
        if added > memory.limit:
            memory.make_room()

    def _begin_block(self) -> int:
        """Begin a block; return the size of all records that were ever added to the memory."""
        memory = self._memory
        self._blocks.append((self._deleted + len(self._records), self._added))
        self._block_ends_at = memory.added + memory.span
        self._added += _BLOCK_BYTES
        memory.added += _BLOCK_BYTES
        memory.order.append(self)
        return memory.added

    def prepend(self, records: Sequence[Record], floor: int) -> None:
        """Add older messages if there is room: all that the pattern has between a sequence and the present `floor`."""
        memory = self._memory
        blocks: list[tuple[int, int]] = []
        size = ends_at = 0
        for number, record in enumerate(records):
            if size >= ends_at:
                blocks.append((number, size))
                ends_at = size + memory.span
                size += _BLOCK_BYTES
            size += record.size
        if self.is_closed or memory.bytes + size > memory.max_bytes:
            return
        before = self._blocks[0][1] if self._blocks else self._added
        # The slices still end at the same records.
        self._deleted -= len(records)
        self._records[:0] = records
        self._blocks[:0] = [(self._deleted + number, before - size + begin) for number, begin in blocks]
        memory.added += size
        memory.order.extendleft([self] * len(blocks))
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
        begin = bisect_left(self._records, seq, key=_seq)
        return begin < len(self._records) and self._records[begin].seq == seq and self._records[begin].time == time

    def after(self, seq: int, most: int | None = None) -> Sequence[Record]:
        """Return the records above a sequence that isn't below `floor`; the first ones if ``most`` is given."""
        begin = bisect_right(self._records, seq, key=_seq)
        return self._records[begin : None if most is None else begin + most]

    def slice_after(self, seq: int, most: int) -> Sequence[Record]:
        """Return the first records above a sequence, as `after` does, or some of them.

        They end at the same records for every sequence, so that clients share their bytes.
        """
        begin = bisect_right(self._records, seq, key=_seq)
        return self._records[begin : begin + most - (self._deleted + begin) % most]

    def count_after(self, seq: int) -> int:
        """Return the number of records above a sequence."""
        return len(self._records) - bisect_right(self._records, seq, key=_seq)

    def remove_oldest(self) -> int:
        """Remove the records of the oldest block, and return their size."""
        _, before = self._blocks.pop(0)
        end, after = self._blocks[0] if self._blocks else (self._deleted + len(self._records), self._added)
        if not self._blocks:
            self._block_ends_at = 0
        count = end - self._deleted
        self.floor = self._records[count - 1].seq
        del self._records[:count]
        self._deleted = end
        return after - before

    def close(self) -> None:
        """Free the memory. The window isn't used any more."""
        self.is_closed = True
        size = self._added - self._blocks[0][1] if self._blocks else 0
        self._memory.closed(len(self._blocks), size)
        self._records, self._blocks = [], []


_seq = attrgetter("seq")
