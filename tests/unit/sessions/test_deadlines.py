import asyncio

import pytest

from sanic_nats_bridge.sessions.deadlines import Deadlines
from tests.support.bridge import until


async def wait(deadlines: Deadlines, seconds: float) -> None:
    async with deadlines.within(seconds):
        await asyncio.Event().wait()


async def test_block_that_exceeds_its_deadline_times_out() -> None:
    with pytest.raises(TimeoutError):
        await wait(Deadlines(), 0.01)


async def test_block_that_ends_in_time_leaves_no_timeout() -> None:
    deadlines = Deadlines()
    async with deadlines.within(60):
        await asyncio.sleep(0)
    deadlines.stop()
    await asyncio.sleep(0)
    assert not deadlines._timeouts


async def test_stop_times_out_current_and_new_blocks_until_start() -> None:
    deadlines = Deadlines()
    tasks = [asyncio.create_task(wait(deadlines, 60)) for _ in range(3)]
    await until(lambda: len(deadlines._timeouts) == 3)
    deadlines.stop()
    results = await asyncio.gather(*tasks, wait(deadlines, 60), return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError] * 4
    deadlines.start()
    async with deadlines.within(60):
        await asyncio.sleep(0)


async def test_stop_does_not_disturb_block_already_timing_out() -> None:
    deadlines = Deadlines()

    async def stubborn() -> None:
        async with deadlines.within(0.01):
            try:
                await asyncio.Event().wait()
            finally:
                await over.wait()

    over = asyncio.Event()
    task = asyncio.create_task(stubborn())
    await until(lambda: any(deadline.expired() for deadline in deadlines._timeouts))
    deadlines.stop()
    over.set()
    with pytest.raises(TimeoutError):
        await task
