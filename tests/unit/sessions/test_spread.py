import asyncio

import pytest

from sanic_nats_bridge.sessions.spread import Spread
from tests.support.clock import turns
from tests.support.fakes import ignore


async def test_few_items_are_done_at_once() -> None:
    done: list[int] = []
    spread = Spread(range(3), done.append, 3)
    assert done == [0, 1, 2]
    await spread.finish()


async def test_many_items_are_done_in_order_over_turns_of_the_loop() -> None:
    done: list[int] = []
    spread = Spread(range(10), done.append, 3)
    seen = [len(done)]
    while len(done) < 10:
        await asyncio.sleep(0)
        seen.append(len(done))
    assert seen == [3, 6, 9, 10]
    assert done == list(range(10))
    await spread.finish()


async def test_finish_waits_for_last_item() -> None:
    done: list[int] = []
    await Spread(range(10), done.append, 3).finish()
    assert done == list(range(10))


async def test_cancelled_work_is_dropped() -> None:
    done: list[int] = []
    spread = Spread(range(10), done.append, 3)
    spread.cancel()
    await spread.finish()
    await turns()
    assert done == [0, 1, 2]


async def test_exception_does_not_keep_work_from_other_items() -> None:
    done: list[int] = []
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))

    def work(item: int) -> None:
        if item in (1, 4):
            raise RuntimeError(f"{item}")
        done.append(item)

    spread = None
    with pytest.raises(RuntimeError, match="1"):
        spread = Spread(range(6), work, 2)
    assert spread is None
    await turns()
    assert done == [0, 2, 3, 5]
    assert [str(fault) for fault in faults] == ["4"]


async def test_no_items_need_no_turn() -> None:
    await Spread([], print, 1).finish()


async def test_added_items_follow_those_that_are_left() -> None:
    done: list[int] = []
    spread = Spread(range(5), done.append, 3)
    spread.add([5, 6])
    assert done == [0, 1, 2]
    await spread.finish()
    assert done == list(range(7))


async def test_items_added_after_the_end_are_begun_at_once() -> None:
    done: list[int] = []
    spread = Spread[int]([], done.append, 3)
    spread.add([])
    await spread.finish()
    spread.add(range(4))
    assert done == [0, 1, 2]
    await spread.finish()
    assert done == [0, 1, 2, 3]


async def test_callback_follows_last_item() -> None:
    done: list[int] = []
    spread = Spread(range(5), done.append, 3)
    spread.then(lambda: done.append(-1))
    await spread.finish()
    assert done == [0, 1, 2, 3, 4, -1]
    spread.then(lambda: done.append(-2))
    assert done[-1] == -2
    spread.add([5])
    assert done[-2:] == [-2, 5]


async def test_callback_follows_fault_of_last_item() -> None:
    called: list[str] = []
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))

    def work(item: int) -> None:
        if item == 3:
            raise RuntimeError("fault")

    Spread(range(4), work, 3).then(lambda: called.append("done"))
    await turns()
    assert called == ["done"]
    assert len(faults) == 1


async def test_cancelled_work_calls_no_callback() -> None:
    called: list[str] = []
    spread = Spread(range(5), ignore, 3)
    spread.then(lambda: called.append("done"))
    spread.cancel()
    await turns()
    assert called == []


def test_spread_works_in_another_event_loop() -> None:
    done: list[int] = []
    spread = asyncio.run(_started(done))

    async def work() -> None:
        spread.add(range(3))
        await spread.finish()

    for _ in range(2):
        asyncio.run(work())
    assert done == [0, 1, 2] * 2


async def _started(done: list[int]) -> Spread[int]:
    return Spread([], done.append, 1)
