import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from sanic_nats_bridge.routes.log_redaction import LOGGERS, QueryRedaction
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, ServerName, running, until
from tests.support.process import managed_process
from tests.support.raw import sessions

PATHS = ["/nats/events", "/nats/stream"]

HIDDEN = {
    "/nats/events?a=SECRET": "/nats/events?[redacted]",
    "/nats/events/?SECRET": "/nats/events/?[redacted]",
    "GET http://h:1/nats/events?SECRET": "GET http://h:1/nats/events?[redacted]",
    " \U0001f50c ws://[::1]/nats/stream?SECRET": " \U0001f50c ws://[::1]/nats/stream?[redacted]",
    "'https://h/nats/events?a=SECRET'": "'https://h/nats/events?[redacted]'",
    "'https://h/nats/events?a='SECRET'": "'https://h/nats/events?[redacted]'",
    '"h" /nats/stream?a="SECRET" 1.1': '"h" /nats/stream?[redacted]" 1.1',
    "GET /nats/events?a\tSECRET\nSECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "GET /nats/events?a?/nats/events?SECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "/nats/events?SECRET\n": "/nats/events?[redacted]",
    "from http://h/nats/stream?SECRET to /nats/events?SECRET now":
        "from http://h/nats/stream?[redacted] to /nats/events?[redacted] now",
}  # fmt: skip

SHOWN = [
    "/nats/events", "/shop?a=1", "/shop/nats/events?a=1", "http://h/shop/nats/events?a=1", "/nats/eventsx?a=1",
    "/nats/event?a=1", "/?next=/nats/events", "", "100 % /nats/stream",
]  # fmt: skip


@pytest.mark.parametrize("text", HIDDEN)
def test_query_of_bridge_route_is_redacted(text: str) -> None:
    redaction = QueryRedaction(PATHS)
    for record in (
        logging.LogRecord("x", 10, "x", 1, text, None, None),
        logging.LogRecord("x", 10, "x", 1, "%s", (text,), None),
        logging.LogRecord("x", 10, "x", 1, "%(R)s", ({"R": text},), None),
    ):
        assert redaction.filter(record)
        assert record.getMessage() == HIDDEN[text]


@pytest.mark.parametrize("text", SHOWN)
def test_other_log_text_is_unchanged(text: str) -> None:
    record = logging.LogRecord("x", 10, "x", 1, "%s %d", (text, 5), None)
    vars(record)["request"] = f"GET {text}"
    assert QueryRedaction(PATHS).filter(record)
    assert (record.getMessage(), record.args, vars(record)["request"]) == (f"{text} 5", (text, 5), f"GET {text}")


def test_query_field_is_redacted_without_changing_original_dict() -> None:
    fields = {"U": "/nats/events", "q": "a=SECRET", "s": 200}
    record = logging.LogRecord("x", 10, "x", 1, "%(U)s %(q)s %(s)d", (fields,), None)
    QueryRedaction(PATHS).filter(record)
    assert record.getMessage() == "/nats/events [redacted] 200"
    assert fields["q"] == "a=SECRET"
    other = logging.LogRecord("x", 10, "x", 1, "%(U)s %(q)s", ({"U": "/shop", "q": "a=1"},), None)
    QueryRedaction(PATHS).filter(other)
    assert other.getMessage() == "/shop a=1"


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
