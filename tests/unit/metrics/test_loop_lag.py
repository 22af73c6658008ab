import asyncio

from sanic_nats_bridge.metrics.loop_lag import LoopLag
from tests.support.clock import leaping


async def test_lag_is_reported_during_block_and_for_15_s_after() -> None:
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


async def test_lag_is_largest_delay_until_it_expires() -> None:
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


async def test_lag_is_zero_after_stop_and_restart() -> None:
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
