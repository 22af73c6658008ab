"""One replay of a client, from the point at which it begins to the present."""

import asyncio

import pytest

from sanic_nats_bridge.protocol.start import Start
from sanic_nats_bridge.streams.replay import Replay, ReplayLimits
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
    stream = FollowedStream(["a.1"] * 40, seq=40)
    replay = Replay([stream.reader("a.1")], ReplayLimits(messages=30, size=1, subjects=1), None)
    await replay.prepare(None, Start("all"))
    assert [(missed.reason, missed.lost) for missed in replay.take_missed()] == [("backlog", 10)]
    assert replay.take_missed() == []
    replay.readers[0].read_bytes = 2
    assert await read_all(replay) == []
    assert [(missed.reason, missed.lost) for missed in replay.take_missed()] == [("backlog", None)]
    assert not replay.recovered
