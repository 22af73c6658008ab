import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from sanic import HTTPResponse, Request, Sanic

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.routes.log_redaction import LOGGERS, QueryRedaction
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, ServerName, running, until
from tests.support.process import managed_process
from tests.support.raw import UPGRADE, sessions


async def test_filter_is_installed_only_while_app_is_served(shared_nats: NatsServer) -> None:
    def filters() -> int:
        return sum(isinstance(f, QueryRedaction) for name in LOGGERS for f in logging.getLogger(name).filters)

    before = filters()
    async with running(servers=shared_nats.url):
        assert filters() == before + len(LOGGERS)
    assert filters() == before


# All that is logged while each route is used, at DEBUG level

SECRET = "SeCrEt"
QUERY = f"?theme=x&ticket={SECRET}q"
HEADERS = {"Cookie": f"id={SECRET}c", "Authorization": f"Bearer {SECRET}a", "Content-Type": "application/json"}
ACCESS_LOGS: dict[ServerName, dict[str, Any]] = {
    "sanic": {"access_log": True},
    "uvicorn": {"access_log": True},
    "hypercorn": {"accesslog": logging.getLogger("hypercorn.access"), "access_log_format": "%(R)s %(q)s %(Uq)s"},
}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Collect every record of every logger as a string, with its extra fields and traceback."""
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.name} {self.format(record)} {getattr(record, 'request', '')}")

    keeper = Keeper()
    loggers = [logging.getLogger(), *map(logging.getLogger, [*LOGGERS, *logging.root.manager.loggerDict])]
    states = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = True
    logging.getLogger().addHandler(keeper)
    yield lines
    logging.getLogger().removeHandler(keeper)
    for logger, level, propagate in states:
        logger.setLevel(level)
        logger.propagate = propagate


async def use_every_route(bridge: Bridge) -> set[str]:
    """Use each route rightly and wrongly; return the ids of the sessions."""
    async with bridge.events(f"x{SECRET}s") as events, bridge.http.ws_connect(
        f"{bridge.url}/stream{QUERY}", headers=HEADERS
    ) as client:  # fmt: skip
        welcome = await client.receive_json(timeout=WAIT_SECONDS)
        ids = {events.session, str(welcome["session"])}
        for command in ({"subjects": ["a"]}, {"session": events.session}, {"action": f"{SECRET}x"}):
            await client.send_json(command)
            await client.receive_json(timeout=WAIT_SECONDS)
        await client.send_str(f'{{"{SECRET}')
        await client.receive_json(timeout=WAIT_SECONDS)
        for session in (*ids, f"{SECRET}-unknown"):
            for body in ({"subjects": ["b"]}, {"subjects": [f"..{SECRET}"]}, {"subjects": {"a": f"{SECRET}"}}):
                for path in ("/subscribe", "/unsubscribe"):
                    async with bridge.http.post(
                        f"{bridge.url}{path}{QUERY}", json={"session": session} | body, headers=HEADERS
                    ) as response:
                        assert response.status in (200, 400, 404, 409), await response.text()
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        for path in ("/events/", "/stream", "/subscribe"):
            for origin in ({}, {"Origin": "https://evil.example"}):
                url = f"{bridge.url}{path}{QUERY}&subjects=..{SECRET}"
                with contextlib.suppress(aiohttp.ClientError):
                    async with bridge.http.request(method, url, headers=HEADERS | origin) as response:
                        await response.read()
    return ids


@pytest.mark.parametrize("server", ["sanic", "uvicorn", "hypercorn"])
async def test_no_secret_is_logged(server: ServerName, log: list[str]) -> None:
    asyncio.get_running_loop().set_debug(True)
    with NatsServer(config=f"authorization: {{user: u, password: {SECRET}n}}") as nats_server:
        url = nats_server.url.replace("//", f"//u:{SECRET}n@")
        async with running(servers=url, subscribe=[">"], server=server, server_options=ACCESS_LOGS[server]) as bridge:
            ids = await use_every_route(bridge)
            async with bridge.http.get(f"http://127.0.0.1:{bridge.port}/other?shown=1") as response:
                assert response.status == 404

            sessions(bridge).open = None  # type: ignore[method-assign,assignment]
            async with bridge.http.get(f"{bridge.url}/events{QUERY}", headers=HEADERS) as response:
                with contextlib.suppress(aiohttp.ClientError):
                    await response.read()
            await until(lambda: any("NoneType" in line for line in log))
            nats_server.stop()
            nats_server.config = f"authorization: {{user: u, password: {SECRET}other}}"
            nats_server.start()
            await until(lambda: any("authorization" in line.lower() for line in log))
        logins: list[dict[str, Any]] = [{"token": f"{SECRET}t"}, {"user": f"{SECRET}u", "password": f"{SECRET}p"}]
        for login in logins:
            before = len(log)
            async with running(servers=nats_server.url, connected=False, **login):
                await until(lambda before=before: "authorization" in " ".join(log[before:]).lower())  # type: ignore[misc]

    text = "\n".join(log)
    assert "/nats/events?[redacted]" in text
    assert "/other?shown=1" in text
    leaks = [line for line in log if SECRET in line or any(session in line for session in ids)]
    if server == "uvicorn":
        # What `websockets` dumps below uvicorn is out of reach: headers of handshakes, beginnings and ends of frames.
        leaks = [line for line in leaks if not line.startswith(("uvicorn.error < ", "uvicorn.error > "))]
    assert leaks == []


TARGETS = [
    "/nats/events?", "/nats/stream?", "/nats/subscribe?", "/nats/client.js?", "/nats/health/live?", "/nats?", "/nats/?",
    "/nats/unknown?", "/nats/events/more?", "/nats//events?", "//nats/events?", "/nats/%65vents?", "/%6eats/events?",
    "/%6Eats%2Fevents?", "/nats%2fevents?", "/nats/events;?", "/nats/events;v=1?", "/nats/events;", "/nats/events%3F",
    "/nats/./events?", "/nats/x/../events?", "/x/../nats/events?", "/../nats/events?", "/x//../../nats/events?",
    "http://localhost/../nats/events?", "/..;x/nats/events?", "../nats/events?", "x/../nats/events?", "/nats/events/?",
    "/nats/events#", "/nats/events#?",
    "/nats/events?#", "/nats/events?subjects=..&", "/nats/e\"vents?", "/nats/e'vents?", "http://localhost/nats/events?",
    "http://other.example:1//nats/%65vents?", "nats/events?", "http:///nats/events?", "/nats/events?\t",
    "/nats/events?\n", "/nats/events?%00", "/nats/events?\x80",
]  # fmt: skip
APP_TARGETS = [
    "/other?shown=1",
    "/natsx?shown=2",
    "/shop/nats/events?shown=3",
    "/shop;v=1/x?shown=%34",
    "/fails?shown=5",
]


def prepare_failing_route(app: Sanic[Any, Any]) -> None:
    @app.get("/fails")
    async def fails(request: Request) -> HTTPResponse:
        raise RuntimeError(f"The app has failed at {request.url}")


async def failing_permissions(request: Request) -> Permissions:
    raise RuntimeError(f"The app has failed at {request.url} (url={request.url})")


@pytest.mark.parametrize("server", ["sanic", "uvicorn", "hypercorn"])
async def test_no_spelling_of_bridge_url_shows_its_query_in_log(
    server: ServerName, shared_nats: NatsServer, log: list[str]
) -> None:
    async def send(port: int, method: str, target: str, headers: str) -> None:
        request = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request.encode("latin-1"))
        async with asyncio.timeout(WAIT_SECONDS):
            with contextlib.suppress(ConnectionError, asyncio.LimitOverrunError):
                # An event stream and a WebSocket don't end by themselves.
                await reader.read(1)
        writer.close()

    async with running(
        servers=shared_nats.url,
        permissions=failing_permissions,
        server=server,
        server_options=ACCESS_LOGS[server],
        prepare=prepare_failing_route,
    ) as bridge:
        for target in TARGETS:
            for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT"):
                await send(bridge.port, method, f"{target}ticket={SECRET}", "")
            await send(bridge.port, "GET", f"{target}ticket={SECRET}", UPGRADE.partition("\r\n")[2])
        bridge.app.config.PROXIES_COUNT = 2
        forwarded = "X-Forwarded-For: 192.0.2.1, 192.0.2.2\r\nX-Forwarded-Host: a.example, b.example\r\n"
        await send(bridge.port, "GET", f"/nats/events?ticket={SECRET}", forwarded)
        bridge.app.config.PROXIES_COUNT = None
        for target in APP_TARGETS:
            await send(bridge.port, "GET", target, "")
        await until(lambda: any("shown=5" in line for line in log))

    text = "\n".join(log)
    assert "The app has failed at http://localhost/nats/events?[redacted]" in text
    assert "The app has failed at http://localhost/fails?shown=5" in text
    for target in APP_TARGETS:
        assert target.rpartition("/")[2] in text, target
    leaks = [line for line in log if SECRET in line]
    if server == "uvicorn":
        leaks = [line for line in leaks if not line.startswith(("uvicorn.error < ", "uvicorn.error > "))]
    assert leaks == []


async def test_bridge_without_prefix_redacts_queries_of_all_its_routes(shared_nats: NatsServer, log: list[str]) -> None:
    async with running(servers=shared_nats.url, prefix="", metrics=True, server_options=ACCESS_LOGS["sanic"]) as bridge:
        for path in ("/events", "/client.js", "/subscribe", "/health/live", "/health/ready/", "/metrics"):
            async with bridge.http.head(f"{bridge.url}{path}{QUERY}"):
                pass
        async with bridge.http.get(f"{bridge.url}/other?shown=1"):
            pass
    text = "\n".join(log)
    assert SECRET not in text
    assert "/metrics?[redacted]" in text
    assert "/other?shown=1" in text


async def test_worker_log_contains_no_query_of_bridge_route(shared_nats: NatsServer) -> None:
    configuration = {"NATS_BRIDGE_SERVERS": shared_nats.url, "NATS_BRIDGE_SUBSCRIBE": ">"}
    with tempfile.TemporaryFile() as output:
        async with (
            managed_process(configuration, "--debug", "--access-logs", "--single-process", log=output) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        ):
            async with http.ws_connect(f"/nats/stream{QUERY}") as client:
                welcome = await client.receive_json(timeout=WAIT_SECONDS)
                await client.send_json({"session": welcome["session"], "subjects": ["a"]})
                await client.receive_json(timeout=WAIT_SECONDS)
            async with http.get(f"/nats/events{QUERY}..") as response:
                assert response.status == 200
                await response.content.readline()
            async with http.get("/other?shown=1") as response:
                assert response.status == 404
        output.seek(0)
        text = output.read().decode()
    assert "/nats/events?[redacted]" in text
    assert "/nats/stream?[redacted]" in text
    assert "/other?shown=1" in text
    assert SECRET not in text
    assert welcome["session"] not in text
