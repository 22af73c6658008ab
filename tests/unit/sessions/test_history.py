"""Commands with a start, on a worker whose streams aren't known."""

import asyncio

from sanic_nats_bridge.protocol.messages import Command, Reply
from tests.unit.sessions.test_session import Worker


async def test_all_waits_of_a_command_have_one_deadline() -> None:
    worker = Worker(confirms=False, streams={"ONE": ["a.>"], "TWO": ["a.>"]}, confirm_timeout=5)
    session, _ = worker.open()
    loop = asyncio.get_running_loop()
    began = loop.time()
    command = Command(action="subscribe", subjects=["a.x", "other"], from_="new")
    outcome = await session.execute(command)
    assert isinstance(outcome.reply, Reply)
    assert (outcome.reply.success, outcome.reply.active) == (True, False)
    assert loop.time() - began == 5
