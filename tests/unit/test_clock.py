"""The clocks of the tests themselves."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from tests.support.bridge import until
from tests.support.clock import held, leaping

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a scene in an event loop that waits."""

    def run(scene: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(scene)

    return run


def test_timers_fire_only_when_held_clock_is_advanced(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def scene() -> None:
        fired: list[str] = []
        loop = asyncio.get_running_loop()
        async with held() as clock:
            started, wall = loop.time(), time.time()
            for name, after in (("b", 2), ("a", 0), ("c", 3), ("later", 1000)):
                loop.call_later(after, fired.append, name)
            loop.call_later(1, fired.append, "cancelled").cancel()
            sleeper = asyncio.create_task(asyncio.sleep(2.5, "slept"))
            with pytest.raises(AssertionError):
                await until(lambda: fired, 0.01)
            await clock.forward(2)
            assert fired == ["a", "b"]
            assert not sleeper.done()
            await clock.forward(1)
            assert fired == ["a", "b", "c"]
            assert sleeper.done()
            assert (loop.time() - started, time.time() - wall) == pytest.approx((3, 3))
            clock.jump(500)
            assert fired == ["a", "b", "c"]
            clock.jump(500)
            assert fired.pop() == "later"
            loop.call_later(0.01, fired.append, "by itself")
        assert loop.time() >= started + 1003
        await until(lambda: fired[3:] == ["by itself"])
        async with asyncio.timeout(0.01):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(1000)
            raise TimeoutError from None

    with pytest.raises(TimeoutError):
        run(scene())


def test_due_timers_of_blocked_loop_fire_before_reads(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def scene() -> None:
        order: list[str] = []
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        with near, far:
            async with held() as clock:
                loop.call_later(1, order.append, "timer")
                far.send(b"read")
                loop.add_reader(near, lambda: order.append(near.recv(4).decode()))
                clock.jump(1)
                await until(lambda: len(order) == 2)
            loop.remove_reader(near)
        assert order == ["timer", "read"]

    run(scene())


async def test_clock_leaps_unless_thread_is_running() -> None:
    started = leaping().now
    await asyncio.sleep(3600)
    assert leaping().now == started + 3600
    timer = leaping().call_later(1, int)
    await asyncio.to_thread(time.sleep, 0.001)
    assert leaping().now < timer.when()
    leaping().block(5)
    assert leaping().now == started + 3605
