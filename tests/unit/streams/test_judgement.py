import asyncio
import time as wall
from collections.abc import Sequence
from typing import Any

import pytest

from sanic_nats_bridge.protocol.messages import ReplayGapReason
from sanic_nats_bridge.streams.jetstream import JetStreamUnavailable
from sanic_nats_bridge.streams.judgement import NOWHERE, cutoff_of, has_expired, judge
from sanic_nats_bridge.streams.positions import Point
from sanic_nats_bridge.streams.reader import StreamReader
from tests.support.clock import WallClock
from tests.support.fake_stream import FakeStream, FakeWorker, point_of


class Scene:
    """A stream with some messages before, and some after, the start of a worker that follows it."""

    def __init__(self, before: int = 10, after: int = 10, *, patterns: Sequence[str] = ("a",), **config: Any) -> None:
        self.stream = FakeStream(time=int(wall.time() * 1000) - 1_000)
        self.stream.configure(**config)
        self.stream.publish(*["a"] * before)
        self.worker = FakeWorker(self.stream)
        self.followed = self.worker.follow(*patterns)
        self.stream.publish(*["a"] * after)
        self.worker.receive()

    def point(self, seq: int) -> Point:
        return point_of(self.stream.messages[seq])

    async def judge(self, point: Point, cutoff: int | None = None) -> ReplayGapReason | None:
        self.reader = StreamReader(self.worker.feed, self.followed, Point(0, 0), asyncio.Semaphore(1))
        return await judge(self.worker.feed, point, self.reader, cutoff)


async def test_position_in_the_windows_is_judged_without_nats() -> None:
    scene = Scene()
    assert await scene.judge(scene.point(12)) is None
    assert scene.reader.seq == 12
    assert not scene.stream.requests
    # It need not be in the stream any more.
    point = scene.point(12)
    scene.stream.expire(15)
    assert await scene.judge(point) is None


async def test_position_before_the_windows() -> None:
    scene = Scene()
    for seq in (1, 5, 10):
        assert await scene.judge(scene.point(seq)) is None
    assert await scene.judge(Point(0, 0)) is None


@pytest.mark.parametrize("begun_at", [0, 10])
async def test_stream_that_begins_again_under_its_name(begun_at: int) -> None:
    scene = Scene(before=begun_at, after=20)
    old = [scene.point(seq) for seq in (5, 12, 20)]
    scene.stream.begin_again()
    scene.worker.look()
    assert scene.worker.resets == 1
    for count in (0, 4, 30, 30):
        scene.stream.publish(*["a"] * count)
        scene.worker.receive()
        for point in old:
            assert await scene.judge(point) == "reset"
    # Not even if nothing from the beginning is left, in the stream or in the windows.
    scene.stream.expire(20)
    scene.worker.evict(1_000)
    for point in old:
        assert await scene.judge(point) == "reset"


async def test_worker_that_was_started_after_the_stream_had_begun_again() -> None:
    scene = Scene(before=20)
    newer = Point(15, scene.point(15).time - 5_000)
    assert await scene.judge(newer) == "reset"
    # The message of this number is gone, so the oldest one counts.
    scene.stream.delete(15)
    assert await scene.judge(newer) == "reset"
    # Nothing is left by which the two streams differ.
    scene.stream.expire(15)
    assert await scene.judge(newer) is None


async def test_deleted_message_does_not_make_a_position_invalid() -> None:
    scene = Scene()
    point = scene.point(10)
    scene.stream.delete(10, 11)
    assert await scene.judge(point) is None
    scene.stream.expire(9)
    assert await scene.judge(point) is None


@pytest.mark.parametrize("lead", [-5, 120])
async def test_position_above_the_stream(wall_clock: WallClock, lead: int) -> None:
    scene = Scene()
    time = int((wall.time() + lead) * 1000)
    assert await scene.judge(Point(999, time)) == ("unknown" if lead > 60 else "reset")


async def test_worker_that_is_behind_waits_for_its_feed() -> None:
    scene = Scene()
    scene.stream.publish("a", "a")
    judged = asyncio.ensure_future(scene.judge(scene.point(22)))
    for _ in range(2):
        await asyncio.sleep(1)
        assert not judged.done()
        assert not scene.stream.requests
        scene.worker.receive(1)
    assert await judged is None
    assert not scene.stream.requests


async def test_worker_that_stays_behind_asks_again_later() -> None:
    scene = Scene()
    scene.stream.publish("a", "a")
    with pytest.raises(JetStreamUnavailable, match="read up to 20 only, and a client is at 22"):
        await scene.judge(scene.point(22))


async def test_part_of_a_state_is_not_a_position() -> None:
    assert await Scene().judge(NOWHERE) == "unknown"
    # But the beginning of a stream that was empty is, without a question to NATS.
    scene = Scene(before=0)
    assert await scene.judge(Point(0, 0)) is None
    assert not scene.stream.requests


@pytest.mark.parametrize("patterns", [["a"], ["a", ">", "none"]])
@pytest.mark.parametrize("seq", [5, 12])
async def test_messages_are_too_old_by_their_own_times(seq: int, patterns: list[str]) -> None:
    scene = Scene(patterns=patterns)
    next_time = scene.stream.messages[seq + 1].time
    for point in (scene.point(seq), Point(seq, int(wall.time() * 1000))):
        assert await scene.judge(point, next_time) is None
        assert await scene.judge(point, next_time + 1) == "expired"
    assert await scene.judge(scene.point(20), 10**15) is None


async def test_old_messages_of_other_subjects_do_not_count() -> None:
    scene = Scene(patterns=["b", "c"])
    assert await scene.judge(scene.point(3), 10**15) is None


async def test_cutoff_is_before_now(wall_clock: WallClock) -> None:
    assert cutoff_of(120) == int((wall.time() - 120) * 1000)


@pytest.mark.parametrize(
    ("config", "moved", "emptied"),
    [
        ({}, True, True),
        ({"max_age_ns": 1}, True, True),
        ({"max_msgs_per_subject": 1}, False, True),
        ({"max_msgs_per_subject": 1, "max_age_ns": 1}, True, True),
        ({"max_msgs_per_subject": 5, "max_msgs": 100}, True, True),
        ({"max_msgs_per_subject": 5, "max_bytes": 100}, True, True),
    ],
)
def test_removed_messages(config: dict[str, int], moved: bool, emptied: bool) -> None:
    stream = FakeStream()
    stream.configure(**config)
    stream.publish(*[f"a.{number}" for number in range(20)])
    assert not has_expired(stream.info, 0)
    stream.expire(10)
    assert [has_expired(stream.info, seq) for seq in (10, 11, 20)] == [False] * 3
    assert has_expired(stream.info, 9) is moved
    stream.expire(20)
    assert has_expired(stream.info, 19) is emptied
    assert not has_expired(stream.info, 20)
