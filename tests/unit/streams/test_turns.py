import asyncio

import pytest

from sanic_nats_bridge.metrics.counters import Counters
from sanic_nats_bridge.streams.turns import Turns
from tests.support.bridge import until


@pytest.fixture
def counters() -> Counters:
    return Counters()


async def test_waiting_replays_are_counted_and_served_in_order(counters: Counters) -> None:
    turns = Turns(1, counters)
    served = []

    async def read(number: int) -> None:
        async with turns:
            served.append(number)

    async with turns:
        assert counters.replays_waiting == 0
        reading = [asyncio.create_task(read(number)) for number in range(3)]
        await until(lambda: counters.replays_waiting == 3)
    await asyncio.gather(*reading)
    assert served == [0, 1, 2]
    assert counters.replays_waiting == 0


async def test_cancelled_wait_is_not_counted(counters: Counters) -> None:
    turns = Turns(1, counters)
    async with turns:
        waiting = asyncio.create_task(turns.acquire())
        await until(lambda: counters.replays_waiting)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert counters.replays_waiting == 0
