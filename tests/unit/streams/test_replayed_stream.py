"""One stream of a replay: its position, its messages at hand, and what the client misses."""

import pytest

from sanic_nats_bridge.streams.judgement import NOWHERE
from sanic_nats_bridge.streams.positions import Point
from sanic_nats_bridge.streams.reader import Hit
from sanic_nats_bridge.streams.replayed_stream import ReplayedStream
from sanic_nats_bridge.streams.window import Record
from tests.support.stored import FollowedStream

STATE: list[Hit] = [(Record(3, 1_000_003, "a.1", b"", b"1"), ())]


def replayed(*patterns: str, seq: int = 12) -> ReplayedStream:
    return ReplayedStream(FollowedStream(["a.1", "a.2"] * 6, seq=seq).reader(*patterns))


async def test_another_position_replaces_all_that_was_at_hand() -> None:
    stream = replayed("a.1", "a.2")
    stream.set_state(STATE, Point(3, 1_000_003), 5)
    stream.move_to_each([3, 4], await stream.reader.jetstream.stream_info("S"))
    await stream.count()
    stream.miss("reset", 1)
    assert (stream.left, stream.takes_what_is_left, len(stream.hits)) == (10, True, 10)
    stream.move_to(Point(7, 1_000_007))
    assert (stream.reader.seq, stream.point, stream.reader.has_firsts) == (7, Point(7, 1_000_007), False)
    assert (stream.left, stream.counts, stream.hits) == (0, None, [])
    assert (stream.takes_what_is_left, stream.state_end, stream.settled) == (False, None, 0)
    # The client misses what it has missed before.
    assert stream.missed == [("reset", 1)]


@pytest.mark.parametrize(
    ("hits", "settled", "point", "state_end"),
    [
        (STATE, 3, NOWHERE, Point(3, 1_000_003)),
        ([], 3, Point(3, 1_000_003), None),
        ([], 4, NOWHERE, None),
    ],
)
def test_client_has_a_position_only_after_a_settled_state(
    hits: list[Hit], settled: int, point: Point, state_end: Point | None
) -> None:
    stream = replayed("a.1")
    stream.set_state(hits, Point(3, 1_000_003), settled)
    assert (stream.point, stream.state_end) == (point, state_end)


async def test_messages_at_hand_count_as_left() -> None:
    stream = replayed("a.1", "a.2")
    stream.move_to(Point(2, 1_000_002))
    await stream.count()
    assert stream.counts == [5, 5]
    assert [record.seq for record, _ in stream.hits] == list(range(3, 13))


async def test_messages_that_the_window_has_cannot_expire() -> None:
    stream = replayed("a.1")
    stream.move_to(stream.feed.point)
    await stream.count()
    assert (stream.left, await stream.has_expired()) == (0, False)
    stream.move_to(Point(0, 0))
    await stream.count()
    assert stream.reader.unchecked == 0
    assert not await stream.has_expired()
    assert stream.reader.unchecked is None


async def test_sequences_of_the_last_messages() -> None:
    stream = replayed("a.1", "a.2")
    info = await stream.reader.jetstream.stream_info("S")
    assert await stream.find_last([2, 0], info) == [9, 13]
