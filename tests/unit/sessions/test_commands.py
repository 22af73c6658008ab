"""The commands of one session: limits, order, and rejections."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.errors import BridgeError, CloseCode
from sanic_nats_bridge.protocol.messages import Command, Frame, Reply
from sanic_nats_bridge.sessions.commands import SessionCommands
from sanic_nats_bridge.sessions.registry import SessionRegistry
from sanic_nats_bridge.settings import Settings
from tests.support.fakes import FakeLink


class Owner:
    """A session that records its commands and its end."""

    client = "identity u"
    key = "key"
    identity: str | None = "u"
    permissions = Permissions()
    is_writable = True

    def __init__(self) -> None:
        self.closed = False
        self.executed: list[str] = []
        self.closes: list[tuple[object, str]] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def wait_until_writable(self) -> None:
        """Return at once."""

    def send(self, frame: Frame) -> None:
        """Do nothing."""

    def send_all(self, frames: Sequence[Frame]) -> None:
        """Do nothing."""

    async def execute_next(self, command: Command) -> Reply:
        self.executed.append(f"begin {command.id}")
        await self.may_go_on.wait()
        self.executed.append(f"end {command.id}")
        return Reply(success=True, message="done")

    def close(self, code: CloseCode, reason: str) -> None:
        self.closed = True
        self.closes.append((code, reason))

    def close_with_error(self, error: BridgeError) -> None:
        self.closed = True
        self.closes.append((error.code, error.message))


def made(**options: Any) -> tuple[SessionCommands, Owner]:
    settings = Settings.resolve(options, {})
    registry = SessionRegistry(
        settings, FakeLink(), on_opened=lambda session: None, on_closed=lambda session, code: None
    )
    owner = Owner()
    return SessionCommands(owner, registry._context), owner


async def test_commands_are_executed_one_after_another() -> None:
    commands, owner = made()
    owner.may_go_on.clear()
    tasks = [asyncio.create_task(commands.receive(f'{{"action":"ping","id":{number}}}')) for number in range(3)]
    await asyncio.sleep(0.1)
    assert owner.executed == ["begin 0"]
    owner.may_go_on.set()
    await asyncio.gather(*tasks)
    assert owner.executed == ["begin 0", "end 0", "begin 1", "end 1", "begin 2", "end 2"]


@pytest.mark.parametrize(
    ("received", "code"),
    [
        ("{", "command.invalid"),
        (b"{}", "command.unsupported"),
        ('{"from":"all","subjects":["a"]}', "command.unsupported"),
    ],
)
async def test_rejected_command_is_counted_and_not_executed(received: str | bytes, code: str) -> None:
    commands, owner = made()
    outcome = await commands.receive(received)
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error.code == outcome.reply.code == code
    assert not owner.executed
    assert commands._context.counters.refused[code] == 1


async def test_command_beyond_the_size_ends_the_session() -> None:
    commands, owner = made(max_command_bytes=64)
    outcome = await commands.receive('{"action":"ping","id":"' + "x" * 64 + '"}')
    assert outcome is not None
    assert outcome.reply.code == "limit.size"
    assert owner.closes == [("limit.size", "A command must be at most 64 bytes")]


async def test_many_commands_end_the_session() -> None:
    commands, owner = made(command_rate=0.001, command_burst=2)
    for _ in range(5):
        await commands.receive('{"action":"ping"}')
    assert owner.executed.count("end UNSET") == 2
    assert owner.closes[0] == (CloseCode.TOO_MANY_COMMANDS, "Too many commands")


async def test_command_of_a_closed_session_is_not_executed() -> None:
    commands, owner = made()
    owner.closed = True
    outcome = await commands.execute(Command(action="ping"))
    assert outcome.reply.code == "session.unknown"
    commands.reject(BridgeError("x"))
    assert not owner.closes
