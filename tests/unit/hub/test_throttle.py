import asyncio
from collections.abc import Callable

from sanic_nats_bridge.hub.interest import Interest
from sanic_nats_bridge.hub.throttle import SubscribeThrottle
from tests.support.clock import LeapingLoop
from tests.support.growth import assert_linear


class Nats:
    """A NATS server that records commands and their times."""

    def __init__(self, rate: float) -> None:
        self.pacing = SubscribeThrottle(rate, self.act)
        self.heard: list[tuple[float, str]] = []
        self.silent: set[str] = set()

    def act(self, interest: Interest) -> bool:
        if interest.pattern in self.silent:
            return False
        self.heard.append((asyncio.get_running_loop().time(), interest.pattern))
        return True

    def submit(self, owner: object, *patterns: str) -> None:
        for pattern in patterns:
            self.pacing.submit(Interest(pattern), owner)

    @property
    def patterns(self) -> list[str]:
        return [pattern for _, pattern in self.heard]


async def test_commands_per_second_do_not_exceed_rate_plus_burst() -> None:
    nats = Nats(100)
    nats.submit("one", *(f"a{number}" for number in range(1000)))
    assert len(nats.heard) == 10
    await asyncio.sleep(15)
    times = [at for at, _ in nats.heard]
    assert nats.patterns == [f"a{number}" for number in range(1000)]
    assert max(sum(start <= at <= start + 1 for at in times) for start in times) <= 112
    assert times[-1] < 11


async def test_owner_of_few_interests_is_not_delayed_by_large_owner() -> None:
    nats = Nats(100)
    nats.submit("greedy", *(f"g{number}" for number in range(1000)))
    nats.submit("other", "o1", "o2")
    nats.submit(None, "n")
    await asyncio.sleep(0.1)
    assert {"o1", "o2", "n"} <= set(nats.patterns)
    assert len(nats.heard) < 30
    await asyncio.sleep(15)
    assert len(nats.heard) == 1003


async def test_unowned_interests_get_every_other_turn() -> None:
    nats = Nats(100)
    nats.silent = {f"s{number}" for number in range(0, 100, 3)}
    for number in range(100):
        nats.submit(number, *(f"{number}.{each}" for each in range(10)))
        nats.submit(None, f"s{number}")
    await asyncio.sleep(2)
    unwanted = [pattern.startswith("s") for pattern in nats.patterns]
    assert len(unwanted) > 150
    assert unwanted.count(True) == 66
    first, last = unwanted.index(True), len(unwanted) - unwanted[::-1].index(True)
    assert unwanted[first:last] == [True, False] * 65 + [True]


async def test_interests_that_need_no_command_are_not_throttled() -> None:
    nats = Nats(100)
    nats.silent = {f"s{number}" for number in range(1000)}
    nats.submit("one", *nats.silent, "a")
    assert nats.patterns == ["a"]


async def test_clear_drops_waiting_interests_but_not_later_ones() -> None:
    nats = Nats(10)
    nats.submit("one", *"abcde")
    nats.pacing.clear()
    nats.submit("one", "f")
    await asyncio.sleep(5)
    assert nats.patterns == ["a", "f"]


async def test_rate_below_one_per_second_passes_one_command_at_a_time() -> None:
    nats = Nats(0.5)
    nats.submit("one", *"abc")
    await asyncio.sleep(3)
    assert nats.patterns == ["a", "b"]
    await asyncio.sleep(2)
    assert nats.patterns == ["a", "b", "c"]


def test_work_per_command_does_not_grow_with_owners() -> None:
    def make(count: int) -> Callable[[], object]:
        loop = LeapingLoop()
        nats = Nats(1)

        async def prepare() -> None:
            nats.submit("one", "a", "b")
            nats.silent = {"s"}
            for number in range(count):
                nats.submit(number, "s", "s", "s")

        def serve() -> None:
            loop.run_until_complete(asyncio.sleep(10))
            loop.close()
            assert nats.patterns == ["a", "b"]

        loop.run_until_complete(prepare())
        return serve

    assert_linear(make, 2_000)
