import asyncio
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.auth.expirations import Expiries
from tests.support.clock import LeapingLoop, WallClock


async def test_each_is_due_at_its_time_and_once(wall_clock: WallClock) -> None:
    due: list[tuple[str, float]] = []
    expiries = Expiries(lambda key: due.append((key, wall_clock.time())))
    now = wall_clock.time()
    for key, after in (("b", 4), ("a", 2), ("never", math.inf), ("gone", 3), ("later", 3600), ("past", -5)):
        expiries.put(key, now + after)
    expiries.drop("gone")
    expiries.drop("unknown")
    await asyncio.sleep(60)
    assert due == [("past", now), ("a", pytest.approx(now + 2)), ("b", pytest.approx(now + 4))]
    assert expiries.next == now + 3600
    expiries.put("later", math.inf)
    assert expiries.next == math.inf
    expiries.expire_due()
    assert len(due) == 3


async def test_a_time_can_be_moved_both_ways(wall_clock: WallClock) -> None:
    due: list[str] = []
    expiries = Expiries(due.append)
    now = wall_clock.time()
    expiries.put("a", now + 1)
    expiries.put("b", now + 3600)
    expiries.put("a", now + 3600)
    expiries.put("b", now + 3)
    await asyncio.sleep(60)
    assert due == ["b"]
    expiries.drop("a")
    assert expiries.next == math.inf


@pytest.mark.parametrize("set_by", [-3600.0, 3600.0])
async def test_a_wall_clock_that_is_set_is_noticed(wall_clock: WallClock, set_by: float) -> None:
    due: list[float] = []
    expiries = Expiries(lambda _: due.append(wall_clock.time()))
    at = wall_clock.time() + 600
    expiries.put("a", at)
    await asyncio.sleep(60)
    wall_clock.set_by(set_by)
    await asyncio.sleep(4500)
    (noticed,) = due
    assert at <= noticed <= at + max(0.0, set_by - 540) + 30.1


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(1, 50))), max_size=60))
def test_what_is_dropped_does_not_pile_up(steps: list[tuple[str, int | None]]) -> None:
    loop = LeapingLoop()
    now = time.time()

    async def scene() -> None:
        expiries = Expiries(lambda _: None)
        model: dict[str, float] = {}
        for key, after in steps:
            if after is None:
                expiries.drop(key)
                model.pop(key, None)
            else:
                expiries.put(key, now + 1000 + after)
                model[key] = now + 1000 + after
            assert expiries.next <= min(model.values(), default=math.inf)
            assert len(expiries._queue) <= 2 * len(model) + 1

    try:
        loop.run_until_complete(scene())
    finally:
        loop.close()
