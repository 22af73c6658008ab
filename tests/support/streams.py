"""Streams on a real nats-server with JetStream, and clients that read their history."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal, Self
from uuid import uuid4

import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from sanic_nats_bridge.sessions import resumption as resumption_module
from sanic_nats_bridge.sessions.resumption import Resumption
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, EventClient, WebSocketClient
from tests.support.clock import moment

__all__ = ["Stream", "halting", "jetstream_fixture", "read_to"]


class Stream:
    """A stream of one test, with a client of its own."""

    def __init__(self, client: Client, jetstream: JetStreamContext, name: str, prefix: str) -> None:
        self.client = client
        self.jetstream = jetstream
        self.name = name
        self.prefix = prefix

    @classmethod
    @contextlib.asynccontextmanager
    async def made(cls, server: NatsServer, **config: Any) -> AsyncIterator[Self]:
        """Make a stream with one subject prefix, and delete it at the end."""
        client = await nats.connect(server.url, connect_timeout=WAIT_SECONDS)
        name = f"S{uuid4().hex[:8]}"
        stream = cls(client, client.jetstream(timeout=WAIT_SECONDS), name, f"h{uuid4().hex[:8]}")
        try:
            await stream.create(**config)
            yield stream
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await stream.jetstream.delete_stream(name)
        finally:
            await client.close()

    async def create(self, **config: Any) -> None:
        """Make the stream."""
        options: dict[str, Any] = {"subjects": [f"{self.prefix}.>"], "allow_direct": True, "storage": "memory"} | config
        await self.jetstream.add_stream(StreamConfig(name=self.name, **options))

    @property
    def all(self) -> str:
        """The pattern of all subjects of the stream."""
        return f"{self.prefix}.>"

    def subject(self, rest: str) -> str:
        return f"{self.prefix}.{rest}"

    async def store(self, rest: str, *data: Any, headers: dict[str, str] | None = None) -> int:
        """Publish JSON, each as one message, and return the sequence of the last one when it is stored."""
        acknowledgement = None
        for each in data:
            acknowledgement = await self.jetstream.publish(
                self.subject(rest), json.dumps(each).encode(), headers=headers
            )
        assert acknowledgement is not None
        return acknowledgement.seq

    async def consumers(self) -> list[str]:
        """Return the names of all consumers of the stream."""
        return [each.name for each in await self.jetstream.consumers_info(self.name)]

    async def until_unread(self) -> None:
        """Wait until no consumer is left."""
        async with asyncio.timeout(WAIT_SECONDS):
            while await self.consumers():
                await moment()


def jetstream_fixture(scope: Literal["module", "function"]) -> Callable[[], Iterator[NatsServer]]:
    """Return a fixture that starts a nats-server with JetStream, for each module or for each test."""

    @pytest.fixture(scope=scope)
    def start() -> Iterator[NatsServer]:
        with NatsServer(jetstream=True) as server:
            yield server

    return start


async def read_to(client: WebSocketClient | EventClient, kind: str) -> list[dict[str, Any]]:
    """Read frames up to the first one of a type, which is the last one."""
    frames = [await client.frame()]
    while frames[-1]["type"] != kind:
        frames.append(await client.frame())
    return frames


def halting(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let each replay write two messages, and wait for the returned event before the next ones."""
    event = asyncio.Event()
    original = Resumption._wait_for_client
    begun: dict[Resumption, None] = {}

    async def wait(self: Resumption) -> None:
        await original(self)
        if self in begun:
            await event.wait()
        begun[self] = None

    monkeypatch.setattr(resumption_module, "_MESSAGES_PER_TURN", 2)
    monkeypatch.setattr(Resumption, "_wait_for_client", wait)
    return event
