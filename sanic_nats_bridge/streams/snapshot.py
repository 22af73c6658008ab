"""The last message of each subject: the state of a stream, such as a key-value bucket."""

import asyncio
import secrets
from typing import Literal

from .feed import HEARTBEAT_SECONDS, Feed
from .followed import Followed
from .heartbeats import last_of_consumer
from .jetstream import JetStreamUnavailable, StoredMessage, StreamInfo, feed_metadata, status_of
from .positions import Point
from .reader import Hit, StreamReader, record_of
from .window import Record

__all__ = ["SnapshotTooLarge", "read_snapshot"]

_SILENT_SECONDS = 2 * HEARTBEAT_SECONDS + 1
_IDLE_HEARTBEAT = 100


class SnapshotTooLarge(Exception):
    """The subjects are more, or their messages larger, than one replay may have.

    Args:
        setting: The setting that is exceeded.
    """

    def __init__(self, setting: Literal["max_snapshot_subjects", "max_replay_bytes"]) -> None:
        super().__init__(setting)
        self.setting = setting


async def read_snapshot(reader: StreamReader, max_subjects: int, max_bytes: int) -> tuple[list[Hit], Point, int]:
    """Read the last message of each subject that the patterns of a reader match, and move the reader behind them.

    Returns:
        The messages, in order for each pattern; the position that a client has with them, which the feed may not have
        reached yet; and the sequence from which on that position holds for all patterns.

    Raises:
        SnapshotTooLarge: There are too many, or they are too large.
        JetStreamError: The stream can't be read now.
    """
    feed = reader.feed
    hits: list[Hit] = []
    newest: dict[Followed, Point] = {}
    # What is stored until now is in the snapshots, or was replaced.
    info = await reader.jetstream.stream_info(feed.name)
    was_replaced = False
    # One after another, because NATS refuses a consumer of patterns that overlap.
    for each in reader.followed:
        snapshot = _Snapshot(feed, each.pattern, reader.headers, max_subjects - len(hits), max_bytes)
        async with reader.turns:
            await snapshot.read()
        max_bytes -= snapshot.size
        hits += [(record, (each,)) for record in snapshot.records]
        was_replaced = was_replaced or snapshot.lacks_some_of(info)
        # Everything up to the newest message is in the snapshot, or was replaced by a message that is, or follows. A
        # replica that delivers a snapshot may not know more than that.
        known = Point(info.last_seq, info.last_time) if info.num_replicas == 1 and not info.is_mirror else Point(0, 0)
        newest[each] = max([known, *(Point(record.seq, record.time) for record in snapshot.records[-1:])])
    if was_replaced:
        # A message that has replaced another one belongs to the state too.
        info = await reader.jetstream.stream_info(feed.name)
    point = min(newest.values())
    reader.move_to(point)
    reader.end = info.last_seq
    if len(newest) > 1:
        reader.skip_before([newest[each].seq + 1 for each in reader.followed])
    return hits, point, max(newest.values()).seq


class _Snapshot:
    """One consumer that delivers the last message of each subject, until it has delivered all of them."""

    def __init__(self, feed: Feed, pattern: str, headers: frozenset[str], max_subjects: int, max_bytes: int) -> None:
        self.records: list[Record] = []
        self.size = 0
        self._feed = feed
        self._pattern = pattern
        self._headers = headers
        self._max_subjects = max_subjects
        self._max_bytes = max_bytes
        self._expected: int | None = None
        """The number of subjects, once it is known."""
        self._last = 0
        """The number of the last message of the consumer."""
        self._changed = asyncio.Event()
        self._problem: Exception | None = None
        self._at_end = False

    def lacks_some_of(self, info: StreamInfo) -> bool:
        """Return whether messages were replaced or deleted since the stream was in a state."""
        return sum(record.seq <= info.last_seq for record in self.records) < (self._expected or 0)

    async def read(self) -> None:
        feed = self._feed
        name = f"natsbridge-{secrets.token_hex(8)}"
        client, sid = feed.link.client, feed.link.subscribe_control(f"{feed.prefix}.{name}", self)
        if sid is None:
            raise JetStreamUnavailable("NATS is disconnected")
        try:
            subject = f"{feed.prefix}.{name}"
            self._expect(await feed.jetstream.create_snapshot(feed.name, name, subject, [self._pattern]))
            while self._problem is not None or not self._is_complete:
                if self._problem is not None:
                    raise self._problem
                self._changed.clear()
                try:
                    async with asyncio.timeout(_SILENT_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    raise JetStreamUnavailable(f"a snapshot of stream '{feed.name}' has stopped") from None
        finally:
            feed.unsubscribe(client, sid)
            await feed.delete_consumer(name)

    def _expect(self, count: int) -> None:
        self._expected = count
        if count > self._max_subjects:
            raise SnapshotTooLarge("max_snapshot_subjects")

    @property
    def _is_complete(self) -> bool:
        return self._expected is not None and (self._at_end or self._last >= self._expected)

    # Called in the read loop of the connection; must not raise

    def confirmed(self) -> None:
        """Do nothing: the answer to the request for the consumer is later."""

    def refused(self) -> None:
        """Note that NATS doesn't let the bridge subscribe."""
        self._fail(JetStreamUnavailable(f"NATS does not allow this server to subscribe below '{self._feed.prefix}'"))

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Process a message of the consumer."""
        metadata = feed_metadata(reply)
        if self._problem is not None:
            return
        if metadata is None:
            self._on_status(reply, headers)
            return
        seq, number, time, pending = metadata
        if number != self._last + 1:
            self._fail(JetStreamUnavailable("a message of a snapshot is missing"))
            return
        self._last = number
        if self._expected is None or number <= self._expected:
            self._add(seq, time, subject, headers, payload)
        self._at_end = not pending
        self._changed.set()

    def _on_status(self, reply: bytes, headers: bytes) -> None:
        if status_of(headers) != _IDLE_HEARTBEAT:
            return
        if self._feed.answer_flow_control(reply, headers) or self._expected is None:
            return
        # The consumer is idle, because the rest was deleted before it was sent.
        if last_of_consumer(headers) == self._last:
            self._at_end = True
        else:
            self._problem = JetStreamUnavailable("the last messages of a snapshot are missing")
        self._changed.set()

    def _add(self, seq: int, time: int, subject: bytes, headers: bytes, payload: bytes) -> None:
        try:
            text = subject.decode()
        except UnicodeDecodeError:
            return
        record = record_of(StoredMessage(seq, time, text, headers, payload), self._headers)
        self.size += record.length
        if self.size > self._max_bytes:
            self._fail(SnapshotTooLarge("max_replay_bytes"))
        else:
            self.records.append(record)

    def _fail(self, problem: Exception) -> None:
        self._problem = problem
        self._changed.set()
