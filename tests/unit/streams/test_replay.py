"""One replay of a client, from the point at which it begins to the present."""

import asyncio

import pytest

from sanic_nats_bridge.protocol.start import Start
from sanic_nats_bridge.streams.positions import Point
from sanic_nats_bridge.streams.replay import Replay
from sanic_nats_bridge.streams.replay_limits import ReplayLimits
from tests.support.clock import turns
from tests.support.stored import FollowedStream

LIMITS = ReplayLimits(messages=100, size=1_000_000, subjects=100)


async def read_all(replay: Replay) -> list[int]:
    """Return the sequences of all messages up to the present."""
    found: list[int] = []
    while (steps := replay.take_present(10)) != []:
        if steps is None:
            await replay.read()
        else:
            found += [step.record.seq for step in steps]
    return found


@pytest.mark.parametrize("start", [Start("all"), Start("last", 4)])
async def test_replay_waits_for_a_feed_that_lags(start: Start) -> None:
    stream = FollowedStream(["a.1"] * 12, seq=5)
    replay = Replay([stream.reader("a.1")], LIMITS, None)
    await replay.prepare(None, start)
    reading = asyncio.create_task(read_all(replay))
    await turns()
    assert not reading.done()
    stream.arrive(12)
    assert (await reading)[-4:] == [9, 10, 11, 12]
    assert replay.positions == {stream.feed: stream.feed.point}


async def test_each_part_of_the_backlog_is_missed() -> None:
    stream = FollowedStream(["a.1"] * 2_010, seq=2_010)
    replay = Replay([stream.reader("a.1")], ReplayLimits(messages=2_000, size=1, subjects=1), None)
    await replay.prepare(None, Start("all"))
    assert [(missed.reason, missed.lost) for missed in replay.take_missed()] == [("backlog", 10)]
    assert replay.take_missed() == []
    replay.readers[0].read_bytes = 2
    assert await read_all(replay) == []
    assert [(missed.reason, missed.lost) for missed in replay.take_missed()] == [("backlog", None)]
    assert not replay.recovered


async def resume(stream: FollowedStream, *patterns: str, after: int) -> tuple[Replay, int]:
    """Return the replay of a client at a sequence, when it has read everything, and the number of its messages."""
    replay = Replay([stream.reader(*patterns)], ReplayLimits(messages=5_000, size=1_000_000, subjects=1), None)
    point = Point(after, stream.jetstream.messages[after - 1].time)
    await replay.prepare({stream.feed.key: point}, Start("new"))
    return replay, len(await read_all(replay))


async def test_one_client_reads_for_all_that_return_to_a_new_worker() -> None:
    stream = FollowedStream(["a.1"] * 400, seq=400)
    stream.feed.life.anchor = stream.feed.point
    stream.hub.follow(stream.feed, "a.1")
    alone, count = await resume(stream, "a.1", after=100)
    requests, stream.jetstream.requests = stream.jetstream.requests, 0
    assert (count, alone.recovered) == (300, True)
    assert requests > 0
    replays = await asyncio.gather(*(resume(stream, "a.1", after=100) for _ in range(50)))
    replays += await asyncio.gather(*(resume(stream, "a.1", after=after) for after in (101, 399, 400)))
    assert [each.recovered for each, _ in replays] == [True] * 53
    assert [count for _, count in replays] == [*[300] * 50, 299, 1, 0]
    assert stream.jetstream.requests == 0


async def test_clients_that_return_at_once_ask_nats_no_more_than_one() -> None:
    numbers = []
    for clients in (1, 50):
        stream = FollowedStream(["a.1", "a.2"] * 400, seq=800)
        stream.feed.life.anchor = stream.feed.point
        stream.hub.follow(stream.feed, "a.1")
        replays = await asyncio.gather(*(resume(stream, "a.1", after=99) for _ in range(clients)))
        assert {count for _, count in replays} == {350}
        numbers.append(stream.jetstream.requests)
    assert numbers[0] == numbers[1]


async def test_position_of_a_number_that_was_used_again_is_not_known_by_the_window() -> None:
    stream = FollowedStream(["a.1"] * 40, seq=40)
    stream.feed.life.anchor = stream.feed.point
    await resume(stream, "a.1", after=10)
    replay = Replay([stream.reader("a.1")], LIMITS, None)
    await replay.prepare({stream.feed.key: Point(20, stream.jetstream.messages[19].time - 1)}, Start("new"))
    assert [missed.reason for missed in replay.take_missed()] == ["reset"]
