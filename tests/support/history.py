"""Streams for the tests of clients on a bridge with history, and clients whose connections are cut at random."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Self
from uuid import uuid4

import nats
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from sanic import HTTPResponse, Request, Sanic
from sanic.response import html

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, running
from tests.support.bridge_proxy import BridgeProxy

CUTS: Final = int(os.environ.get("CLIENT_CUTS", "50"))
"""The connections that are cut while messages arrive."""


class Stream:
    """A stream with subjects that no other test uses, and a way to publish to it."""

    def __init__(self, context: JetStreamContext) -> None:
        self.name = f"T{uuid4().hex[:12]}"
        self._context = context

    def subject(self, rest: str) -> str:
        return f"{self.name}.{rest}"

    async def send(self, rest: str, *payloads: bytes, headers: dict[str, Any] | None = None) -> None:
        """Publish, and return when the stream has it."""
        for payload in payloads:
            await self._context.publish(self.subject(rest), payload, timeout=WAIT_SECONDS, headers=headers)

    @classmethod
    @contextlib.asynccontextmanager
    async def created(cls, server: NatsServer) -> AsyncIterator[Self]:
        client = await nats.connect(server.url, connect_timeout=WAIT_SECONDS)
        try:
            context = client.jetstream(timeout=WAIT_SECONDS)
            stream = cls(context)
            subjects = [stream.subject(">")]
            await context.add_stream(StreamConfig(name=stream.name, subjects=subjects, allow_direct=True))
            yield stream
        finally:
            await client.close()


def _add_page(app: Sanic[Any, Any]) -> None:
    @app.get("/")
    async def page(_: Request) -> HTTPResponse:
        return html("<!doctype html><title>x</title>")


@contextlib.asynccontextmanager
async def serving(jetstream: NatsServer, stream: Stream, **settings: Any) -> AsyncIterator[tuple[Bridge, BridgeProxy]]:
    """Serve a bridge with the stream, and all of its history, behind a proxy."""
    options: dict[str, Any] = {
        "subscribe": [">"],
        "history": [">"],
        "streams": {stream.name: None},
        "unsubscribe_delay": 0,
    } | settings
    async with (
        running(servers=jetstream.url, prepare=_add_page, **options) as bridge,
        BridgeProxy(bridge.port).running() as proxy,
    ):
        yield bridge, proxy


class Numbers:
    """Numbers that are published at random on subjects of a stream, and those that a client gets by each pattern."""

    def __init__(self, stream: Stream, *patterns: str) -> None:
        self.seed = random.randrange(2**31)
        self.choose = random.Random(self.seed)
        self._stream = stream
        self._sent: list[str] = []
        self._got: dict[str, list[int]] = {stream.subject(pattern): [] for pattern in patterns}

    @property
    def patterns(self) -> Sequence[str]:
        return tuple(self._got)

    @contextlib.asynccontextmanager
    async def publishing(self, *subjects: str) -> AsyncIterator[None]:
        """Publish numbers, some on each of the subjects at the end."""
        over = asyncio.Event()

        async def publish() -> None:
            while not over.is_set():
                for _ in range(self.choose.randrange(1, 20)):
                    await self.send(self.choose.choice(subjects))
                await asyncio.sleep(self.choose.random() / 50)
            for subject in subjects:
                await self.send(subject)

        task = asyncio.create_task(publish())
        try:
            yield
        finally:
            over.set()
            await task

    async def send(self, subject: str) -> None:
        """Publish the next number, and return when the stream has it."""
        self._sent.append(self._stream.subject(subject))
        await self._stream.send(subject, b"%d" % len(self._sent))

    def note(self, pattern: str, number: int) -> None:
        """Note a number that the client has got."""
        self._got[pattern].append(number)

    def expected(self, pattern: str) -> list[int]:
        """Return the numbers that a client of this pattern gets."""
        start, wildcard, _ = pattern.partition(">")
        return [
            number
            for number, subject in enumerate(self._sent, 1)
            if (subject.startswith(start) if wildcard else subject == pattern)
        ]

    @property
    def are_complete(self) -> bool:
        """True if the client has the last number of each pattern."""
        return all(got[-1:] == self.expected(pattern)[-1:] for pattern, got in self._got.items())

    def check(self) -> None:
        """Fail if a number is missing, or came twice or out of order."""
        for pattern, got in self._got.items():
            assert got == self.expected(pattern), (self.seed, pattern)
