"""Clients that resume by the rules of the protocol page, with overlapping patterns and connections cut at random."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from sanic_nats_bridge.protocol.subjects import includes
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import running
from tests.support.history import CUTS
from tests.support.reference_client import ReferenceClient, ReferenceEventSource
from tests.support.streams import Stream, jetstream_fixture

SUBJECTS = ("a.1", "a.2", "b.1", "b.2", "c")
PATTERNS = ("a.*", ">", "a.1", "*.1", "b.>")


server = jetstream_fixture("module")


class Numbers:
    """Numbers that are stored in streams, and those that a client must get by each pattern."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.seed = random.randrange(2**31)
        self.choose = random.Random(self.seed)
        self.patterns = {stream.subject(pattern): stream for stream in streams for pattern in PATTERNS}
        self._streams = streams
        self._stored: list[tuple[str, int]] = []

    async def store(self, over: asyncio.Event) -> None:
        """Store numbers at random until the event, then one more on each subject."""
        while not over.is_set():
            for _ in range(self.choose.randrange(1, 12)):
                await self._store(self.choose.choice(self._streams), self.choose.choice(SUBJECTS))
            await asyncio.sleep(self.choose.random() / 50)
        for stream in self._streams:
            for subject in SUBJECTS:
                await self._store(stream, subject)

    async def _store(self, stream: Stream, subject: str) -> None:
        self._stored.append((stream.subject(subject), len(self._stored)))
        await stream.store(subject, self._stored[-1][1])

    def of(self, pattern: str) -> list[int]:
        return [number for subject, number in self._stored if includes(pattern, subject)]


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("start", ["new", "all", "last_per_subject"])
async def test_client_of_the_protocol_page_loses_and_doubles_nothing(
    server: NatsServer, start: str, streams: int
) -> None:
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(Stream.made(server)) for _ in range(streams)]
        options: dict[str, Any] = {"subscribe": [">"], "history": [">"], "streams": {each.name: None for each in made}}
        options |= {"heartbeat": 0.1, "command_rate": 10_000, "command_burst": 10_000}
        bridge = await stack.enter_async_context(running(servers=server.url, **options))
        numbers = Numbers(made)
        client = ReferenceClient(f"ws://127.0.0.1:{bridge.port}{bridge.prefix}/stream", numbers.patterns, start)
        while not client.has_ids:
            await client.run(3)
        over = asyncio.Event()
        storing = asyncio.create_task(numbers.store(over))
        for _ in range(CUTS):
            await client.run(numbers.choose.choice([2, 5, 9, 20, 60]))
        over.set()
        await storing
        while any(client.got(each)[-1:] != numbers.of(each)[-1:] for each in numbers.patterns):
            await client.run(60)
        assert client.gaps == [], numbers.seed
        for pattern in numbers.patterns:
            assert client.got(pattern) == numbers.of(pattern), (numbers.seed, pattern)


@pytest.mark.parametrize("streams", [1, 2])
async def test_event_source_loses_nothing_and_one_message_of_a_stream_comes_again(
    server: NatsServer, streams: int
) -> None:
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(Stream.made(server)) for _ in range(streams)]
        options: dict[str, Any] = {"subscribe": [">"], "history": [">"], "streams": {each.name: None for each in made}}
        bridge = await stack.enter_async_context(running(servers=server.url, heartbeat=0.1, **options))
        numbers = Numbers(made)
        client = ReferenceEventSource(bridge.http, f"{bridge.url}/events", numbers.patterns)
        while not client.last_event_id:
            await client.run(3)
        over = asyncio.Event()
        storing = asyncio.create_task(numbers.store(over))
        for _ in range(CUTS):
            before = len(client.messages)
            await client.run(numbers.choose.choice([4, 5, 9, 20, 60]))
            # With several streams the id may be another one, so the message isn't dropped.
            known = {data for _, data in client.messages[:before]}
            assert len({data for _, data in client.messages[before:]} & known) <= streams, numbers.seed
        over.set()
        await storing
        while any(client.got(each)[-1:] != numbers.of(each)[-1:] for each in numbers.patterns):
            await client.run(60)
        assert client.gaps == [], numbers.seed
        assert client.dropped, numbers.seed
        for pattern in numbers.patterns:
            got = client.got(pattern)
            assert (got if streams == 1 else sorted({*got})) == numbers.of(pattern), (numbers.seed, pattern)
