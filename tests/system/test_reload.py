"""The ends of a worker of Sanic's own server: messages to its clients, and no delay by any client."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, until
from tests.support.process import managed_process

_RELOADER_SECONDS: Final = 3.0


@contextlib.asynccontextmanager
async def silent_client(port: int) -> AsyncIterator[None]:
    """Open an event stream, and neither read nor close it."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /nats/events?subjects=a HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        yield
    finally:
        writer.close()


async def last_event(http: aiohttp.ClientSession, port: int, opened: asyncio.Event) -> dict[str, Any]:
    last = b""
    async with http.get(f"http://127.0.0.1:{port}/nats/events?subjects=a") as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                last = line.removeprefix(b"data: ")
                opened.set()
    frame: dict[str, Any] = json.loads(last)
    return frame


async def last_frame(http: aiohttp.ClientSession, port: int, opened: asyncio.Event) -> dict[str, Any]:
    last = ""
    async with http.ws_connect(f"ws://127.0.0.1:{port}/nats/stream") as websocket:
        async for message in websocket:
            last = message.data
            opened.set()
        assert websocket.close_code == 1001
    frame: dict[str, Any] = json.loads(last)
    return frame


@contextlib.asynccontextmanager
async def pages(port: int) -> AsyncIterator[list[asyncio.Task[dict[str, Any]]]]:
    """Yield tasks that return the last frame of open pages, on both transports, beside an idle client."""
    async with aiohttp.ClientSession() as http, silent_client(port):
        opened = [asyncio.Event(), asyncio.Event()]
        seen = [
            asyncio.create_task(last_event(http, port, opened[0])),
            asyncio.create_task(last_frame(http, port, opened[1])),
        ]
        async with asyncio.timeout(WAIT_SECONDS):
            for each in opened:
                await each.wait()
        yield seen


async def wait_until_subscribed(nats: NatsServer) -> None:
    """Wait until the event streams are followed."""
    await until(lambda: "a" in nats.subscriptions())


async def assert_closed_with_1001(seen: list[asyncio.Task[dict[str, Any]]], *, latest_retry: int = 10_000) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        for frame in await asyncio.gather(*seen):
            assert (frame["type"], frame["code"], frame["reconnect"]) == ("close", 1001, True)
            assert 0 <= frame["retry"] <= latest_retry


async def serving_worker(port: int) -> str:
    """Return the worker that serves a new session, from the session id, or "" while there is none."""
    with contextlib.suppress(aiohttp.ClientError):
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/nats/events") as response:
            async for line in response.content:
                if line.startswith(b"data: "):
                    frame = json.loads(line.removeprefix(b"data: "))
                    return str(frame["session"][:16]) if frame["type"] == "welcome" else ""
    return ""


async def wait_for_other_worker(port: int, before: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while await serving_worker(port) in ("", before):
            pass


@contextlib.asynccontextmanager
async def changing(source: Path) -> AsyncIterator[None]:
    """Change it now and again: Sanic's reloader misses what happens before it has looked at it once."""

    loop = asyncio.get_running_loop()
    again: asyncio.Handle

    def change() -> None:
        nonlocal again
        source.write_text(str(time.time()))
        again = loop.call_later(_RELOADER_SECONDS, change)

    change()
    try:
        yield
    finally:
        again.cancel()


async def test_development_reload_does_not_wait_for_open_pages(nats_server: NatsServer, tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("1")
    configuration = {"NATS_BRIDGE_SERVERS": nats_server.url, "NATS_BRIDGE_SUBSCRIBE": ">"}
    async with managed_process(configuration, "--auto-reload", "--reload-dir", str(tmp_path)) as port:
        for _ in range(2):
            async with pages(port) as seen:
                await wait_until_subscribed(nats_server)
                before = await serving_worker(port)
                async with changing(source):
                    await assert_closed_with_1001(seen, latest_retry=0)
                await wait_for_other_worker(port, before)
            await until(lambda: not nats_server.subscriptions())


@pytest.mark.parametrize("nats_hangs", [False, True])
async def test_shutdown_waits_for_neither_clients_nor_nats(
    nats_server: NatsServer, tmp_path: Path, nats_hangs: bool
) -> None:
    configuration = {"NATS_BRIDGE_SERVERS": nats_server.url, "NATS_BRIDGE_SUBSCRIBE": ">"}
    log = tmp_path / "log"
    with log.open("wb") as output:
        async with contextlib.AsyncExitStack() as process:
            port = await process.enter_async_context(managed_process(configuration, log=output))
            async with pages(port) as seen:
                await wait_until_subscribed(nats_server)
                if nats_hangs:
                    nats_server.pause()
                await process.aclose()
                await assert_closed_with_1001(seen)
    written = log.read_text()
    # Not killed for being too slow.
    assert "Server Stopped" in written
    assert "Traceback" not in written
