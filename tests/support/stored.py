"""A stream in memory, as replays read it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from sanic_nats_bridge.auth.expirations import ExpirationQueue
from sanic_nats_bridge.hub.broadcast import Broadcaster
from sanic_nats_bridge.metrics.counters import Counters
from sanic_nats_bridge.protocol.subjects import includes
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.streams.answers import Batch, JetStreamUnavailable, StoredMessage, StreamInfo
from sanic_nats_bridge.streams.feed import Feed, StreamLife
from sanic_nats_bridge.streams.hub import StreamHub
from sanic_nats_bridge.streams.positions import Point
from sanic_nats_bridge.streams.reader import StreamReader
from sanic_nats_bridge.streams.window import Record

_TIME = 1_000_000


class FakeJetStream:
    """The answers of JetStream for one stream, whose messages have the sequences from 1 on."""

    def __init__(self, subjects: Sequence[str]) -> None:
        self.messages = [StoredMessage(seq, _TIME + seq, subject, b"", b"1") for seq, subject in enumerate(subjects, 1)]
        self.requests = 0
        self.deleting = asyncio.Event()
        """Set to let the deletion of a consumer fail."""

    def within(self, turns: asyncio.Semaphore) -> "FakeJetStream":
        return self

    async def delete_consumer(self, stream: str, name: str) -> None:
        await self.deleting.wait()
        raise JetStreamUnavailable("no answer")

    async def stream_info(self, stream: str) -> StreamInfo:
        self.requests += 1
        return info_of(len(self.messages))

    async def fetch(self, stream: str, seq: int, pattern: str, *, batch: int, **_: Any) -> Batch:
        self.requests += 1
        left = [each for each in self.messages if each.seq >= seq and includes(pattern, each.subject)]
        return Batch(left[:batch], is_end=len(left) <= batch, pending=max(0, len(left) - batch))

    async def next_message(self, stream: str, seq: int, pattern: str) -> StoredMessage | None:
        self.requests += 1
        return next((each for each in self.messages if each.seq >= seq and includes(pattern, each.subject)), None)

    async def first_of_last(self, stream: str, pattern: str, count: int, info: StreamInfo) -> tuple[int, bool]:
        found = [each.seq for each in self.messages if includes(pattern, each.subject)]
        return (found[-count:][0], len(found) > count) if found else (info.last_seq + 1, False)

    async def first_of_last_of_all(self, stream: str, patterns: Sequence[str], count: int, info: StreamInfo) -> int:
        found = sorted(each.seq for each in self.messages for name in patterns if includes(name, each.subject))
        return found[-count:][0] if found else info.last_seq + 1

    async def count_between(self, stream: str, pattern: str, begin: int, end: int) -> int | None:
        return sum(begin <= each.seq < end and includes(pattern, each.subject) for each in self.messages)


def info_of(last_seq: int) -> StreamInfo:
    """Return the state of a stream with so many messages."""
    return StreamInfo(
        name="S",
        created="2026-01-01T00:00:00Z",
        first_seq=1,
        last_seq=last_seq,
        first_time=_TIME + 1,
        last_time=_TIME + last_seq,
        messages=last_seq,
        subjects=("a.>",),
        retention="limits",
        storage="file",
        allow_direct=True,
        max_msgs_per_subject=-1,
        max_age_ns=0,
        max_msgs=-1,
        max_bytes=-1,
        num_replicas=1,
        is_mirror=False,
        has_sources=False,
        has_transform=False,
    )


class FollowedStream:
    """A feed over a stream in memory, which has arrived at a sequence.

    Args:
        subjects: The subjects of the messages.
        seq: The sequence at which the feed is.
    """

    def __init__(self, subjects: Sequence[str], seq: int) -> None:
        settings = Settings.resolve({"streams": {"S": ["a.>"]}}, {})
        counters = Counters()
        broadcaster = Broadcaster(counters, ExpirationQueue(lambda keys: None))
        self.hub = StreamHub(settings, broadcaster, counters, prefix="_X")
        (self.feed,) = self.hub.feeds
        self.jetstream = FakeJetStream(subjects)
        self.feed.jetstream = self.jetstream  # type: ignore[assignment]
        self.feed.life = StreamLife("stream000", Point(0, 0))
        self.feed.info = info_of(seq)
        self.feed.seq, self.feed.time = seq, _TIME + seq
        self.feed.is_current = self.feed.is_standing = True
        self.feed._current.set()

    def arrive(self, seq: int) -> None:
        """Let the feed deliver all messages up to a sequence."""
        while self.feed.seq < seq:
            message = self.jetstream.messages[self.feed.seq]
            record = Record(message.seq, message.time, message.subject, b"", message.payload)
            followed = tuple(each for each in self.feed.followed if includes(each.pattern, record.subject))
            if followed:
                self.hub.deliver(self.feed, record, followed)
            self.feed.seq, self.feed.time = record.seq, record.time
            self.feed._awaited.arrived(record.seq)

    def reader(self, *patterns: str) -> StreamReader:
        """Return a reader of patterns that are followed from now on, if they aren't already."""
        feed: Feed = self.feed
        return self.hub.reader(feed, [self.hub.follow(feed, pattern) for pattern in patterns], feed.point)
