"""Shared helpers: an app served in the test's own event loop, and clients based on other libraries."""

import asyncio
import contextlib
import hashlib
import json
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, TypeAlias
from uuid import uuid4

import aiohttp
import nats
import pytest
from nats.aio.client import Client
from sanic import Sanic
from websockets.asyncio.client import ClientConnection, connect

from sanic_nats_bridge import NatsBridge
from sanic_nats_bridge.runtime import BridgeRuntime
from sanic_nats_bridge.testing import NatsServer
from tests.support import asgi as support_asgi
from tests.support.clock import limit, moment
from tools.harness.processes import free_port as free_port

# Otherwise Sanic prepares its classes for the first app of the process alone.
Sanic.test_mode = True

WAIT_SECONDS = 60
"""Time limit for a condition before a test fails; never an expected duration."""


UNHURRIED: Mapping[str, Any] = MappingProxyType(
    dict.fromkeys(("confirm_timeout", "connect_timeout", "ping_interval", "relay_timeout"), WAIT_SECONDS)
)
"""Settings for which no process is too slow; a test of one of them sets it."""

UNLIMITED: Mapping[str, Any] = MappingProxyType({"request_rate": 0})
"""Settings with which a fast test isn't limited; a test of one of them sets it."""

ServerName: TypeAlias = Literal["sanic", "uvicorn", "hypercorn"]

SERVERS: tuple[ServerName, ...] = ("sanic", "uvicorn")
"""The servers under which all must be the same."""

sanic_only = pytest.mark.parametrize("server", ["sanic"])
"""For what an ASGI server decides by itself, or what only Sanic's own server lets the bridge do."""


async def until(fact: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Wait until the fact holds."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"did not come true in {seconds} s"
        await moment()


def _pause() -> None:
    time.sleep(0.01)


def wait_until(
    fact: Callable[[], object],
    explain: Callable[[], object] = str,
    *,
    seconds: float = WAIT_SECONDS,
    pause: Callable[[], object] = _pause,
) -> None:
    """Wait until the fact holds, as :func:`until` does, outside of an event loop."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, explain()
        pause()


def alive(pid: int | None) -> bool:
    """Return True if the process runs; a zombie doesn't count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def subscribed(*subjects: str) -> dict[str, Any]:
    """Return the reply, without its id, to a subscribe that NATS has accepted."""
    quoted = ", ".join(f"'{subject}'" for subject in subjects)
    return {
        "type": "reply",
        "action": "subscribe",
        "success": True,
        "message": f"Successfully connected to events: {quoted}",
        "subjects": list(subjects),
        "active": True,
    }


@dataclass
class Bridge:
    """A served app and its bridge."""

    app: Sanic[Any, Any]
    extension: NatsBridge
    port: int
    prefix: str = "/nats"
    _http: aiohttp.ClientSession | None = field(default=None, repr=False)

    @property
    def runtime(self) -> BridgeRuntime:
        """The parts of the bridge, for facts that its public API doesn't show."""
        return self.extension._on_app

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    @property
    def http(self) -> aiohttp.ClientSession:
        assert self._http is not None
        return self._http

    @contextlib.asynccontextmanager
    async def websocket(self, query: str = "", **options: Any) -> AsyncIterator["WebSocketClient"]:
        """Connect a client of ``/stream`` with the `websockets` library, and read its welcome."""
        async with self.unwelcome_websocket(query, **options) as client:
            client.welcome = await client.frame()
            yield client

    @contextlib.asynccontextmanager
    async def unwelcome_websocket(self, query: str = "", **options: Any) -> AsyncIterator["WebSocketClient"]:
        """Connect a client of ``/stream`` with the `websockets` library, and read nothing."""
        url = f"ws://127.0.0.1:{self.port}{self.prefix}/stream" + (query and f"?{query}")
        patient = {"open_timeout": WAIT_SECONDS, "close_timeout": WAIT_SECONDS, "max_queue": None} | options
        async with connect(url, max_size=None, compression=None, **patient) as connection:
            yield WebSocketClient(connection)

    @contextlib.asynccontextmanager
    async def events(self, *subjects: str, **headers: str) -> AsyncIterator["EventClient"]:
        """Connect a client of ``/events`` with `aiohttp`, and read its welcome, and the reply if it has subjects."""
        query = [("subjects", subject) for subject in subjects]
        async with self.http.get(f"{self.url}/events", params=query, headers=headers) as response:
            assert response.status == 200, await response.text()
            client = EventClient(response)
            client.welcome = await client.frame()
            if subjects:
                client.reply = await client.frame()
            yield client

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """Send a POST and return its status and reply; a body of bytes is sent unchanged."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        send = {"Content-Type": "application/json"} | headers
        async with self.http.post(f"{self.url}{path}", data=data, headers=send) as response:
            return response.status, await response.json()


class _Frames(ABC):
    """Base of clients that read and sort frames."""

    welcome: dict[str, Any]
    reply: dict[str, Any]

    @property
    def session(self) -> str:
        return str(self.welcome["session"])

    @property
    def key(self) -> str:
        """Under what the server knows the session."""
        return hashlib.sha256(self.session.encode()).hexdigest()

    async def frame(self) -> dict[str, Any]:
        """Return the next frame that isn't a heartbeat."""
        async with asyncio.timeout(limit(WAIT_SECONDS)):
            while True:
                frame = await self._read()
                if frame["type"] != "heartbeat":
                    return frame

    async def frames(self, count: int) -> list[dict[str, Any]]:
        return [await self.frame() for _ in range(count)]

    async def data(self, count: int) -> list[Any]:
        """Return the payloads of the next frames, which must all be messages."""
        frames = await self.frames(count)
        assert {frame["type"] for frame in frames} == {"message"}, frames
        return [frame["data"] for frame in frames]

    @abstractmethod
    async def _read(self) -> dict[str, Any]: ...


class WebSocketClient(_Frames):
    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def _read(self) -> dict[str, Any]:
        text = await self.connection.recv()
        assert isinstance(text, str)
        frame: dict[str, Any] = json.loads(text)
        return frame

    async def send(self, command: Any) -> None:
        """Send a command: text and bytes as they are, anything else as JSON."""
        await self.connection.send(command if isinstance(command, str | bytes) else json.dumps(command))

    async def ask(self, command: Any) -> dict[str, Any]:
        """Send a command and read its reply, which must be the next frame."""
        await self.send(command)
        return await self.frame()

    async def follow(self, *subjects: str) -> None:
        reply = await self.ask({"action": "subscribe", "subjects": subjects})
        assert reply["success"], reply
        assert reply["active"], reply


class EventClient(_Frames):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.events: list[str] = []

    async def _read(self) -> dict[str, Any]:
        block = b""
        while not block.endswith(b"\n\n"):
            line = await self.response.content.readuntil(b"\n")
            if not line:
                raise EOFError("the stream has ended")
            block += line
        fields = [line.partition(": ") for line in block.decode().split("\n") if line]
        self.events.append(next((value for name, _, value in fields if name == "event"), "message"))
        (data,) = (value for name, _, value in fields if name == "data")
        frame: dict[str, Any] = json.loads(data)
        return frame


async def flush(client: Client) -> None:
    """Wait until the server has everything that a plain client of nats-py has sent.

    The first PING overtakes what waits for nats-py's flusher, which has written it when the PONG arrives.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled = task.cancelling()
    for _ in range(2):
        await client.flush(timeout=WAIT_SECONDS)
        # nats-py awaits asyncio.wait_for, which loses a cancellation that meets its end before Python 3.12 (CPython
        # issue 86296).
        if task.cancelling() > cancelled:
            raise asyncio.CancelledError


class Publisher:
    """A NATS client of its own, with a subject prefix that no other test uses."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.base = f"t{uuid4().hex[:12]}"

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, server: NatsServer) -> AsyncIterator[Self]:
        client = await nats.connect(server.url, pending_size=64 * 1024 * 1024, connect_timeout=WAIT_SECONDS)
        try:
            yield cls(client)
        finally:
            await client.close()

    def subject(self, rest: str) -> str:
        return f"{self.base}.{rest}"

    async def send(self, subject: str, *payloads: bytes, headers: dict[str, str] | None = None) -> None:
        """Publish, and return when the server has it."""
        for payload in payloads:
            await self.client.publish(subject, payload, headers=headers)
        await flush(self.client)


@contextlib.asynccontextmanager
async def running(
    *,
    connected: bool = True,
    prepare: Callable[[Sanic[Any, Any]], None] | None = None,
    server: ServerName = "sanic",
    server_options: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> AsyncIterator[Bridge]:
    """Serve an app with a bridge in this event loop.

    ``prepare`` gets the app after it was extended; ``connected``: wait for NATS; ``server_options`` are those
    of the server.
    """
    app: Sanic[Any, Any] = Sanic(f"test_{uuid4().hex}", configure_logging=False)
    # A held clock may pass it while a request waits for a busy machine.
    app.config.RESPONSE_TIMEOUT = 3600
    extension = NatsBridge(app, **{**UNHURRIED, **UNLIMITED, **settings})
    if prepare is not None:
        prepare(app)
    async with (
        served(app, server, **server_options) as port,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        if connected:
            await until(lambda: extension.client is not None)
            await until(lambda: extension._on_app.sessions.hub.connected and extension._on_app.control.ready)
            # The worker still announces itself. A test that counts tasks would count these too.
            await until(lambda: not extension._on_app.control._tasks)
        yield Bridge(app, extension, port, extension.settings.prefix, http)


@contextlib.asynccontextmanager
async def served(app: Sanic[Any, Any], server: ServerName = "sanic", **options: Any) -> AsyncIterator[int]:
    """Serve any app in this event loop on a free port."""
    # Accepted sockets inherit the protocol. Without it asyncio doesn't turn off Nagle's algorithm.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    port: int = listener.getsockname()[1]
    app.config.ACCESS_LOG = options.pop("access_log", False) if server == "sanic" else False
    serving = {
        "sanic": _sanic_serving,
        "uvicorn": support_asgi.uvicorn_serving,
        "hypercorn": support_asgi.hypercorn_serving,
    }[server]
    try:
        async with serving(app, listener, **options):
            yield port
    finally:
        listener.close()
        Sanic._app_registry.pop(app.name, None)


@contextlib.asynccontextmanager
async def _sanic_serving(app: Sanic[Any, Any], listener: socket.socket, **options: Any) -> AsyncIterator[None]:
    server: Any = await app.create_server(
        sock=listener, return_asyncio_server=True, noisy_exceptions=True, backlog=4096, **options
    )
    await server.startup()
    starting = server.before_start()
    # sanic-ext adds a HEAD and an OPTIONS route for each of the app's, and has the routers rendered at the end. In a
    # started app Sanic would render them after each route, which takes half of the time of a start.
    app.state.is_started = False
    await starting
    app.state.is_started = True
    await server.start_serving()
    await server.after_start()
    try:
        yield
    finally:
        await server.before_stop()
        closing = server.close()
        await until(lambda: _closed_where_idle(server))
        await closing
        await server.after_stop()


def _closed_where_idle(server: Any) -> bool:
    # From Python 3.12 on a server that is closed waits for its last connection.
    for connection in tuple(server.connections):
        connection.close_if_idle()
    return not server.connections
