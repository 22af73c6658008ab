import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sanic_nats_bridge.nats.health import wait_until_stale
from sanic_nats_bridge.settings import Settings
from tests.support.clock import LeapingLoop

INTERVAL = 4.0


class Line:
    """A connection whose server answers each PING at once, until the test stops it; time only leaps."""

    is_full = False

    def __init__(self, *, stops: float = float("inf"), ponging: bool = True, chatty: float = 0) -> None:
        self.reads = 0
        self.unanswered_pings = 0
        self.pinged: list[float] = []
        self._stops = stops
        self._ponging = ponging
        if chatty:
            self._chat(chatty)

    def ping(self) -> None:
        loop = asyncio.get_running_loop()
        self.pinged.append(loop.time())
        self.unanswered_pings += 1
        if self._ponging:
            loop.call_soon(self._pong)

    def _pong(self) -> None:
        if asyncio.get_running_loop().time() <= self._stops:
            self.reads += 1
            self.unanswered_pings -= 1

    def _chat(self, interval: float) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() <= self._stops:
            self.reads += 1
            loop.call_later(interval, self._chat, interval)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("stops", [0.0, 3.9, 4.0, 4.1, 21.0])
def test_server_is_stale_within_two_intervals_after_pongs_stop(stops: float) -> None:
    async def main() -> None:
        reason = await wait_until_stale(Line(stops=stops), INTERVAL)
        assert stops < asyncio.get_running_loop().time() <= stops + 2 * INTERVAL
        assert reason == "the server was silent for 4 s after a PING"

    run(main)


def test_default_ping_interval_detects_silence_within_ten_seconds() -> None:
    assert 2 * Settings().ping_interval < 10


def test_responsive_server_is_pinged_each_interval_and_not_stale() -> None:
    async def main() -> None:
        line = Line()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait_until_stale(line, INTERVAL), 1_000)
        assert line.pinged == [INTERVAL * number for number in range(len(line.pinged))]
        assert len(line.pinged) == 250

    run(main)


def test_server_sending_data_is_not_stale_despite_late_pong() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait_until_stale(Line(ponging=False, chatty=0.5), INTERVAL), 50)

    run(main)


def test_server_sending_data_is_stale_after_15_unanswered_pings() -> None:
    async def main() -> None:
        reason = await wait_until_stale(Line(ponging=False, chatty=0.5), INTERVAL)
        assert asyncio.get_running_loop().time() == 15 * INTERVAL
        assert reason == "the server left 15 PINGs unanswered"

    run(main)


def test_server_is_stale_within_two_intervals_after_data_stops() -> None:
    async def main() -> None:
        await wait_until_stale(Line(stops=10, chatty=0.5), INTERVAL)
        assert 10 < asyncio.get_running_loop().time() <= 10 + 2 * INTERVAL

    run(main)


@pytest.mark.parametrize("seconds", [5.0, 20.0])
def test_blocked_event_loop_is_not_mistaken_for_silence(seconds: float) -> None:
    class Blocked(Line):
        def ping(self) -> None:
            asyncio.get_running_loop().call_soon(self._block)

        def _block(self) -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, LeapingLoop)
            loop.now += seconds
            # What came meanwhile is read some turns after the loop runs again; in uvloop timers come first.
            loop.call_soon(loop.call_soon, loop.call_soon, super().ping)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait_until_stale(Blocked(), INTERVAL), 500)

    run(main)


async def _be_full(line: Line, seconds: float) -> None:
    line.is_full = True
    await asyncio.sleep(seconds)
    line.is_full = False


@pytest.mark.parametrize("seconds", [0.5, 5.0, 30.0])
def test_bridge_that_reads_nothing_does_not_mistake_it_for_silence(seconds: float) -> None:
    async def main() -> None:
        line = Line(stops=-1)
        waiting = asyncio.create_task(wait_until_stale(line, INTERVAL))
        await asyncio.sleep(0.75)
        await _be_full(line, seconds)
        assert not waiting.done()
        await waiting
        assert seconds < asyncio.get_running_loop().time() <= seconds + 3 * INTERVAL

    run(main)
