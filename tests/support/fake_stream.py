"""A stream in memory, and the feed of a worker that follows it, for tests of what reads streams."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sanic_nats_bridge.nats.interfaces import ControlListener
from sanic_nats_bridge.protocol.pattern_index import PatternIndex
from sanic_nats_bridge.streams.feed import Feed
from sanic_nats_bridge.streams.followed import Followed
from sanic_nats_bridge.streams.jetstream import Batch, JetStream, JetStreamError, StoredMessage, StreamInfo
from sanic_nats_bridge.streams.positions import Point
from sanic_nats_bridge.streams.window import Record, WindowMemory

_INFO = StreamInfo(
    name="S", created="2026-01-01T00:00:00Z", first_seq=0, last_seq=0, first_time=0, last_time=0, messages=0,
    subjects=(">",), retention="limits", storage="file", allow_direct=True, max_msgs_per_subject=-1, max_age_ns=0,
    max_msgs=-1, max_bytes=-1, num_replicas=1, is_mirror=False, has_sources=False, has_transform=False,
)  # fmt: skip


def matches(pattern: str, subject: str) -> bool:
    return bool(PatternIndex([pattern]).matching(subject))


class FakeStream:
    """The messages of a stream.

    ``interrupt`` is called with the name of each request, before it is answered and again before the answer arrives.
    It may change everything, or raise. ``lag`` is the number of its newest messages that Direct Get doesn't have.
    """

    def __init__(self, name: str = "S", *, time: int = 1_000_000) -> None:
        self.config = replace(_INFO, name=name)
        self.messages: dict[int, StoredMessage] = {}
        self.last_seq = 0
        self.last_time = 0
        self.time = time
        self.lag = 0
        self.interrupt: Callable[[str], None] = lambda request: None
        self.requests: list[str] = []

    def publish(self, *subjects: str, payload: bytes = b"") -> None:
        """Store a message for each subject, one millisecond after another."""
        for subject in subjects:
            self.last_seq += 1
            self.time += 1
            self.last_time = self.time
            if self.config.max_msgs_per_subject == 1:
                for seq in [seq for seq, each in self.messages.items() if each.subject == subject]:
                    del self.messages[seq]
            self.messages[self.last_seq] = StoredMessage(self.last_seq, self.time, subject, b"", payload)

    def configure(self, **config: Any) -> None:
        self.config = replace(self.config, **config)

    def delete(self, *seqs: int) -> None:
        for seq in seqs:
            self.messages.pop(seq, None)

    def expire(self, through: int) -> None:
        """Remove all messages up to a sequence, as retention does."""
        self.delete(*[seq for seq in self.messages if seq <= through])

    def begin_again(self, created: str | None = None) -> None:
        """Lose everything: the stream has no messages, and the next one has the number 1."""
        self.messages, self.last_seq, self.last_time = {}, 0, 0
        if created is not None:
            self.configure(created=created)

    def matching(self, pattern: str, seq: int = 1, end: int | None = None) -> list[StoredMessage]:
        """Return the messages of a pattern from a sequence on, up to another one."""
        last = self.last_seq if end is None else end
        return [each for each in self.messages.values() if seq <= each.seq <= last and matches(pattern, each.subject)]

    @property
    def info(self) -> StreamInfo:
        first = next(iter(self.messages.values()), None)
        return replace(
            self.config,
            messages=len(self.messages),
            first_seq=(self.last_seq + 1 if self.last_seq else 0) if first is None else first.seq,
            first_time=0 if first is None else first.time,
            last_seq=self.last_seq,
            last_time=self.last_time,
        )

    async def answer(self, request: str) -> None:
        """Let the test interfere with a request."""
        self.requests.append(request)
        await asyncio.sleep(0)
        self.interrupt(request)


class FakeJetStream(JetStream):
    """The JetStream API of a stream in memory."""

    def __init__(self, stream: FakeStream, link: "FakeLink") -> None:
        self.stream = stream
        self.link = link
        self.tasks: set[asyncio.Task[None]] = set()

    async def stream_info(self, stream: str) -> StreamInfo:
        await self.stream.answer("info")
        info = self.stream.info
        await self.stream.answer("info")
        return info

    async def next_message(self, stream: str, seq: int, pattern: str) -> StoredMessage | None:
        await self.stream.answer("next")
        found = self.stream.matching(pattern, seq)
        await self.stream.answer("next")
        return found[0] if found else None

    async def last_message(self, stream: str, pattern: str, *, allow_direct: bool = True) -> StoredMessage | None:
        await self.stream.answer("last")
        found = self.stream.matching(pattern)
        await self.stream.answer("last")
        return found[-1] if found else None

    async def count_from(self, stream: str, seq: int, pattern: str) -> int:
        await self.stream.answer("count")
        return len(self.stream.matching(pattern, seq))

    async def fetch(
        self,
        stream: str,
        seq: int,
        pattern: str,
        *,
        batch: int = 256,
        max_bytes: int = 262_144,
        allow_direct: bool = True,
    ) -> Batch:
        await self.stream.answer("fetch")
        found = self.stream.matching(pattern, seq, self.stream.last_seq - self.stream.lag if allow_direct else None)
        sizes = itertools.accumulate((len(each.payload) for each in found), initial=0)
        taken = [each for each, size in zip(found[:batch], sizes, strict=False) if size < max_bytes]
        await self.stream.answer("fetch")
        left = len(found) - len(taken)
        return Batch(taken, is_end=not left, pending=left if allow_direct or not left else -1)

    async def create_snapshot(self, stream: str, name: str, deliver_subject: str, patterns: Sequence[str]) -> int:
        await self.stream.answer("snapshot")
        (pattern,) = patterns
        last_of = {each.subject: each.seq for each in self.stream.matching(pattern)}
        listener = self.link.listeners[deliver_subject]
        task = asyncio.create_task(self._deliver(listener, pattern, sorted(last_of.values()), self.stream.last_seq))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        await self.stream.answer("snapshot")
        return len(last_of)

    async def _deliver(self, listener: ControlListener, pattern: str, seqs: list[int], through: int) -> None:
        """Deliver the last messages that still exist, and then those that were stored later."""
        number = 0
        while True:
            later = self.stream.matching(pattern, through + 1)
            seqs = [seq for seq in seqs if seq in self.stream.messages]
            message = self.stream.messages[seqs.pop(0)] if seqs else later[0] if later else None
            if message is None:
                headers = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: %d\r\nNats-Last-Stream: 0\r\n\r\n"
                await asyncio.sleep(5)
                if listener in self.link.listeners.values():
                    listener.on_message(b"", b"", headers % number, b"")
                    continue
                return
            through = max(through, message.seq)
            number += 1
            pending = len(seqs) + len(self.stream.matching(pattern, through + 1))
            await asyncio.sleep(0)
            if listener not in self.link.listeners.values():
                return
            self.stream.interrupt("delivery")
            deliver(listener, message, number, pending)

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Do nothing."""

    async def create_feed(self, stream: str, name: str, deliver_subject: str, start_seq: int) -> None:
        """Do nothing."""


def deliver(listener: ControlListener, message: StoredMessage, number: int, pending: int = 0) -> None:
    """Let a consumer deliver a message."""
    reply = b"$JS.ACK.S.c.1.%d.%d.%d.%d" % (message.seq, number, message.time * 1_000_000, pending)
    listener.on_message(message.subject.encode(), reply, message.headers, message.payload)


class FakeLink:
    """A connection to NATS: the subscriptions."""

    def __init__(self) -> None:
        self.client: object | None = object()
        self.listeners: dict[str, ControlListener] = {}
        self._subjects: dict[int, str] = {}

    def subscribe_control(self, subject: str, listener: ControlListener) -> int | None:
        if self.client is None:
            return None
        sid = len(self._subjects) + 1
        self._subjects[sid] = subject
        self.listeners[subject] = listener
        return sid

    def unsubscribe(self, sid: int) -> None:
        del self.listeners[self._subjects[sid]]

    def publish(self, subject: str) -> None:
        """Do nothing."""


class FakeWorker:
    """A worker that follows a stream: its feed, whose messages the test delivers, and the windows."""

    def __init__(self, stream: FakeStream, *, max_bytes: int = 10_000_000) -> None:
        self.stream = stream
        self.memory = WindowMemory(max_bytes)
        self._max_bytes = max_bytes
        self.link = FakeLink()
        self.feed = Feed(
            stream.config.name, None, FakeJetStream(stream, self.link), self.link, self, deliver_prefix="feed"
        )
        self._number = 0
        self.resets = 0
        self.fails: Callable[[Record], bool] = lambda record: False
        self.look()

    def look(self) -> None:
        """Let the feed read the state of the stream, as at its start, and after the stream was shorter for seconds."""
        self.feed._shorter_since = -60
        self.feed._update(self.stream.info)
        self._number = 0
        self.feed._consumer_seq = 0
        self.feed._is_reading = self.feed.is_standing = True

    def follow(self, *patterns: str) -> list[Followed]:
        found = []
        for pattern in patterns:
            found.append(Followed(pattern, self.memory, self.feed.seq))
            self.feed.add(found[-1])
        return found

    def receive(self, most: int | None = None) -> None:
        """Let the feed receive its next messages."""
        for message in self.stream.matching(">", self.feed.seq + 1)[:most]:
            self._number += 1
            deliver(self.feed, message, self._number)

    def evict(self, records: int) -> None:
        """Remove the oldest records of the windows."""
        for _ in range(records):
            if self.memory.bytes:
                self.memory.max_bytes = self.memory.bytes - 1
                self.memory.make_room()
        self.memory.max_bytes = self._max_bytes

    # As the listener of the feed

    def deliver(self, feed: Feed, record: Record, followed: tuple[Followed, ...]) -> bool:
        if self.fails(record):
            raise ValueError
        for each in followed:
            each.window.add(record)
        return False

    def lost(self, followed: tuple[Followed, ...]) -> None:
        """Do nothing."""

    def was_reset(self, feed: Feed) -> None:
        self.resets += 1

    def ended(self, feed: Feed, followed: list[Followed]) -> None:
        """Do nothing."""


def point_of(message: StoredMessage) -> Point:
    return Point(message.seq, message.time)


def failing(*requests: str, error: JetStreamError) -> Callable[[str], None]:
    """Return an ``interrupt`` that lets the first of these requests fail, each once."""
    left = list(requests)

    def interrupt(request: str) -> None:
        if request in left:
            left.remove(request)
            raise error

    return interrupt
