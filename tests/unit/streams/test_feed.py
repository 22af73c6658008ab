"""The position of a feed without followers."""

import asyncio
import gc
from dataclasses import replace

import pytest

from sanic_nats_bridge.streams.judgement import judge
from sanic_nats_bridge.streams.positions import Point
from tests.support.clock import turns
from tests.support.stored import FollowedStream, info_of


async def test_position_is_asked_for_again_after_the_feed_has_stopped() -> None:
    stream = FollowedStream(["a.1"] * 12, seq=5)
    stream.reader("a.1")
    (followed,) = stream.feed.followed
    stream.feed.is_standing = False
    stream.feed.remove(followed)
    stream.hub.follow(stream.feed, "a.1")
    assert not stream.feed.is_current


async def test_position_of_a_feed_that_goes_on_is_kept() -> None:
    stream = FollowedStream(["a.1"] * 12, seq=5)
    stream.reader("a.1")
    stream.feed.is_standing = False
    stream.hub.follow(stream.feed, "a.2")
    assert stream.feed.is_current


async def test_stream_that_has_begun_again_and_is_longer_is_another_one(caplog: pytest.LogCaptureFixture) -> None:
    stream = FollowedStream(["a.1"] * 12, seq=5)
    stream.reader("a.1")
    first = stream.feed.time + 1
    stream.feed._update(replace(info_of(12), first_time=first, last_time=first + 12))
    assert (stream.feed.seq, stream.feed.life.anchor) == (12, Point(12, first + 12))
    assert "is not the one before" in caplog.text


async def test_old_position_is_not_of_a_stream_that_was_empty() -> None:
    stream = FollowedStream(["a.1"] * 12, seq=0)
    stream.feed.is_current = False
    stream.feed._update(replace(info_of(0), messages=0, first_time=0, last_time=0))
    old = stream.jetstream.messages[7]
    reader = stream.reader("a.1")
    stream.jetstream.messages = [each._replace(time=each.time + 1000) for each in stream.jetstream.messages]
    stream.arrive(12)
    assert await judge(stream.feed, Point(old.seq, old.time), reader, None) == "reset"


async def test_deletion_of_a_consumer_may_fail_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    stream = FollowedStream([], seq=0)
    task = asyncio.create_task(stream.feed.delete_consumer("c"))
    await turns()
    task.cancel()
    await turns()
    stream.jetstream.deleting.set()
    await turns()
    gc.collect()
    assert task.cancelled()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (b"$JS.ACK.S.c.1.", b""),
        (b"$JS.ACK.hub.hash.S.c.1.", b""),
        (b"$JS.ACK.hub.hash.S.c.1.", b".token"),
        (b"$JS.ACK.hub.hash.S.c.1.", b".token.more"),
    ],
)
async def test_messages_are_delivered_with_every_kind_of_reply_subject(start: bytes, end: bytes) -> None:
    stream = FollowedStream([], seq=5)
    feed = stream.feed
    (followed,) = stream.reader("a.1").followed
    feed._is_reading = True
    for number in range(1, 4):
        time = (1_000_000 + number) * 1_000_000 + 999_999
        numbers = b"%d.%d.%d.%d" % (10 + number, number, time, 4 - number)
        assert not feed.on_message(b"a.1", start + numbers + end, b"", b"x")
        assert (feed.seq, feed.time, feed.lag) == (10 + number, 1_000_000 + number, 4 - number)
    assert [(each.seq, each.time) for each in followed.window.after(5)] == [
        (11, 1_000_001),
        (12, 1_000_002),
        (13, 1_000_003),
    ]
