"""The example app with several workers: most POST commands arrive at a worker that doesn't hold the session."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from example_app.echo import ECHO_SUBJECT
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Publisher, flush, subscribed, until
from tests.support.example import ExampleApp

WORKERS: Final = 4
CLIENTS: Final = 200 if "TOOLS_IN_FULL" in os.environ else 40
ROUNDS: Final = 20 if "TOOLS_IN_FULL" in os.environ else 8


@pytest.fixture(scope="module")
def nats_server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture
def example(nats_server: NatsServer) -> Iterator[ExampleApp]:
    with ExampleApp("--workers", str(WORKERS), "--nats", nats_server.url) as app:
        yield app


def held(server: NatsServer) -> list[str]:
    """Return the subscriptions that clients hold, without that of the app's echo service."""
    return [pattern for pattern in server.subscriptions() if pattern != ECHO_SUBJECT]


class EventStream:
    """An event stream whose frames are kept."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.frames: list[dict[str, Any]] = []
        self.over = False
        self._response = response
        self._task = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, http: aiohttp.ClientSession, url: str) -> AsyncIterator["EventStream"]:
        async with http.get(f"{url}events") as response:
            stream = cls(response)
            await until(lambda: stream.frames, WAIT_SECONDS)
            try:
                yield stream
            finally:
                stream._task.cancel()
                await asyncio.wait({stream._task})

    @property
    def session(self) -> str:
        return str(self.frames[0]["session"])

    @property
    def messages(self) -> list[tuple[str, Any]]:
        return [(frame["subject"], frame["data"]) for frame in self.frames if frame["type"] == "message"]

    async def _read(self) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            async for line in self._response.content:
                if line.startswith(b"data: "):
                    self.frames.append(json.loads(line.removeprefix(b"data: ")))
        self.over = True


async def post(url: str, action: str, session: str, subject: str) -> tuple[int, dict[str, Any]]:
    """Send a command over a connection of its own, so that any of the workers may take it."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http,
        http.post(f"{url}{action}", json={"session": session, "subjects": [subject]}) as response,
    ):
        return response.status, await response.json()


async def subscribe_and_unsubscribe(
    url: str, stream: EventStream, publisher: Publisher, name: str
) -> list[tuple[str, Any]]:
    """Follow one subject after another, each with a message before, while and after it is followed; what must come."""
    due = []
    for number in range(ROUNDS):
        subject = f"{publisher.base}.{name}.{number}"
        await publisher.client.publish(subject, b'"before"')
        await flush(publisher.client)
        assert await post(url, "subscribe", stream.session, subject) == (200, subscribed(subject))
        await publisher.client.publish(subject, b"%d" % number)
        due.append((subject, number))
        await until(lambda: len(stream.messages) >= len(due), WAIT_SECONDS)
        status, reply = await post(url, "unsubscribe", stream.session, subject)
        assert (status, reply["success"], reply["subjects"]) == (200, True, [subject])
        await publisher.client.publish(subject, b'"after"')
    return due


async def test_post_commands_work_on_any_worker(example: ExampleApp, nats_server: NatsServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        publisher = await stack.enter_async_context(Publisher.connected(nats_server))
        streams: list[EventStream] = []
        # The kernel chooses the worker, and each must hold sessions: otherwise no command would have to be passed on.
        async with asyncio.timeout(WAIT_SECONDS):
            while len(streams) < CLIENTS or len({stream.session[:16] for stream in streams}) < WORKERS:
                streams.append(await stack.enter_async_context(EventStream.opened(http, example.url)))
        due = await asyncio.gather(
            *(
                subscribe_and_unsubscribe(example.url, stream, publisher, f"c{name}")
                for name, stream in enumerate(streams)
            )
        )
        await flush(publisher.client)
        for stream, messages in zip(streams, due, strict=True):
            assert await post(example.url, "subscribe", stream.session, publisher.base) == (
                200,
                subscribed(publisher.base),
            )
            await publisher.send(publisher.base, b"0")
            await until(lambda stream=stream: stream.messages[-1] == (publisher.base, 0), WAIT_SECONDS)  # type: ignore[misc]
            assert stream.messages[: len(messages) + 1] == [*messages, (publisher.base, 0)]
            # A status occurs if the worker had just started and was not yet connected to NATS.
            assert {frame["type"] for frame in stream.frames} <= {"welcome", "status", "message", "heartbeat"}
    await until(lambda: not held(nats_server), WAIT_SECONDS)


async def test_killed_worker_ends_only_its_own_sessions(example: ExampleApp, nats_server: NatsServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        publisher = await stack.enter_async_context(Publisher.connected(nats_server))
        streams = [await stack.enter_async_context(EventStream.opened(http, example.url)) for _ in range(32)]
        for stream in streams:
            assert (await post(example.url, "subscribe", stream.session, publisher.base))[0] == 200
        holders = len({stream.session[:16] for stream in streams})
        assert len(held(nats_server)) == holders
        os.kill(worker_with_clients(example), signal.SIGKILL)
        await until(lambda: any(stream.over for stream in streams))
        dead = next(stream.session[:16] for stream in streams if stream.over)
        await until(lambda: all(stream.over == (stream.session[:16] == dead) for stream in streams))
        lost = [stream for stream in streams if stream.over]
        await until(lambda: len(held(nats_server)) == holders - 1)
        asked = (post(example.url, "subscribe", stream.session, "a") for stream in lost for _ in range(WORKERS))
        answers = [await answer for answer in asked]  # one by one, because only some of a client may wait for a worker
        assert {(status, reply["code"]) for status, reply in answers} == {(404, "session.unknown")}
        # Those that have lost their session get another one elsewhere.
        async with EventStream.opened(http, example.url) as back:
            assert (await post(example.url, "subscribe", back.session, publisher.base))[0] == 200
            await publisher.send(publisher.base, b"1")
            others = [stream for stream in streams if not stream.over]
            for stream in (back, *others):
                await until(lambda stream=stream: stream.messages == [(publisher.base, 1)])  # type: ignore[misc]


def worker_with_clients(example: ExampleApp) -> int:
    """Return the id of a worker with connections to clients."""

    def sockets(pid: int) -> int:
        return sum(str(link.readlink()).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())

    return max(example.family() - example.nats_servers(), key=sockets)
