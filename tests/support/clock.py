"""Event loops whose time the test controls, so that no test depends on how fast the machine is.

`LeapingLoop` is for code without a network: it never waits. `held` is for real servers and clients: within it no timer
fires until the test moves the clock, however long that takes.
"""

import asyncio
import contextlib
import heapq
import os
import selectors
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

import pytest
from sanic.server.protocols import base_protocol, http_protocol

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_TURNS = 4
"""Turns of the loop after each timer; what a timer starts is done by then, unless it waits for another process."""

_MOST_SECONDS = 60.0
_POLL_SECONDS = 0.005
_HELD_POLL_SECONDS = 0.001

_held: set[asyncio.AbstractEventLoop] = set()


class _Leap(selectors.SelectSelector):
    """A selector that waits only for threads; otherwise it advances its loop's clock."""

    loop: "LeapingLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.loop.working and timeout != 0:
            return super().select()
        self.loop.now += timeout or 0
        return super().select(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits.

    Its clock leaps to the next timer, but doesn't move while a thread works.
    """

    now = 0.0
    working = 0

    def __init__(self) -> None:
        selector = _Leap()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def block(self, seconds: float) -> None:
        """Let time pass as something does that does not let the loop turn."""
        self.now += seconds

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        job = super().run_in_executor(executor, func, *args)
        self.working += 1
        job.add_done_callback(self._worked)
        return job

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncio's own
        # Without the limit of asyncio.run: Python 3.13 counts it by this clock, which would leap past it.
        await super().shutdown_default_executor()

    def _worked(self, _: Any) -> None:
        self.working -= 1


def leaping() -> LeapingLoop:
    """Return the running loop, which must be one that leaps."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, LeapingLoop)
    return loop


class WallClock:
    """The wall clock; it goes with the clock of a loop, but can be set too."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._offset = time.time() - loop.time()

    def time(self) -> float:
        return self._loop.time() + self._offset

    def set_by(self, seconds: float) -> None:
        self._offset += seconds


class _Timer(asyncio.TimerHandle):
    """A timer of no loop in particular."""

    def cancel(self) -> None:
        asyncio.Handle.cancel(self)


class _Loopback:
    """The loopback device, whose packets wait in one queue for each CPU (net.core.netdev_max_backlog)."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.connect(self._socket.getsockname())

    def flush(self) -> None:
        """Wait until the packets that were sent before have been delivered, by one more packet in each queue."""
        cpus = os.sched_getaffinity(0)
        try:
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
                self._socket.send(b"x")
                self._socket.recv(1)
        finally:
            os.sched_setaffinity(0, cpus)

    def close(self) -> None:
        self._socket.close()


class HeldClock:
    """The clock and the timers of a running loop, of asyncio or of uvloop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = loop.time()
        self._loop: Any = loop
        self._timers: list[_Timer] = []
        self._network = _Loopback()

    async def forward(self, seconds: float) -> None:
        """Advance the clock. All timers fire in their order, and received data is read in between."""
        end = self.now + seconds
        await self._deliver()
        while self._timers and self._timers[0].when() <= end:
            self.now = max(self.now, self._timers[0].when())
            self._fire()
            await self._deliver()
        self.now = end
        await turns()

    async def forward_until(self, fact: Callable[[], object], step: float = 0.1) -> None:
        """Let time pass step by step, and what comes from elsewhere arrive, until the fact holds."""
        deadline = time.monotonic() + _MOST_SECONDS
        while not fact():
            assert time.monotonic() < deadline, "it does not come true, however much time passes"
            await self.forward(step)
            await moment()

    def jump(self, seconds: float) -> None:
        """Let time pass while the loop is blocked. All that is due then fires at once, before anything is read."""
        self.now += seconds
        while self._timers and self._timers[0].when() <= self.now:
            self._fire()

    async def _deliver(self) -> None:
        """Let the loop turn until what it has sent was delivered and read, and the same for what that has caused.

        On a busy machine the kernel may take longer for a packet than a held clock takes for a timeout.
        """
        for _ in range(2):
            await turns()
            self._network.flush()
        await turns()

    def _fire(self) -> None:
        timer = heapq.heappop(self._timers)
        if not timer.cancelled():
            timer._run()

    def hold(self) -> None:
        self._loop.time = lambda: self.now
        self._loop.call_at = self._call_at
        self._loop.call_later = lambda delay, *args, **options: self._call_at(self.now + delay, *args, **options)
        _held.add(self._loop)

    def release(self) -> None:
        """Let time pass by itself again, from the moment that the clock shows."""
        self._network.close()
        loop = self._loop
        for name in ("time", "call_at", "call_later"):
            delattr(loop, name)
        _held.discard(loop)
        real_time, real_call_later = loop.time, loop.call_later
        ahead = self.now - real_time()
        loop.time = lambda: real_time() + ahead
        if not isinstance(loop, asyncio.BaseEventLoop):
            # Timers of uvloop do not ask for the time.
            loop.call_at = lambda when, *args, **options: real_call_later(when - loop.time(), *args, **options)
        for timer in self._timers:
            loop.call_at(timer.when(), lambda timer=timer: timer.cancelled() or timer._run())
        self._timers.clear()

    def _call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> _Timer:
        timer = _Timer(when, callback, args, self._loop, context)
        heapq.heappush(self._timers, timer)
        return timer


@contextlib.asynccontextmanager
async def held() -> AsyncIterator[HeldClock]:
    """Stop the clock of the running loop, the wall clock and that of Sanic; only the test lets time pass."""
    loop = asyncio.get_running_loop()
    clock, began = HeldClock(loop), time.monotonic() - loop.time()
    with pytest.MonkeyPatch.context() as patch:
        clock.hold()
        patch.setattr(time, "time", WallClock(loop).time)
        for module in (base_protocol, http_protocol):
            patch.setattr(module, "current_time", lambda: began + clock.now)
        try:
            yield clock
        finally:
            clock.release()


def limit(seconds: float) -> float | None:
    """Return the limit of a wait. There is none while the clock is held, because the time that passes is not real."""
    return None if asyncio.get_running_loop() in _held else seconds


async def turns(count: int = _TURNS) -> None:
    """Let the loop turn, and read what has arrived."""
    for _ in range(count):
        await asyncio.sleep(0)


async def moment() -> None:
    """Wait between two looks at a fact. While the clock is held no timer of the loop would end that."""
    if asyncio.get_running_loop() in _held:
        await asyncio.to_thread(time.sleep, _HELD_POLL_SECONDS)
    else:
        await asyncio.sleep(_POLL_SECONDS)
