"""The example app behind nginx and HAProxy, by the configurations of the documents."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import httpx
import pytest
from httpx_sse import aconnect_sse
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, EventClient, Publisher, WebSocketClient, free_port, running, until
from tests.support.example import ExampleApp
from tests.support.proxies import (
    PROXIES,
    ProxiedBridge,
    Proxy,
    ProxyName,
    Scheme,
    abort,
    proxied,
    running_proxy,
)
from tests.support.raw import UPGRADE
from tools.harness.certificates import Certificate

MACHINES, WORKERS = 2, 2
"""Among how many a POST is spread, and the workers of each: it must reach the one that holds its session."""

FOREIGN = "https://evil.example"
SCHEMES: tuple[Scheme, ...] = ("http", "https")
FIRST_BEAT, SECOND_BEAT = 3600, 3599
"""So rare that a client that has gone is never noticed by a heartbeat."""

LIVELY_BEAT, IDLE = 0.2, "3s"


class Machines(NamedTuple):
    """Apps that a client can distinguish by the heartbeat in its welcome."""

    first: ExampleApp
    second: ExampleApp


def machine(nats: NatsServer, heartbeat: float) -> ExampleApp:
    settings = {"HEARTBEAT": str(heartbeat), "UNSUBSCRIBE_DELAY": "0.1"}
    environment = {f"SANIC_NATS_BRIDGE_{setting}": value for setting, value in settings.items()}
    environment["SANIC_WEBSOCKET_PING_INTERVAL"] = str(FIRST_BEAT)
    return ExampleApp("--nats", nats.url, "--workers", str(WORKERS), SANIC_PROXIES_COUNT="1", **environment)


@pytest.fixture(scope="module")
def machines(shared_nats: NatsServer) -> Iterator[Machines]:
    with machine(shared_nats, FIRST_BEAT) as first, machine(shared_nats, SECOND_BEAT) as second:
        yield Machines(first, second)


@pytest.fixture(scope="module")
def lively(shared_nats: NatsServer) -> Iterator[ExampleApp]:
    with machine(shared_nats, LIVELY_BEAT) as app:
        yield app


@pytest.fixture(scope="module", params=PROXIES)
def name(request: pytest.FixtureRequest) -> ProxyName:
    chosen: ProxyName = request.param
    return chosen


@pytest.fixture(scope="module")
def proxy(
    name: ProxyName, machines: Machines, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    ports = (machines[0].port, machines[MACHINES - 1].port)
    with running_proxy(name, certificate, tmp_path_factory.mktemp(name), ports) as proxy:
        yield proxy


@pytest.fixture(params=SCHEMES)
async def app(request: pytest.FixtureRequest, proxy: Proxy) -> AsyncIterator[ProxiedBridge]:
    async with proxied(proxy, request.param) as app:
        yield app


@pytest.fixture
async def encrypted(proxy: Proxy) -> AsyncIterator[ProxiedBridge]:
    async with proxied(proxy, "https") as app:
        yield app


async def test_proxy_delivers_each_sse_event_immediately(app: ProxiedBridge, publisher: Publisher) -> None:
    """Check that no event waits for a later one, in a buffer or for the 200 ms of the kernel's MSG_MORE."""
    subject = publisher.subject("a")
    async with app.events(subject) as client, asyncio.timeout(WAIT_SECONDS):
        for number in range(100):
            await publisher.send(subject, b"%d" % number)
            assert await client.data(1) == [number]


async def test_proxied_websocket_is_bidirectional(app: ProxiedBridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with app.websocket() as client:
        await client.follow(subject)
        for number in range(20):
            await publisher.send(subject, b"%d" % number)
            assert await client.data(1) == [number]
            assert (await client.ask({"action": "ping", "id": number}))["id"] == number


async def test_proxy_passes_post_commands_errors_and_head_requests(app: ProxiedBridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with app.events() as client:
        command = {"session": client.session, "subjects": [subject]}
        status, reply = await app.post("/subscribe", command)
        assert (status, reply["active"]) == (200, True)
        await publisher.send(subject, b"1")
        assert await client.data(1) == [1]
        assert (await app.post("/unsubscribe", command))[0] == 200
        assert (await app.post("/unsubscribe", command))[0] == 409
    assert await app.status("HEAD", "/events") == 200
    assert await app.status("HEAD", "/events?subjects=%24SYS.%3E") == 403
    async with app.http.get(f"{app.origin}/events?subjects=%24SYS.%3E") as response:
        assert (response.status, (await response.json())["code"]) == (403, "subject.forbidden")


async def test_proxy_delivers_large_messages(app: ProxiedBridge, publisher: Publisher) -> None:
    subject, text = publisher.subject("a"), "x" * 300_000
    async with app.events(subject) as stream, app.websocket() as websocket:
        await websocket.follow(subject)
        await publisher.send(subject, json.dumps(text).encode())
        assert await stream.data(1) == await websocket.data(1) == [text]


async def test_websocket_close_code_passes_through_proxy(app: ProxiedBridge) -> None:
    async with app.websocket() as client:
        await client.send("x" * 70_000)
        assert (await client.frame())["code"] == 1009
        with pytest.raises(ConnectionClosed):
            await client.frame()
        assert client.connection.close_code == 1009
    async with app.websocket() as client:
        await client.connection.close(3000, "bye")
        assert client.connection.close_code == 3000


async def test_only_same_origin_pages_are_allowed(app: ProxiedBridge) -> None:
    async with app.websocket(origin=app.origin) as client:
        command = {"session": client.session, "subjects": ["a"]}
        assert (await app.post("/subscribe", command, Origin=app.origin))[0] == 200
    assert await app.status("GET", "/events", Origin=app.origin) == 200

    other_scheme = {"http": "https", "https": "http"}[app.scheme]
    for origin in (FOREIGN, app.origin.replace(app.scheme, other_scheme, 1), app.origin + "0", "null"):
        assert await app.status("GET", "/events", Origin=origin) == 403, origin
        assert (await app.post("/subscribe", command, Origin=origin))[1]["code"] == "origin.forbidden"
        with pytest.raises(InvalidStatus) as refused:
            async with app.websocket(origin=origin):
                pass
        assert refused.value.response.status_code == 403


async def test_forwarded_headers_from_client_are_ignored(app: ProxiedBridge) -> None:
    said = {
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Port": "443",
    }
    assert await app.status("GET", "/events", Origin=FOREIGN, **said) == 403
    assert await app.status("GET", "/events", Origin=app.origin, **said) == 200


@pytest.mark.parametrize("way", ["websocket", "events"])
async def test_client_disconnect_ends_session_immediately(
    app: ProxiedBridge, publisher: Publisher, shared_nats: NatsServer, way: str
) -> None:
    """Check that the session ends at once, before a failed heartbeat could reveal it."""
    subject = publisher.subject("a")
    if way == "websocket":
        async with app.websocket() as websocket:
            await websocket.follow(subject)
            assert subject in shared_nats.subscriptions()
            # Not a word of farewell.
            websocket.connection.transport.abort()
            await until(lambda: subject not in shared_nats.subscriptions())
    else:
        async with app.events(subject) as client:
            assert subject in shared_nats.subscriptions()
            abort(client.response)
            await until(lambda: subject not in shared_nats.subscriptions())


@contextlib.asynccontextmanager
async def http2_client(app: ProxiedBridge) -> AsyncIterator[httpx.AsyncClient]:
    """Open a client with one connection."""
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(http1=False, http2=True, verify=app.trust, limits=limits, base_url=app.origin) as http:
        yield http


async def test_one_http2_connection_carries_many_streams(encrypted: ProxiedBridge, publisher: Publisher) -> None:
    subject, count = publisher.subject("a"), 30
    async with http2_client(encrypted) as http, contextlib.AsyncExitStack() as stack, asyncio.timeout(WAIT_SECONDS):
        streams = []
        for _ in range(count):
            source = await stack.enter_async_context(aconnect_sse(http, "GET", "/events", params={"subjects": subject}))
            assert source.response.http_version == "HTTP/2"
            events = source.aiter_sse()
            assert [(await anext(events)).event for _ in range(2)] == ["welcome", "reply"]
            streams.append(events)
        for number in range(3):
            await publisher.send(subject, b"%d" % number)
            for events in streams:
                event = await anext(events)
                while event.event == "heartbeat":
                    event = await anext(events)
                assert json.loads(event.data)["data"] == number


async def test_heartbeats_keep_idle_connections_open(
    name: ProxyName,
    machines: Machines,
    lively: ExampleApp,
    certificate: Certificate,
    tmp_path: Path,
    publisher: Publisher,
) -> None:
    subject = publisher.subject("a")

    async def cut_off(app: ProxiedBridge) -> None:
        async with app.websocket() as websocket, app.events() as stream:
            with pytest.raises(ConnectionClosed):
                await websocket.frame()
            assert websocket.connection.close_code == 1006
            with pytest.raises(Exception, match=r"ended|not completed|Connection closed"):
                await stream.frame()

    async with contextlib.AsyncExitStack() as stack:
        bridges: dict[str, list[ProxiedBridge]] = {}
        for folder, machine in (("lively", lively), ("silent", machines.first)):
            (tmp_path / folder).mkdir()
            ports = (machine.port, machine.port)
            proxy = stack.enter_context(running_proxy(name, certificate, tmp_path / folder, ports, idle=IDLE))
            bridges[folder] = [await stack.enter_async_context(proxied(proxy, scheme)) for scheme in SCHEMES]
        clients: list[WebSocketClient | EventClient] = []
        for app in bridges["lively"]:
            clients.append(await stack.enter_async_context(app.events(subject)))
            websocket = await stack.enter_async_context(app.websocket())
            await websocket.follow(subject)
            clients.append(websocket)
        # Clients that connect later and receive nothing are disconnected before.
        await asyncio.gather(*map(cut_off, bridges["silent"]))
        await publisher.send(subject, b"1")
        for client in clients:
            assert await client.data(1) == [1]


async def test_proxy_reload_keeps_open_connections(
    name: ProxyName, machines: Machines, certificate: Certificate, tmp_path: Path, publisher: Publisher
) -> None:
    subject = publisher.subject("a")
    with running_proxy(name, certificate, tmp_path, (machines.second.port,) * 2) as proxy:
        async with proxied(proxy, "https") as app, app.websocket() as websocket, app.events(subject) as stream:
            await websocket.follow(subject)
            await proxy.reload()
            async with proxied(proxy, "https") as again, again.events(subject) as fresh:
                await publisher.send(subject, b"1")
                for client in (websocket, stream, fresh):
                    assert await client.data(1) == [1]


@pytest.fixture
async def balanced(
    name: ProxyName, machines: Machines, certificate: Certificate, tmp_path: Path
) -> AsyncIterator[ProxiedBridge]:
    """Serve the app on both machines."""
    with running_proxy(name, certificate, tmp_path, (machines.first.port, machines.second.port)) as proxy:
        async with proxied(proxy, "https") as app:
            yield app


async def test_proxy_avoids_stopped_machine_until_it_restarts(balanced: ProxiedBridge, machines: Machines) -> None:
    async def next_machine() -> float:
        """Return the machine that a new client gets."""
        async with balanced.websocket() as client:
            return float(client.welcome["heartbeat"])

    async def come_and_go() -> None:
        while not stopped.is_set():
            assert await balanced.status("GET", "/events") == 200
            # One that was sent to a worker that stops may be lost, and no proxy may send it twice.
            with contextlib.suppress(aiohttp.ServerDisconnectedError):
                assert await balanced.status("POST", "/subscribe") in (415, 502)

    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(balanced.websocket()) for _ in range(8)]
        streams = [await stack.enter_async_context(balanced.events()) for _ in range(8)]
        held = [client.welcome["heartbeat"] for client in (*clients, *streams)]
        assert held.count(SECOND_BEAT) == held.count(FIRST_BEAT) == 8, "who has fewer clients gets the next"

        stopped = asyncio.Event()
        traffic = asyncio.create_task(come_and_go())
        await asyncio.to_thread(machines.second.end, signal.SIGTERM)
        for client in (*clients, *streams):
            if client.welcome["heartbeat"] == SECOND_BEAT:
                frame = await client.frame()
                assert (frame["type"], frame["code"]) == ("close", 1001)
        for websocket in clients:
            if websocket.welcome["heartbeat"] == SECOND_BEAT:
                await websocket.connection.wait_closed()
                assert websocket.connection.close_code == 1001
        assert {await next_machine() for _ in range(5)} == {FIRST_BEAT}
        await asyncio.to_thread(machines.second.start)
        async with asyncio.timeout(WAIT_SECONDS):
            while await next_machine() != SECOND_BEAT:
                pass
        stopped.set()
        await traffic


async def test_proxy_returns_empty_event_stream_if_all_machines_are_down(proxy: Proxy, machines: Machines) -> None:
    for machine in machines:
        machine.end(signal.SIGKILL)
    try:
        async with proxied(proxy, "https") as app:
            async with app.http.get(f"{app.origin}/events") as response:
                assert (response.status, response.content_type) == (200, "text/event-stream")
                body = await response.text()
            assert not any(line.startswith(("data", "event", "id", "retry")) for line in body.splitlines())
            assert await app.status("GET", "/stream") in (502, 503)
            assert await app.status("POST", "/subscribe") in (502, 503)
    finally:
        for machine in machines:
            machine.start()
    async with proxied(proxy, "https") as app, asyncio.timeout(WAIT_SECONDS):
        while await app.status("GET", "/") != 200:
            pass


# Logs

TOKEN = "SeCrEt"
REFERER = f"Referer: http://localhost/page?token={TOKEN}\r\n"
TOKEN_TARGETS = [
    "/nats/events?token=", "/nats/stream?token=", "/nats/subscribe?token=", "/nats/client.js?token=", "/nats?token=",
    "/nats/unknown?token=", "/nats//events?token=", "//nats/events?token=", "/nats/%65vents?token=",
    "/nats/events;?token=", "/%6eats/./x/../events?token=", "http://localhost/nats/events?token=",
    f"/nats/events?{'x' * 9000}&token=", f"/nats/events?{'x' * 90000}&token=", "/nats/events?token= &token=",
    "/nats/events?token=\t", "nats/events?token=", "/../nats/events?token=", "/x//../nats/events?token=",
    "/nats/%2e%2E/nats/events?token=", "/%2fnats/events?token=", "/nats/events#token=", "/nats/events?token=%00",
    "/nats/events%00?token=", "http:/nats/events?token=", "*?token=",
]  # fmt: skip


async def test_no_token_reaches_log_of_proxy(
    name: ProxyName, certificate: Certificate, tmp_path: Path, shared_nats: NatsServer
) -> None:
    async def send(port: int, method: str, target: str, headers: str = REFERER) -> None:
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode())
        async with asyncio.timeout(WAIT_SECONDS):
            with contextlib.suppress(ConnectionError):
                # An event stream and a WebSocket don't end by themselves.
                await reader.read(1)
        writer.close()

    async def use(proxy: Proxy) -> None:
        port = proxy.ports["http"]
        for target in TOKEN_TARGETS:
            for method in ("GET", "HEAD", "OPTIONS", "POST"):
                await send(port, method, target + TOKEN)
        await send(port, "GET", f"/nats/stream?token={TOKEN}", UPGRADE.partition("\r\n")[2])
        await send(port, "POST", f"/nats/subscribe?token={TOKEN}", f"Content-Length: {2**30}\r\n")
        await send(port, "GET", f"/nats/events?token={TOKEN}", "Bad Header: x\r\n")
        await send(port, "GET", f"/nats/events?token={TOKEN}", f"Long: {'x' * 90_000}\r\n")
        async with proxied(proxy, "https") as app:
            for method in ("GET", "HEAD", "POST"):
                with contextlib.suppress(aiohttp.ServerDisconnectedError):
                    await app.status(method, f"/nats/events?token={TOKEN}")
            with contextlib.suppress(httpx.RemoteProtocolError):
                async with http2_client(app) as http, http.stream("GET", f"/nats/events?token={TOKEN}"):
                    pass
        await send(port, "GET", "/other?shown=1", "")
        await until(lambda: "/other" in proxy.logged())

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with (
        running(servers=shared_nats.url, subscribe=[">"]) as bridge,
        await asyncio.start_server(hang_up, "127.0.0.1", 0) as hanging_up,
    ):
        closing = hanging_up.sockets[0].getsockname()[1]
        for case, machines in (
            ("one works", (bridge.port, free_port())),
            ("none listens", (free_port(), free_port())),
            ("both hang up", (closing, closing)),
        ):
            folder = tmp_path / case.replace(" ", "-")
            folder.mkdir()
            with running_proxy(name, certificate, folder, machines, prefix="/nats") as proxy:
                await use(proxy)
                logged = proxy.logged()
            assert "/nats/events" in logged
            assert [line for line in logged.splitlines() if TOKEN in line] == [], case
            if name == "nginx" and case != "one works":
                # Errors of the app's other routes are there in full.
                assert 'request: "GET /other?shown=1 HTTP/1.1"' in logged
