import asyncio
from collections.abc import Sequence

from sanic_nats_bridge.sessions.command_turns import CommandTurns


async def executed(commands: Sequence[tuple[str, int]]) -> list[list[str]]:
    """Take a turn for each command at once; return the clients whose commands were executed in each turn."""
    turns, done = CommandTurns(), []

    async def execute(client: str, cost: int) -> None:
        await turns.take(client, cost)
        done.append(client)

    tasks = [asyncio.create_task(execute(*command)) for command in commands]
    seen: list[list[str]] = []
    while not all(task.done() for task in tasks):
        before = len(done)
        await asyncio.sleep(0)
        seen.append(done[before:])
    return [each for each in seen if each]


async def test_commands_beyond_the_cost_of_a_turn_wait_for_the_next() -> None:
    assert await executed([("a", 8)] * 5) == [["a", "a"], ["a", "a"], ["a"]]
    assert await executed([("a", 1)] * 33) == [["a"] * 16, ["a"] * 16, ["a"]]


async def test_command_that_exceeds_the_cost_is_executed_alone() -> None:
    assert await executed([("a", 100), ("b", 1), ("c", 17), ("d", 1)]) == [["a"], ["b"], ["c"], ["d"]]


async def test_clients_are_served_in_turn() -> None:
    commands = [("many", 8)] * 10 + [("b", 8), ("c", 8), ("b", 8)]
    order = [client for turn in await executed(commands) for client in turn]
    assert order[:6] == ["many", "many", "many", "b", "c", "many"]
    assert order.index("c") < order.index("b", order.index("b") + 1) < 9


async def test_command_after_others_that_wait_does_not_overtake_them() -> None:
    turns = CommandTurns()
    first = [asyncio.create_task(turns.take("a", 8)) for _ in range(3)]
    await asyncio.sleep(0)
    assert [task.done() for task in first] == [False] * 3 or first[0].done()
    last = asyncio.create_task(turns.take("a", 1))
    await last
    assert all(task.done() for task in first)


async def test_cancelled_command_costs_nothing() -> None:
    turns = CommandTurns()
    tasks = [asyncio.create_task(turns.take(client, 16)) for client in "aaab"]
    await asyncio.sleep(0)
    for task in tasks[1:3]:
        task.cancel()
    await asyncio.wait(tasks[1:3])
    await tasks[3]
    assert tasks[0].done()
    await turns.take("c", 16)


async def test_idle_turns_schedule_nothing() -> None:
    turns = CommandTurns()
    await turns.take("a", 1)
    assert turns._turn is not None
    await asyncio.sleep(0)
    assert turns._turn is None
