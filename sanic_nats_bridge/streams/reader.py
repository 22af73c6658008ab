"""Reading the messages of several patterns of one stream after a position, in order, from the windows or from NATS."""

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

from ..protocol import encoding
from ..protocol.stream_messages import operation_of
from .feed import Feed
from .followed import Followed
from .jetstream import JetStream, StoredMessage
from .positions import Point
from .window import Record

__all__ = ["MAX_TURN_BYTES", "Hit", "StreamReader", "first_hits", "record_of"]

Hit: TypeAlias = tuple[Record, tuple[Followed, ...]]
"""A message, and the patterns that match it."""

MAX_TURN_BYTES = 262_144
"""The size of payloads beyond which a replay writes no more messages in one turn of the event loop."""
_BATCH = 256
_BATCH_BYTES = 262_144
_LEAST_BATCH = 16
_MAX_KEPT = 1024
"""The number of messages before a window that are added to it when a client has read them."""
_MAX_KEPT_BYTES = 1024 * 1024


class StreamReader:
    """The messages of some patterns of one stream, from a position to the position of the feed.

    Args:
        feed: The feed of the stream, whose position is known.
        followed: The patterns, claimed by the caller.
        point: The position after which to read.
        turns: The requests that the replays of the worker may make at once.
        headers: The NATS headers that clients get.
    """

    def __init__(
        self,
        feed: Feed,
        followed: Sequence[Followed],
        point: Point,
        turns: asyncio.Semaphore,
        headers: frozenset[str] = frozenset(),
    ) -> None:
        self.feed = feed
        self.followed = tuple(followed)
        self.seq = point.seq
        """The sequence up to which every message was returned."""
        self.read_bytes = 0
        """The size of the messages that were read from NATS."""
        self.end = 0
        """A sequence that reading must reach at least."""
        self.unchecked: int | None = None
        """The sequence after which messages were read from NATS, if the owner hasn't checked that all were still there.

        It sets it to ``None`` then.
        """
        self._firsts: dict[Followed, int] = {}
        """The sequences before which messages of a pattern are skipped."""
        self.turns = turns
        self.jetstream = feed.jetstream.within(turns)
        """The JetStream API for replays, which takes a turn for each request."""
        self.headers = headers
        self._sources: list[_Source] = []

    def move_to(self, point: Point) -> None:
        """Go on after another position."""
        self.seq = point.seq
        self.end = 0
        self.unchecked = None
        self._sources = []
        self._firsts = {}

    def skip_before(self, firsts: Sequence[int]) -> None:
        """Skip messages before a sequence, for each pattern its own."""
        self._firsts = dict(zip(self.followed, firsts, strict=True))

    @property
    def has_firsts(self) -> bool:
        """True if `skip_before` was called."""
        return bool(self._firsts)

    @property
    def awaited(self) -> int:
        """The sequence that the feed must have reached before reading ends."""
        return max(self.seq, self.end)

    @property
    def is_in_windows(self) -> bool:
        """True if the windows of all patterns have every message that is left."""
        return all(each.window.floor <= self.seq for each in self.followed)

    def count_in_windows(self) -> list[int]:
        """Return the number of messages of each pattern that are left, if `is_in_windows`."""
        return [each.window.count_after(max(self.seq, self._firsts.get(each, 0) - 1)) for each in self.followed]

    def newest_in_windows(self, most: int) -> Point:
        """Return the position after which the windows have at most so many messages, if `is_in_windows`."""
        low, high = self.seq, max(self.seq, self.feed.seq)
        while low < high:
            middle = (low + high) // 2
            if sum(each.window.count_after(middle) for each in self.followed) > most:
                low = middle + 1
            else:
                high = middle
        last = [record for each in self.followed for record in each.window.after(low - 1, 1) if record.seq == low]
        return Point(low, last[0].time if last else self.feed.time)

    def has_older_in_windows(self, cutoff: int) -> bool:
        """Return whether a message of the windows that is left is older than a time in Unix milliseconds."""
        firsts = [each.window.after(self.seq, 1) for each in self.followed]
        return any(records[0].time < cutoff for records in firsts if records)

    def take_from_windows(self, most: int) -> list[Hit]:
        """Return some messages of the windows. If `seq` has not changed, reading is at the end."""
        self._sources = []
        if len(self.followed) == 1:
            (only,) = self.followed
            hits: list[Hit] = [(record, (only,)) for record in only.window.after(self.seq, most)]
        else:
            hits = list(_merged([_window_hits(each, self.seq, most) for each in self.followed], most))
        if not hits:
            self.seq = max(self.seq, self.feed.seq)
        return self._returned(first_hits(hits, most))

    def take_slice(self, most: int) -> Sequence[Record]:
        """Return some messages of the window of the only pattern, which end at the same records for every client.

        An empty result doesn't mean that reading is at the end.
        """
        self._sources = []
        window = self.followed[0].window
        records = window.slice_after(self.seq, most)
        while len(records) > 1 and sum([len(each.payload) for each in records]) > MAX_TURN_BYTES:
            most //= 2
            records = window.slice_after(self.seq, most)
        if records:
            self.seq = records[-1].seq
        return records

    def knows(self, point: Point) -> bool:
        """Return whether a position is known to be of the same life of the stream, by the windows of all patterns."""
        return all(each.window.knows(point.seq, point.time) for each in self.followed)

    def note_known(self, point: Point) -> None:
        """Note that a position is of the same life of the stream."""
        for each in self.followed:
            each.window.note_known(point.seq, point.time)

    def turn_after(self, point: Point) -> contextlib.AbstractAsyncContextManager[object]:
        """Return the context of a client that is at a position: if the window begins later, one client at a time.

        After a restart of the worker many clients miss the same messages. The first one reads them for the others.
        """
        if len(self.followed) == 1 and self.followed[0].window.floor > point.seq:
            return self.followed[0].reading
        return contextlib.nullcontext()

    async def fetch_to_window(self, count: int) -> list[Hit]:
        """Read the messages that are left before the window, as `fetch` does, if they are few.

        Raises:
            JetStreamError: The stream can't be read now.
        """
        hits: list[Hit] = []
        while count <= _MAX_KEPT and self.read_bytes <= _MAX_KEPT_BYTES and not self.is_in_windows:
            before = self.seq
            hits += await self.fetch()
            if self.seq == before:
                break
        return hits

    def keep(self) -> None:
        """Add the messages that were read from NATS to the windows, if they reach up to them and are few.

        Call it if all of them were still there.
        """
        for source in self._sources:
            source.keep()

    async def fetch(self) -> list[Hit]:
        """Read some messages from NATS that may be older than the windows.

        An empty list doesn't mean that reading is at the end.

        Raises:
            JetStreamError: The stream can't be read now.
        """
        if not self._sources:
            share = max(_LEAST_BATCH, _BATCH // len(self.followed))
            begins = {each: max(self.seq, self._firsts.get(each, 0) - 1) for each in self.followed}
            self._sources = [_Source(self.feed, self.jetstream, each, begins[each], share) for each in self.followed]
        for source in self._sources:
            if not source.buffer:
                await self._fill(source)
        complete = min(source.through for source in self._sources)
        hits = list(_merged([source.take(complete) for source in self._sources], None))
        hits = self._returned(hits)
        self.seq = max(self.seq, complete)
        return hits

    async def _fill(self, source: "_Source") -> None:
        if source.is_in_window:
            source.fill_from_window()
            return
        # Also if it fails, because it may have read some messages.
        self.unchecked = source.through if self.unchecked is None else min(self.unchecked, source.through)
        self.read_bytes += await source.fill(self.headers)

    async def count_pending(self) -> list[int]:
        """Return the number of messages of each pattern that are left after `fetch`.

        Raises:
            JetStreamError: The stream can't be read now.
        """
        counts = []
        for source in self._sources:
            if source.pending < 0:
                counted = self.jetstream.count_from(self.feed.name, source.through + 1, source.followed.pattern)
                source.pending = await counted
            counts.append(source.pending + len(source.buffer))
        return counts

    def _returned(self, hits: list[Hit]) -> list[Hit]:
        if hits:
            self.seq = max(self.seq, hits[-1][0].seq)
        if not self._firsts:
            return hits
        due = ((hit[0], tuple(each for each in hit[1] if hit[0].seq >= self._firsts[each])) for hit in hits)
        return [hit for hit in due if hit[1]]


class _Source:
    """The messages of one pattern that were read from NATS and not returned yet."""

    def __init__(self, feed: Feed, jetstream: JetStream, followed: Followed, seq: int, batch: int) -> None:
        self.followed = followed
        self.through = seq
        """The sequence up to which every message of the pattern was read."""
        self.pending = 0
        self.buffer: deque[Record] = deque()
        self._feed = feed
        self._jetstream = jetstream
        self._batch = batch
        self._after = seq
        """The sequence after which reading has begun."""
        self._window = followed.window
        self._read: list[Record] = []
        """The messages that were read from NATS, unless they are many."""
        self._read_through = seq
        """The sequence up to which they are all of the pattern."""

    @property
    def is_in_window(self) -> bool:
        """True if the window of the pattern has every message that is left."""
        return self.followed.window.floor <= self.through

    def fill_from_window(self) -> None:
        """Read the next messages from the window."""
        window = self.followed.window
        self.buffer.extend(window.after(self.through, self._batch))
        self.through = max(self.through, self.buffer[-1].seq if self.buffer else self._feed.seq)
        self.pending = window.count_after(self.through)

    async def fill(self, headers: frozenset[str]) -> int:
        """Read the next messages from NATS; return their size."""
        # Between them, messages of the window may have been taken, which it has removed since.
        goes_on = self._read_through == self.through
        size = await self._fill(headers)
        if goes_on:
            self._read_through = self.through
        return size

    async def _fill(self, headers: frozenset[str]) -> int:
        feed, pattern, jetstream = self._feed, self.followed.pattern, self._jetstream
        info = feed.info
        assert info is not None
        batch = await jetstream.fetch(
            feed.name,
            self.through + 1,
            pattern,
            batch=self._batch,
            max_bytes=_BATCH_BYTES,
            allow_direct=info.allow_direct,
        )
        self.pending = batch.pending
        size = 0
        floor = self.followed.window.floor
        for message in batch.messages:
            if message.seq > floor:
                # The window has this one and all that follow. The copy that answered knows of it, so it is new enough.
                self._move_to_window()
                return size
            record = record_of(message, headers)
            self._add(record)
            self.through = message.seq
            size += record.length
        if batch.is_end:
            # The copy that answered may lag behind. The leader has the last word.
            position = feed.seq
            message_or_none = await jetstream.next_message(feed.name, self.through + 1, pattern)
            if message_or_none is None:
                self.through = max(self.through, position)
            elif message_or_none.seq <= self.followed.window.floor:
                record = record_of(message_or_none, headers)
                self._add(record)
                self.through = record.seq
                self.pending = -1
                size += record.length
            else:
                self._move_to_window()
        return size

    def _add(self, record: Record) -> None:
        self.buffer.append(record)
        if len(self._read) <= _MAX_KEPT:
            self._read.append(record)

    def keep(self) -> None:
        """Add what was read to the window, for other clients."""
        window = self.followed.window
        if window is self._window and self._after < window.floor <= self._read_through and len(self._read) <= _MAX_KEPT:
            window.prepend([each for each in self._read if each.seq <= window.floor], self._after)

    def _move_to_window(self) -> None:
        window = self.followed.window
        self.through = max(self.through, window.floor)
        self.pending = window.count_after(self.through)

    def take(self, complete: int) -> Iterator[Hit]:
        """Yield the messages up to a sequence."""
        while self.buffer and self.buffer[0].seq <= complete:
            yield self.buffer.popleft(), (self.followed,)


def first_hits(hits: list[Hit], most: int) -> list[Hit]:
    """Return the first messages, at most so many, which are written in one turn of the event loop."""
    size = 0
    for count, (record, followed) in enumerate(hits[:most]):
        size += len(record.payload) * len(followed)
        if size > MAX_TURN_BYTES and count:
            return hits[:count]
    return hits[:most]


def record_of(message: StoredMessage, headers: frozenset[str]) -> Record:
    """Return a stored message as clients see it, with these headers."""
    block = message.headers
    shown = encoding.header_fields(block, headers) if block and headers else b""
    operation = operation_of(block) if block else ""
    return Record(message.seq, message.time, message.subject, shown, message.payload, operation)


def _window_hits(followed: Followed, seq: int, most: int) -> Iterator[Hit]:
    return ((record, (followed,)) for record in followed.window.after(seq, most))


def _merged(sources: Sequence[Iterator[Hit]], most: int | None) -> Iterator[Hit]:
    """Yield the messages in order, each once with all patterns that match it."""
    if len(sources) == 1:
        yield from sources[0]
        return
    merged = heapq.merge(*sources, key=lambda hit: hit[0].seq)
    for count, (_, group) in enumerate(groupby(merged, key=lambda hit: hit[0].seq)):
        if count == most:
            return
        hits = list(group)
        yield hits[0][0], tuple(followed for hit in hits for followed in hit[1])
