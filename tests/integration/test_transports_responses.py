"""Requests with a body to routes that read none."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sanic import Sanic

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, WAIT_SECONDS, Bridge, Publisher, ServerName, running, sanic_only, until
from tests.support.clock import held
from tests.support.raw import parts_per_turn, raw_connection, sessions

ALLOWED = "https://app.example"
ROUTES = {
    "GET /nats/events": 200,  # of a worker that takes no more clients
    "HEAD /nats/events": 200,
    "OPTIONS /nats/events": 204,
    "GET /nats/health/live": 200,
    "HEAD /nats/health/ready": 200,
    "GET /nats/metrics": 200,
    "GET /nats/client.js": 200,
    "GET /nats/client-0123456789abcdef.js": 200,
    "GET /nats/events?subjects=a..b": 400,
    "GET /nats/stream": 400,
}
BODIES = {
    "no bytes": "Content-Length: 0\r\n\r\n",
    "a length": "Content-Length: 5\r\n\r\nhello",
    "chunks": "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n",
    "more than a buffer": f"Content-Length: 300000\r\n\r\n{'x' * 300_000}",
}
LAST = "GET /nats/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


@pytest.fixture
async def bridge(shared_nats: NatsServer, server: ServerName) -> AsyncIterator[Bridge]:
    """Serve a bridge for one session."""
    async with running(
        servers=shared_nats.url,
        subscribe=[">"],
        allowed_origins=ALLOWED,
        metrics=True,
        max_sessions=1,
        heartbeat=3600,
        server=server,
    ) as served:
        yield served


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    lines = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    # The bridge warns of the NATS servers of the tests, which require no login.
    assert [line for line in lines if "requires no login" not in line] == []


def head_of(route: str) -> str:
    return f"{route} HTTP/1.1\r\nHost: localhost\r\nOrigin: {ALLOWED}\r\n"


@pytest.mark.parametrize("route", ROUTES)
async def test_body_is_discarded_and_next_request_answered(bridge: Bridge, route: str) -> None:
    async with bridge.events():
        for body in BODIES.values():
            request = head_of(route) + body + LAST
            async with raw_connection(bridge.port, request) as (reader, _), asyncio.timeout(WAIT_SECONDS):
                answers = await reader.read()
            assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"%d" % ROUTES[route], b"200"]
            assert answers.count(b'{"live":true}') == (2 if "live" in route else 1)


@sanic_only
@pytest.mark.parametrize("route", ROUTES)
async def test_response_does_not_wait_for_body(bridge: Bridge, route: str, server: ServerName) -> None:
    async with bridge.events(), raw_connection(bridge.port, head_of(route)) as (reader, writer):
        writer.write(b"Content-Length: 10\r\n\r\nhello")
        async with asyncio.timeout(WAIT_SECONDS):
            assert (await reader.readline()).startswith(b"HTTP/1.1 %d" % ROUTES[route])
            writer.write(b"hello" + LAST.encode())
            assert b"HTTP/1.1 200" in await reader.read()


@sanic_only
async def test_malformed_body_closes_connection_after_response(bridge: Bridge, server: ServerName) -> None:
    request = head_of("GET /nats/health/live") + "Transfer-Encoding: chunked\r\n\r\nno number\r\n\r\n"
    async with raw_connection(bridge.port, request + LAST) as (reader, _), asyncio.timeout(WAIT_SECONDS):
        answers = await reader.read()
    assert answers.count(b"HTTP/1.1 200") == answers.count(b'{"live":true}') == 1


SMALL_CHUNKS = b"1\r\nx\r\n" * 30_000


@sanic_only
@pytest.mark.parametrize("route", ["GET /nats/health/live", "GET /nats/stream", "POST /nats/subscribe"])
async def test_body_in_small_chunks_is_not_parsed_to_its_end(
    monkeypatch: pytest.MonkeyPatch, bridge: Bridge, server: ServerName, route: str
) -> None:
    per_turn = parts_per_turn(monkeypatch)
    async with raw_connection(bridge.port, head_of(route)) as (reader, writer), asyncio.timeout(WAIT_SECONDS):
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" + SMALL_CHUNKS + b"0\r\n\r\n" + LAST.encode())
        await writer.drain()
        writer.write_eof()
        assert (await reader.read()).count(b"HTTP/1.1") == 1
    assert sum(per_turn) == 257
    assert max(per_turn) <= 16


@sanic_only
async def test_connection_lingers_for_response_before_it_ends(bridge: Bridge, server: ServerName) -> None:
    async with (
        held() as clock,
        raw_connection(bridge.port, head_of("GET /nats/health/live")) as (reader, writer),
    ):
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" + SMALL_CHUNKS)
        reading = asyncio.create_task(reader.read())
        await clock.forward(0.9)
        assert not reading.done()
        await clock.forward_until(reading.done)
        assert reading.result().endswith(b'{"live":true}')


@sanic_only
async def test_event_stream_passes_messages_while_small_chunks_come(
    bridge: Bridge, publisher: Publisher, server: ServerName
) -> None:
    subject = publisher.subject("a")
    request = f"GET /nats/events?subjects={subject} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with raw_connection(bridge.port, request) as (reader, writer), asyncio.timeout(WAIT_SECONDS):
        await reader.readuntil(b'"active":true')
        for number in range(3):
            writer.write(SMALL_CHUNKS)
            await writer.drain()
            await publisher.send(subject, b'"message %d"' % number)
            await reader.readuntil(b"message %d" % number)
        (session,) = sessions(bridge)
        transport: Any = session._transport
        await until(lambda: not transport._protocol.recv_buffer)
    await until(lambda: not len(sessions(bridge)))


@sanic_only
async def test_each_pipelined_request_is_answered_in_a_turn_of_its_own(bridge: Bridge, server: ServerName) -> None:
    loop = asyncio.get_running_loop()
    count, turns_of_loop = 500, 0
    request = b"GET /nats/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def turn() -> None:
        nonlocal turns_of_loop
        turns_of_loop += 1
        loop.call_soon(turn)

    async with raw_connection(bridge.port, "") as (reader, writer), asyncio.timeout(WAIT_SECONDS):
        loop.call_soon(turn)
        writer.write(request * count + LAST.encode())
        assert (await reader.read()).count(b'{"live":true}') == count + 1
    assert turns_of_loop >= count


@sanic_only
async def test_connection_ends_if_body_never_comes(shared_nats: NatsServer, server: ServerName) -> None:
    async with (
        running(
            servers=shared_nats.url,
            subscribe=["a"],
            server=server,
            prepare=lambda app: app.config.update(KEEP_ALIVE_TIMEOUT=2),
        ) as bridge,
        held() as clock,
        raw_connection(bridge.port, head_of("GET /nats/health/live") + "Content-Length: 5\r\n\r\n") as (reader, _),
    ):
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            await clock.forward(0.5)
        assert (await reading).endswith(b'{"live":true}')


@sanic_only
@pytest.mark.parametrize(
    ("content_type", "status"), [("text/plain", 415), ("application/json", 413)], ids=["not read", "read in part"]
)
async def test_no_more_than_largest_request_of_app_is_discarded(
    shared_nats: NatsServer, server: ServerName, content_type: str, status: int
) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        app.config.update(REQUEST_MAX_SIZE=1000, KEEP_ALIVE_TIMEOUT=3600, RESPONSE_TIMEOUT=3600, REQUEST_TIMEOUT=3600)

    head = f"POST /nats/subscribe HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
    async with (
        running(
            servers=shared_nats.url, subscribe=["a"], max_command_bytes=500, server=server, prepare=prepare
        ) as bridge,
        raw_connection(bridge.port, f"{head}Content-Length: 1000000\r\n\r\n{'x' * 600}") as (reader, _),
        asyncio.timeout(WAIT_SECONDS),
    ):
        # The connection ends although the client has sent the beginning of the body alone.
        assert (await reader.read()).startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_stream_of_request_with_body_passes_messages_and_ends_with_client(
    bridge: Bridge, publisher: Publisher, version: str
) -> None:
    subject = publisher.subject("a")
    request = (
        f"GET /nats/events?subjects={subject} HTTP/{version}\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    )
    async with raw_connection(bridge.port, request) as (reader, writer), asyncio.timeout(WAIT_SECONDS):
        await reader.readuntil(b'"active":true')
        writer.write(b"x" * 300_000)  # more than Sanic's buffer takes
        await writer.drain()
        for number in range(3):
            await publisher.send(subject, b'"message %d"' % number)
            await reader.readuntil(b"message %d" % number)
    await until(lambda: not len(sessions(bridge)))


@sanic_only
async def test_http10_stream_ends_without_waiting_for_body(bridge: Bridge, server: ServerName) -> None:
    request = "GET /nats/events HTTP/1.0\r\nContent-Length: 10\r\n\r\n"
    async with raw_connection(bridge.port, request) as (reader, _), asyncio.timeout(WAIT_SECONDS):
        await reader.readuntil(b'"welcome"')
        bridge.runtime.sessions.close_all("The server is going away")
        with contextlib.suppress(ConnectionResetError):
            assert (await reader.read()).endswith(b"}\n\n")


@sanic_only
async def test_http10_stream_has_no_interim_response(bridge: Bridge, publisher: Publisher, server: ServerName) -> None:
    subject = publisher.subject("a")
    request = f"GET /nats/events?subjects={subject} HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n"
    async with raw_connection(bridge.port, request) as (reader, writer), asyncio.timeout(WAIT_SECONDS):
        stream = await reader.readuntil(b'"active":true')
        writer.write(b"hello")
        await publisher.send(subject, b'"message"')
        stream += await reader.readuntil(b"message")
    assert stream.startswith(b"HTTP/1.1 200")
    assert b"100 Continue" not in stream
