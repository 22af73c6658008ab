import logging

import pytest

from sanic_nats_bridge.streams.positions import Point
from tests.support.fake_stream import FakeStream, FakeWorker, deliver, point_of


async def test_anchor_is_the_first_message_of_which_the_time_is_known() -> None:
    stream = FakeStream()
    worker = FakeWorker(stream)
    worker.follow("a")
    assert worker.feed.life.anchor == Point(0, 0)
    stream.publish("b", "a")
    worker.receive()
    assert worker.feed.life.anchor == point_of(stream.messages[1])
    worker = FakeWorker(stream)
    stream.publish("a")
    worker.receive()
    assert worker.feed.life.anchor == point_of(stream.messages[2])


async def test_feed_has_another_life_when_its_position_is_not_valid_any_more() -> None:
    stream = FakeStream()
    stream.publish("a", "a")
    worker = FakeWorker(stream)
    (followed,) = worker.follow("a")
    lives = [worker.feed.life]
    worker.look()
    assert (worker.feed.life, worker.resets) == (lives[0], 0)
    for number, created in enumerate((None, "2027-01-01T00:00:00Z"), 1):
        stream.begin_again(created)
        stream.publish(*["a"] * number)
        worker.look()
        assert worker.feed.point == point_of(stream.messages[number])
        assert followed.window.floor == number
        assert worker.resets == number
        lives.append(worker.feed.life)
        assert len(set(lives)) == number + 1
        assert (lives[-1].key == lives[0].key) is (created is None)


async def test_window_is_complete_after_a_message_that_could_not_be_delivered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream = FakeStream()
    worker = FakeWorker(stream)
    (followed,) = worker.follow("a")
    worker.fails = lambda record: record.seq == 2
    stream.publish("a", "a", "a")
    with caplog.at_level(logging.ERROR):
        worker.receive()
    assert "Cannot deliver a message of a stream" in caplog.text
    assert worker.feed.seq == 3
    assert (followed.window.floor, [each.seq for each in followed.window.after(2)]) == (2, [3])


async def test_subscription_of_an_earlier_connection_is_left_alone() -> None:
    worker = FakeWorker(FakeStream())
    link = worker.link
    old = link.client
    sid = link.subscribe_control("x", worker.feed)
    assert sid is not None
    link.client = object()
    worker.feed.unsubscribe(old, sid)
    assert "x" in link.listeners
    worker.feed.unsubscribe(link.client, sid)
    assert "x" not in link.listeners


async def test_feed_ignores_messages_that_it_has() -> None:
    stream = FakeStream()
    stream.publish("a", "a")
    worker = FakeWorker(stream)
    (followed,) = worker.follow("a")
    deliver(worker.feed, stream.messages[2], 1)
    assert (len(followed.window), worker.feed.seq) == (0, 2)
