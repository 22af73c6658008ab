import asyncio

from sanic_nats_bridge.metrics.loop_lag import LoopLag
from tests.support.clock import leaping


async def test_a_blocked_loop_is_told_while_it_is_and_for_fifteen_seconds_at_least() -> None:
    lag = LoopLag()
    lag.start()
    await asyncio.sleep(1.01)
    assert lag.seconds < 0.001
    leaping().block(2)
    assert lag.seconds > 1.8
    await asyncio.sleep(15)
    assert 1.8 < lag.seconds <= 2
    await asyncio.sleep(15.2)
    assert lag.seconds < 0.001
    lag.stop()


async def test_the_largest_delay_counts_and_a_later_one_lasts_longer() -> None:
    lag = LoopLag()
    lag.start()
    leaping().block(3)
    await asyncio.sleep(13)
    leaping().block(1)
    await asyncio.sleep(1)
    assert 2.8 < lag.seconds <= 3
    await asyncio.sleep(15.5)
    assert lag.seconds < 1
    lag.stop()


async def test_what_is_stopped_leaves_no_timer_and_tells_nothing() -> None:
    lag = LoopLag()
    assert lag.seconds == 0
    lag.start()
    leaping().block(3)
    lag.stop()
    lag.stop()
    assert lag.seconds == 0
    lag.start()
    assert lag.seconds < 0.001
    lag.stop()
