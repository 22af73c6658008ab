import asyncio
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.auth.expirations import ExpirationQueue
from tests.support.clock import LeapingLoop, WallClock
from tests.support.fakes import ignore
from tests.support.growth import assert_linear


async def test_each_key_expires_once_at_its_time(wall_clock: WallClock) -> None:
    due: list[tuple[str, float]] = []
    expirations = ExpirationQueue(lambda keys: due.extend((key, wall_clock.time()) for key in keys))
    now = wall_clock.time()
    for key, after in (("b", 4), ("a", 2), ("never", math.inf), ("gone", 3), ("later", 3600), ("past", -5)):
        expirations.put(key, now + after)
    expirations.drop("gone")
    expirations.drop("unknown")
    await asyncio.sleep(60)
    assert due == [("past", now), ("a", pytest.approx(now + 2)), ("b", pytest.approx(now + 4))]
    assert expirations.next == now + 3600
    expirations.put("later", math.inf)
    assert expirations.next == math.inf
    expirations.expire_due()
    assert len(due) == 3


async def test_expiration_can_be_moved_earlier_or_later(wall_clock: WallClock) -> None:
    due: list[str] = []
    expirations = ExpirationQueue(due.extend)
    now = wall_clock.time()
    expirations.put("a", now + 1)
    expirations.put("b", now + 3600)
    expirations.put("a", now + 3600)
    expirations.put("b", now + 3)
    await asyncio.sleep(60)
    assert due == ["b"]
    expirations.drop("a")
    assert expirations.next == math.inf


@pytest.mark.parametrize("set_by", [-3600.0, 3600.0])
async def test_expiration_adapts_to_wall_clock_change(wall_clock: WallClock, set_by: float) -> None:
    due: list[float] = []
    expirations = ExpirationQueue(lambda _: due.append(wall_clock.time()))
    at = wall_clock.time() + 600
    expirations.put("a", at)
    await asyncio.sleep(60)
    wall_clock.set_by(set_by)
    await asyncio.sleep(4500)
    (noticed,) = due
    assert at <= noticed <= at + max(0.0, set_by - 540) + 30.1


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(1, 50))), max_size=60))
def test_dropped_keys_do_not_accumulate_in_queue(steps: list[tuple[str, int | None]]) -> None:
    loop = LeapingLoop()
    year_5138 = 1e11

    async def scene() -> None:
        expirations = ExpirationQueue(lambda _: None)
        model: dict[str, float] = {}
        for key, after in steps:
            if after is None:
                expirations.drop(key)
                model.pop(key, None)
            else:
                expirations.put(key, year_5138 + after)
                model[key] = year_5138 + after
            assert expirations.next <= min(model.values(), default=math.inf)
            assert len(expirations._queue) <= 2 * len(model) + 1

    try:
        loop.run_until_complete(scene())
    finally:
        loop.close()


@pytest.mark.parametrize("count", [1, 500, 501, 1_500])
async def test_many_keys_expire_in_one_call(count: int, wall_clock: WallClock) -> None:
    calls: list[list[str]] = []
    expirations = ExpirationQueue(calls.append)
    now = wall_clock.time()
    for number in range(count):
        expirations.put(f"due {number}", now - 1 - number % 7)
        expirations.put(f"later {number}", now + 10 + number)
        expirations.put(f"gone {number}", now - 1)
        expirations.drop(f"gone {number}")
    expirations.expire_due()
    (due,) = calls
    assert sorted(due) == sorted(f"due {number}" for number in range(count))
    assert expirations.next == now + 10
    await asyncio.sleep(11)
    assert calls[1:] == [["later 0"], ["later 1"]][:count]


async def test_time_for_due_keys_grows_in_proportion(wall_clock: WallClock) -> None:
    def make(count: int) -> Callable[[], object]:
        expirations = ExpirationQueue(ignore)
        for number in range(count):
            expirations.put(f"{number}", wall_clock.time() - number % 7)
        return expirations.expire_due

    assert_linear(make, 4_000)
