"""The browser client in Node, with `ws` and `eventsource`."""

import asyncio
import contextlib
import json
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer

from .support import WAIT_SECONDS, Bridge, Publisher, running, until
from .support_middlebox import Middlebox
from .support_process import ended

NODE = Path(__file__).parent / "node"
CLIENT = Path(__file__).parent.parent / "sanic_nats_bridge" / "browser" / "client.js"

both = pytest.mark.parametrize("transport", ["websocket", "sse"])


class Follower:
    def __init__(self, process: Process) -> None:
        self.process = process

    async def line(self) -> Any:
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            return json.loads(await self.process.stdout.readline())

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())


@contextlib.asynccontextmanager
async def following(url: str, transport: str, *patterns: str) -> AsyncIterator[Follower]:
    node = shutil.which("node")
    assert node is not None, "make test installs node"
    assert (NODE / "node_modules" / "ws").is_dir(), "make test installs ws"
    process = await asyncio.create_subprocess_exec(
        node, NODE / "follow.js", CLIENT, url, transport, *patterns, stdin=PIPE, stdout=PIPE
    )
    try:
        yield Follower(process)
    finally:
        await ended(process)


@both
async def test_it_follows_and_ends(bridge: Bridge, publisher: Publisher, transport: str) -> None:
    base = publisher.base
    async with following(bridge.url, transport, f"{base}.>", f"{base}.a", "_INBOX.a") as node:
        assert await node.line() == ["ended", "subject.forbidden"]
        assert await node.line() == ["ready", [True, True, "subject.forbidden"]]
        await publisher.send(f"{base}.a", b'{"key":[1]}')
        assert [await node.line(), await node.line()] == [["message", f"{base}.a", {"key": [1]}]] * 2
        await publisher.send(f"{base}.b", b"text")
        assert await node.line() == ["message", f"{base}.b", "text"]
        node.say("close")
        assert [await node.line(), await node.line()] == [["ended", None]] * 2
        assert node.process.stdin is not None
        node.process.stdin.close()
        # Nothing of the client's keeps the process alive.
        async with asyncio.timeout(WAIT_SECONDS):
            assert await node.process.wait() == 0
        await until(lambda: not bridge.extension.sessions)


@both
async def test_it_comes_back_with_its_subscriptions(bridge: Bridge, publisher: Publisher, transport: str) -> None:
    subject = publisher.subject("a")
    async with Middlebox.listening(bridge.port) as box, following(f"{box.url}/nats", transport, subject) as node:
        assert await node.line() == ["ready", [True]]
        box.cut()
        assert await node.line() == [
            "gap",
            {"type": "gap", "subjects": [subject], "lost": None, "reason": "reconnect"},
        ]
        await until(lambda: [set(session.subscriptions) for session in bridge.extension.sessions] == [{subject}])
        node.say("iterate")
        assert await node.line() == ["iterates"]
        await publisher.send(subject, b"1")
        assert sorted([await node.line(), await node.line()]) == [["iterated", 1], ["message", subject, 1]]


@both
async def test_what_is_over_is_over(shared_nats: NatsServer, transport: str) -> None:
    def permissions(_: object) -> Permissions:
        return Permissions(["a"], identity="ada")

    async with (
        running(servers=shared_nats.url, permissions=permissions) as bridge,
        following(bridge.url, transport, "a") as node,
    ):
        assert await node.line() == ["ready", [True]]
        await bridge.extension.revoke(identity="ada")
        assert await node.line() == ["ended", "closed"]
        kind, how = await node.line()
        assert (kind, how["code"], how["final"]) == ("close", 4403, True)


async def test_a_stream_that_is_refused_says_why(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, permissions=lambda _: None) as bridge,
        following(bridge.url, "sse", "a") as node,
    ):
        assert await node.line() == ["ended", "closed"]
        assert await node.line() == ["close", {"code": 4401, "reason": "HTTP 401", "final": True}]
