import asyncio
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.auth.expirations import ExpirationQueue
from tests.support.bridge import until
from tests.support.fakes import LeapingLoop


class Clock:
    """Of the wall; goes with the loop's, but for what it is set by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loop: LeapingLoop) -> None:
        self.offset = 1_000_000.0
        self._loop = loop
        monkeypatch.setattr(time, "time", lambda: self._loop.now + self.offset)


async def test_each_is_due_at_its_time_and_once() -> None:
    due: list[str] = []
    expirations = ExpirationQueue(due.append)
    now = time.time()
    for key, after in (("b", 0.04), ("a", 0.02), ("never", math.inf), ("gone", 0.03), ("later", 3600), ("past", -5)):
        expirations.put(key, now + after)
    expirations.drop("gone")
    expirations.drop("unknown")
    await until(lambda: due == ["past", "a", "b"])
    assert time.time() >= now + 0.04
    assert expirations.next == now + 3600
    expirations.put("later", math.inf)
    assert expirations.next == math.inf
    expirations.expire_due()
    assert due == ["past", "a", "b"]


async def test_a_time_can_be_moved_both_ways() -> None:
    due: list[str] = []
    expirations = ExpirationQueue(due.append)
    now = time.time()
    expirations.put("a", now + 0.01)
    expirations.put("b", now + 3600)
    expirations.put("a", now + 3600)
    expirations.put("b", now + 0.03)
    await until(lambda: due == ["b"])
    expirations.drop("a")
    assert expirations.next == math.inf


@pytest.mark.parametrize("set_by", [-3600.0, 3600.0])
def test_a_wall_clock_that_is_set_is_noticed(monkeypatch: pytest.MonkeyPatch, set_by: float) -> None:
    loop = LeapingLoop()
    clock = Clock(monkeypatch, loop)

    async def scene() -> None:
        due: list[float] = []
        expirations = ExpirationQueue(lambda _: due.append(time.time()))
        at = time.time() + 600
        expirations.put("a", at)
        await asyncio.sleep(60)
        clock.offset += set_by
        await asyncio.sleep(4500)
        (noticed,) = due
        assert at <= noticed <= at + max(0.0, set_by - 540) + 30.1

    try:
        loop.run_until_complete(scene())
    finally:
        loop.close()


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(1, 50))), max_size=60))
def test_what_is_dropped_does_not_pile_up(steps: list[tuple[str, int | None]]) -> None:
    loop = LeapingLoop()
    now = time.time()

    async def scene() -> None:
        expirations = ExpirationQueue(lambda _: None)
        model: dict[str, float] = {}
        for key, after in steps:
            if after is None:
                expirations.drop(key)
                model.pop(key, None)
            else:
                expirations.put(key, now + 1000 + after)
                model[key] = now + 1000 + after
            assert expirations.next <= min(model.values(), default=math.inf)
            assert len(expirations._queue) <= 2 * len(model) + 1

    try:
        loop.run_until_complete(scene())
    finally:
        loop.close()
