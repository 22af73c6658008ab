import asyncio
from collections.abc import Iterator

import pytest

from sanic_nats_bridge.metrics.loop_lag import LoopLag
from tests.support.fakes import LeapingLoop


@pytest.fixture
def loop() -> Iterator[LeapingLoop]:
    loop = LeapingLoop()
    yield loop
    loop.close()


def block(loop: LeapingLoop, seconds: float) -> None:
    """Have the time pass as something does that does not let the loop turn."""
    loop.now += seconds


def test_a_blocked_loop_is_told_while_it_is_and_for_fifteen_seconds_at_least(loop: LeapingLoop) -> None:
    async def scenario() -> None:
        lag = LoopLag()
        lag.start()
        await asyncio.sleep(1.01)
        assert lag.seconds < 0.001
        block(loop, 2)
        assert lag.seconds > 1.8
        await asyncio.sleep(15)
        assert 1.8 < lag.seconds <= 2
        await asyncio.sleep(15.2)
        assert lag.seconds < 0.001
        lag.stop()

    loop.run_until_complete(scenario())


def test_the_largest_delay_counts_and_a_later_one_lasts_longer(loop: LeapingLoop) -> None:
    async def scenario() -> None:
        lag = LoopLag()
        lag.start()
        block(loop, 3)
        await asyncio.sleep(13)
        block(loop, 1)
        await asyncio.sleep(1)
        assert 2.8 < lag.seconds <= 3
        await asyncio.sleep(15.5)
        assert lag.seconds < 1
        lag.stop()

    loop.run_until_complete(scenario())


def test_what_is_stopped_leaves_no_timer_and_tells_nothing(loop: LeapingLoop) -> None:
    async def scenario() -> None:
        lag = LoopLag()
        assert lag.seconds == 0
        lag.start()
        block(loop, 3)
        lag.stop()
        lag.stop()
        assert lag.seconds == 0
        lag.start()
        assert lag.seconds < 0.001
        lag.stop()

    loop.run_until_complete(scenario())
