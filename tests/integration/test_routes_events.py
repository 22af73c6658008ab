import asyncio
import contextlib
import json
import re
import threading
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from aiohttp import ClientResponse
from httpx_sse import aconnect_sse
from sanic import HTTPResponse, Request, Sanic
from sanic.response import BaseHTTPResponse, text
from sseclient import SSEClient

from sanic_nats_bridge import Session
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import (
    SERVERS,
    WAIT_SECONDS,
    Bridge,
    Publisher,
    ServerName,
    running,
    sanic_only,
    subscribed,
    until,
)
from tests.support.clock import held
from tests.support.raw import kept_connection, raw_connection, reset, sessions

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "Sanic-Nats-Bridge": "1",
    "X-Accel-Buffering": "no",
    "Vary": "origin",
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


def response_headers(response: ClientResponse) -> dict[str, str]:
    """Return the headers that describe the response, without those of the connection."""
    transport = {"Alt-Svc", "Connection", "Keep-Alive", "Transfer-Encoding", "Content-Length", "Date", "Server"}
    return {name.title(): value for name, value in response.headers.items() if name.title() not in transport}


async def event(response: ClientResponse) -> str:
    """Return the next event as a string."""
    async with asyncio.timeout(WAIT_SECONDS):
        return (await response.content.readuntil(b"\n\n")).decode()


def data(text: str) -> dict[str, Any]:
    (line,) = re.findall(r"^data: (.*)$", text, re.MULTILINE)
    frame: dict[str, Any] = json.loads(line)
    return frame


async def test_stream_opens_with_retry_and_welcome(shared_nats: NatsServer, server: ServerName) -> None:
    async with (
        running(server=server, servers=shared_nats.url, retry=3) as bridge,
        bridge.http.get(f"{bridge.url}/events") as response,
    ):
        assert response.status == 200
        assert response_headers(response) == HEADERS
        match = re.fullmatch(r"retry: (\d+)\nevent: welcome\ndata: (.*)\n\n", await event(response))
        assert match is not None
        assert 3000 <= int(match[1]) <= 6000
        welcome = json.loads(match[2])
        assert len(welcome.pop("session")) >= 32
        assert welcome == {
            "type": "welcome",
            "success": True,
            "data": "Successfully connected",
            "protocol": 1,
            "features": ["publish", "request"],
            "heartbeat": 15,
            "nats": "connected",
        }


async def test_streams_get_different_retry_delays(bridge: Bridge) -> None:
    async with contextlib.AsyncExitStack() as stack:
        responses = [await stack.enter_async_context(bridge.http.get(f"{bridge.url}/events")) for _ in range(5)]
        assert len({(await event(response)).partition("\n")[0] for response in responses}) > 1


async def test_only_messages_have_no_event_name(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with bridge.events(subject) as client:
        assert client.reply == subscribed(subject)
        await publisher.send(subject, b"1")
        assert await client.frame() == {"type": "message", "subject": subject, "data": 1}
        assert client.events == ["welcome", "reply", "message"]


async def test_stream_subscribes_to_subjects_of_query(bridge: Bridge, publisher: Publisher) -> None:
    subject, rest = publisher.subject("a"), publisher.subject("b.>")
    async with bridge.events(subject, rest, subject) as client:
        assert client.reply["subjects"] == [subject, rest]
        await publisher.send(subject, b"1")
        await publisher.send(publisher.subject("b.c"), b"2")
        assert [(frame["data"], frame.get("pattern")) for frame in await client.frames(2)] == [(1, None), (2, rest)]


REFUSALS = {
    "empty": ("subjects=", 400, "subject.invalid"),
    "empty token": ("subjects=a..b", 400, "subject.invalid"),
    "NUL": ("subjects=a%00b", 400, "subject.invalid"),
    "CR LF": ("subjects=a%0D%0Ab", 400, "subject.invalid"),
    "not UTF-8": ("subjects=%FF", 400, "subject.invalid"),
    "one of two": ("subjects=a&subjects=b.%3E.c", 400, "subject.invalid"),
    "reserved": ("subjects=%24SYS.%3E", 403, "subject.forbidden"),
    "inbox": ("subjects=a&subjects=_INBOX.%3E", 403, "subject.forbidden"),
    "129": ("&".join(f"subjects=a.{number}" for number in range(129)), 429, "limit.subscriptions"),
    "another protocol": ("protocol=2", 400, "command.unsupported"),
    "no protocol": ("protocol=", 400, "command.unsupported"),
    "from": ("subjects=a&from=1", 400, "command.unsupported"),
    "after": ("after=1", 400, "command.unsupported"),
    "subject": ("subject=a", 400, "command.unsupported"),
    "subjects[]": ("subjects[]=a&subjects[]=b", 400, "command.unsupported"),
    "subjects[0]": ("subjects%5B0%5D=a", 400, "command.unsupported"),
    "Subjects": ("Subjects=a", 400, "command.unsupported"),
    "topic": ("topic=a", 400, "command.unsupported"),
    "topics": ("subjects=a&topics=b", 400, "command.unsupported"),
    "comma": ("subjects=a,b", 400, "command.unsupported"),
    "encoded comma": ("subjects=x&subjects=a%2Cb", 400, "command.unsupported"),
}


@pytest.mark.parametrize(("query", "status", "code"), REFUSALS.values(), ids=REFUSALS)
async def test_invalid_stream_request_gets_http_error(bridge: Bridge, query: str, status: int, code: str) -> None:
    async with bridge.http.get(f"{bridge.url}/events?{query}") as response:
        assert (response.status, response.content_type) == (status, "application/json")
        assert response.headers["Cache-Control"] == "no-store"
        assert "Retry-After" not in response.headers
        reply = await response.json()
        assert (reply["type"], reply["success"], reply["code"]) == ("reply", False, code)
        assert reply["message"]
    async with bridge.http.head(f"{bridge.url}/events?{query}") as head:
        assert (head.status, response_headers(head)) == (response.status, response_headers(response))
        assert await head.read() == b""
    assert not len(sessions(bridge))
    assert not bridge.runtime.sessions.hub.patterns


async def test_error_for_wrong_subjects_names_the_parameter(bridge: Bridge) -> None:
    for query, words in (("topic=a", "'subjects', not 'topic'"), ("subjects=a,b", "one parameter 'subjects' for each")):
        async with bridge.http.get(f"{bridge.url}/events?{query}") as response:
            assert words in (await response.json())["message"]


async def test_subject_with_comma_can_be_subscribed_by_command(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a,b")
    async with bridge.events() as client:
        body = {"session": client.session, "subjects": [subject]}
        assert (await bridge.post("/subscribe", body))[0] == 200
        await publisher.send(subject, b"1")
        assert await client.data(1) == [1]


async def test_head_returns_stream_headers_and_opens_no_session(bridge: Bridge) -> None:
    with kept_connection(bridge) as connection:
        # The second answer comes on the same connection: nothing follows the first.
        for query in ("", "?subjects=a&protocol=1"):
            response, body = await connection.request("HEAD", f"/events{query}")
            assert (response.status, body) == (200, b"")
            assert {name: response.headers[name] for name in HEADERS} == HEADERS
    assert not len(sessions(bridge))
    assert not bridge.runtime.sessions.hub.patterns


async def test_response_that_middleware_returns_replaces_stream(shared_nats: NatsServer, server: ServerName) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        @app.on_response  # type: ignore[untyped-decorator]
        async def replace(request: Request, response: BaseHTTPResponse) -> HTTPResponse:
            return text("maintenance", 200 if "subjects" in request.args else 503)

    async with running(server=server, servers=shared_nats.url, subscribe=["a"], prepare=prepare) as bridge:
        with kept_connection(bridge) as connection:
            for query, status in (("", 503), ("?subjects=a", 200), ("", 503)):
                response, body = await connection.request("GET", f"/events{query}")
                assert (response.status, body) == (status, b"maintenance")
        assert not len(sessions(bridge))


async def test_full_worker_sends_close_event_and_keeps_connection_open(
    shared_nats: NatsServer, server: ServerName
) -> None:
    async with running(server=server, servers=shared_nats.url, subscribe=["a"], max_sessions=1, retry=1) as bridge:
        async with bridge.events() as client:
            with kept_connection(bridge) as connection:
                for _ in range(2):
                    response, body = await connection.request("GET", "/events?subjects=a")
                    assert response.status == 200
                    assert {name: response.headers[name] for name in HEADERS} == HEADERS
                    match = re.fullmatch(r"retry: (\d+)\nevent: close\ndata: (.*)\n\n", body.decode())
                    assert match is not None
                    close = json.loads(match[2])
                    assert (close["type"], close["code"], close["reconnect"]) == ("close", 1013, True)
                    assert close["retry"] == int(match[1]) > 2000
                assert (await connection.request("HEAD", "/events"))[0].status == 200
                status, _ = await connection.post("/subscribe", {"session": client.session, "subjects": ["a"]})
                assert status == 200
        await until(lambda: not len(sessions(bridge)))
        async with bridge.events() as client:
            assert client.welcome["type"] == "welcome"


async def test_pipelined_requests_are_answered_after_stream_ends(shared_nats: NatsServer, server: ServerName) -> None:
    request = "GET /nats/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with running(server=server, servers=shared_nats.url, max_sessions=1) as bridge, bridge.events():
        last = "HEAD /nats/events?protocol=2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        async with raw_connection(bridge.port, request * 2 + last) as (reader, _), asyncio.timeout(WAIT_SECONDS):
            answers = (await reader.read()).decode()
        assert re.findall(r"HTTP/1.1 (\d+)", answers) == ["200", "200", "400"]
        assert answers.count("event: close") == 2


HTTP10_SERVERS: list[tuple[ServerName, dict[str, str]]] = [
    ("sanic", {}),
    ("uvicorn", {"http": "h11"}),
    ("hypercorn", {}),
]


@pytest.fixture
async def http10(request: pytest.FixtureRequest, shared_nats: NatsServer, server: ServerName) -> AsyncIterator[Bridge]:
    """Serve a bridge for one session, with rare heartbeats."""
    async with running(
        server=server,
        server_options=request.param,
        servers=shared_nats.url,
        subscribe=[">"],
        unsubscribe_delay=0.1,
        heartbeat=3600,
        max_sessions=1,
    ) as bridge:
        yield bridge


each_http10_server = pytest.mark.parametrize(
    ("server", "http10"), HTTP10_SERVERS, ids=[name for name, _ in HTTP10_SERVERS], indirect=["http10"]
)


def fields_of(head: bytes) -> dict[str, str]:
    """Return the headers of a response."""
    lines = (line.partition(": ") for line in head.decode().split("\r\n")[1:] if line)
    return {name.title(): value for name, _, value in lines}


@each_http10_server
@pytest.mark.parametrize("connection", ["", "Connection: keep-alive\r\n"], ids=["", "keep-alive"])
async def test_http10_client_gets_events_without_chunks_until_connection_ends(
    http10: Bridge, publisher: Publisher, shared_nats: NatsServer, connection: str
) -> None:
    """Check the bytes of the stream, to which RFC 9112, section 6.1, forbids a transfer coding."""
    subject = publisher.subject("a")
    request = f"GET /nats/events?subjects={subject} HTTP/1.0\r\n{connection}\r\n"
    async with raw_connection(http10.port, request) as (reader, _), asyncio.timeout(WAIT_SECONDS):
        fields = fields_of(await reader.readuntil(b"\r\n\r\n"))
        assert {name: fields[name] for name in HEADERS} == HEADERS
        assert fields["Connection"] == "close"
        assert not {"Transfer-Encoding", "Content-Length"} & fields.keys()
        assert re.fullmatch(rb"retry: \d+\nevent: welcome\ndata: \{.*\}\n\n", await reader.readuntil(b"\n\n"))
        assert (await reader.readuntil(b"\n\n")).startswith(b'event: reply\ndata: {"type":"reply"')
        payloads = [b"%d" % number for number in range(100)] + [b'"%b"' % (b"x" * 300_000)]
        await publisher.send(subject, *payloads)
        for payload in payloads:
            event = await reader.readuntil(b"\n\n")
            assert event == b'data: {"type":"message","subject":"%b","data":%b}\n\n' % (subject.encode(), payload)
        # A worker without room for another client ends the stream of the second one at once.
        async with raw_connection(http10.port, request) as (second, _):
            _, _, body = (await second.read()).partition(b"\r\n\r\n")
        assert re.fullmatch(rb"retry: \d+\nevent: close\ndata: \{.*\}\n\n", body)
        http10.runtime.sessions.close_all("The server is going away")
        assert re.fullmatch(rb"retry: \d+\nevent: close\ndata: \{.*\}\n\n", await reader.read())


@each_http10_server
async def test_session_ends_when_http10_client_disconnects(http10: Bridge) -> None:
    async with raw_connection(http10.port, "GET /nats/events HTTP/1.0\r\n\r\n") as (reader, _):
        await asyncio.wait_for(reader.readuntil(b'"welcome"'), WAIT_SECONDS)
        assert len(sessions(http10)) == 1
    await until(lambda: not len(sessions(http10)))


@each_http10_server
async def test_http10_client_gets_whole_error_and_can_keep_its_connection(http10: Bridge) -> None:
    request = "GET /nats/events?subjects=a..b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    async with raw_connection(http10.port, request) as (reader, writer), asyncio.timeout(WAIT_SECONDS):
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400")
            fields = fields_of(head)
            assert "Transfer-Encoding" not in fields
            if fields["Connection"] == "close":
                body = await reader.read()
            else:
                body = await reader.readexactly(int(fields["Content-Length"]))
                writer.write(request.encode())
            assert json.loads(body)["code"] == "subject.invalid"
            if fields["Connection"] == "close":
                return


async def test_http10_stream_sends_heartbeats(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, heartbeat=0.2) as bridge:
        async with raw_connection(bridge.port, "GET /nats/events HTTP/1.0\r\n\r\n") as (reader, _):
            async with asyncio.timeout(WAIT_SECONDS):
                await reader.readuntil(b"\r\n\r\n")
                events = [await reader.readuntil(b"\n\n") for _ in range(4)]
        assert set(events[1:]) == {b'event: heartbeat\ndata: {"type":"heartbeat"}\n\n'}


async def test_http10_slow_consumer_gets_gap(shared_nats: NatsServer, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    request = f"GET /nats/events?subjects={subject} HTTP/1.0\r\n\r\n"
    async with (
        running(servers=shared_nats.url, subscribe=[">"], max_pending_bytes=65_536, write_timeout=3600) as bridge,
        raw_connection(bridge.port, request, limit=4096) as (reader, _),
        asyncio.timeout(WAIT_SECONDS),
    ):
        await until(lambda: subject in shared_nats.subscriptions())
        while not bridge.runtime.sessions.counters.lost["slow_consumer"]:
            await publisher.send(subject, b'"%b"' % (b"x" * 30_000))
        data = b""
        while b"event: gap\n" not in data:
            data = data[-20:] + await reader.read(65_536)


@sanic_only
async def test_stream_ends_with_close_event_1001_when_server_stops(shared_nats: NatsServer, server: ServerName) -> None:
    request = "GET /nats/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(2 * WAIT_SECONDS):
        async with running(server=server, servers=shared_nats.url, retry=1) as bridge:
            reader, _ = await stack.enter_async_context(raw_connection(bridge.port, request))
            await reader.readuntil(b'"type":"welcome"')
        text = (await reader.read()).decode()
    match = re.search(r"\nretry: (\d+)\nevent: close\ndata: (.*)\n\n\r\n0\r\n\r\n$", text)
    assert match is not None
    close = json.loads(match[2])
    assert (close["code"], close["reconnect"], close["retry"]) == (1001, True, int(match[1]))


async def test_old_stream_ends_in_order_with_close_1001_and_short_retry(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    subject = publisher.subject("a")
    large = json.dumps("x" * 300_000).encode()
    request = f"GET /nats/events?subjects={subject} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    closed: list[tuple[str, int]] = []

    def prepare(app: Sanic[Any, Any]) -> None:
        @app.signal("natsbridge.session.closed")
        async def note(session: Session, code: int) -> None:
            closed.append((session.transport, code))

    async with (
        running(
            server=server,
            servers=shared_nats.url,
            subscribe=[">"],
            max_stream_age=1000,
            heartbeat=3600,
            # NATS answers no PING while the clock leaps.
            ping_interval=3600,
            prepare=prepare,
        ) as bridge,
        bridge.websocket() as websocket,
        raw_connection(bridge.port, request) as (reader, _),
        held() as clock,
    ):
        await websocket.follow(subject)
        await reader.readuntil(b'"active":true')
        await publisher.send(subject, large)
        assert await websocket.data(1) == ["x" * 300_000]
        await until(lambda: all(session.is_writable for session in bridge.extension.sessions))
        await publisher.send(subject, b'"last"')
        assert await websocket.data(1) == ["last"]
        await clock.forward(1000)
        await until(lambda: closed)
        text = await reader.readuntil(b"\r\n0\r\n\r\n")
        events = re.sub(r"\r\n[0-9a-fA-F]+\r\n", "", text.decode()).removesuffix("\r\n0\r\n\r\n")
        data, last, close = re.findall(r"^data: (.*)$", events, re.MULTILINE)[-3:]
        assert [len(json.loads(data)["data"]), json.loads(last)["data"]] == [300_000, "last"]
        match = re.search(r"\nretry: (\d+)\nevent: close\ndata: ", events)
        assert match is not None
        assert 0 <= int(match[1]) <= 100
        assert json.loads(close) == {
            "type": "close",
            "code": 1001,
            "reason": "The event stream has reached its maximum age",
            "reconnect": True,
            "retry": int(match[1]),
        }
        assert closed == [("sse", 1001)]
        await publisher.send(subject, b"1")
        assert await websocket.data(1) == [1]


async def test_httpx_client_reads_stream(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with (
        httpx.AsyncClient(timeout=WAIT_SECONDS) as http,
        aconnect_sse(http, "GET", f"{bridge.url}/events", params={"subjects": subject}) as source,
    ):
        received = []
        async for event in source.aiter_sse():
            received.append((event.event, event.json().get("data")))
            if event.event == "reply":
                await publisher.send(subject, b'"two\\nlines"', "ä\u2028".encode())
            if len(received) == 4:
                break
    assert [name for name, _ in received] == ["welcome", "reply", "message", "message"]
    assert [text for _, text in received[2:]] == ["two\nlines", "ä\u2028"]


async def test_sseclient_reads_stream(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    received: list[tuple[str, Any]] = []

    def read() -> None:
        with urllib.request.urlopen(f"{bridge.url}/events?subjects={subject}", timeout=WAIT_SECONDS) as response:
            for event in SSEClient(response).events():
                received.append((event.event, json.loads(event.data)))
                if len(received) == 4:
                    return

    reader = threading.Thread(target=read)
    reader.start()
    await until(lambda: len(received) == 2)
    await publisher.send(subject, b"[1]", "ä\u2028".encode())
    await asyncio.to_thread(reader.join)
    assert [name for name, _ in received] == ["welcome", "reply", "message", "message"]
    assert [frame["data"] for _, frame in received[2:]] == [[1], "ä\u2028"]


@pytest.mark.parametrize("crash", [False, True], ids=["close", "crash"])
async def test_session_and_subscription_end_when_client_disconnects(
    bridge: Bridge, publisher: Publisher, shared_nats: NatsServer, crash: bool
) -> None:
    subject = publisher.subject("a")
    request = f"GET /nats/events?subjects={subject} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with raw_connection(bridge.port, request) as (reader, writer):
        await reader.readuntil(b'"active":true')
        assert subject in shared_nats.subscriptions()
        if crash:
            reset(writer.transport)
        else:
            writer.close()
        await until(lambda: not len(sessions(bridge)))
        await until(lambda: subject not in shared_nats.subscriptions())


@sanic_only
async def test_streams_outlive_response_timeout(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    idle, busy = publisher.subject("idle"), publisher.subject("busy")
    async with (
        running(
            server=server,
            servers=shared_nats.url,
            subscribe=[">"],
            prepare=lambda app: app.config.update(RESPONSE_TIMEOUT=2),
        ) as bridge,
        bridge.events(idle) as idle_client,
        bridge.events(busy) as busy_client,
        held() as clock,
    ):
        for number in range(60):
            await publisher.send(busy, b"%d" % number)
            await clock.forward(0.1)
        await publisher.send(idle, b'"alive"')
        assert await idle_client.data(1) == ["alive"]
        assert await busy_client.data(60) == list(range(60))


async def test_heartbeats_are_sent_on_idle_stream(shared_nats: NatsServer, server: ServerName) -> None:
    async with (
        running(server=server, servers=shared_nats.url, heartbeat=0.2) as bridge,
        bridge.http.get(f"{bridge.url}/events") as response,
    ):
        assert data(await event(response))["heartbeat"] == 0.2
        assert {await event(response) for _ in range(3)} == {'event: heartbeat\ndata: {"type":"heartbeat"}\n\n'}


async def test_heartbeats_are_sent_on_idle_websocket(shared_nats: NatsServer, server: ServerName) -> None:
    async with running(server=server, servers=shared_nats.url, heartbeat=0.2) as bridge, bridge.websocket() as client:
        async with asyncio.timeout(WAIT_SECONDS):
            assert [await client.connection.recv() for _ in range(3)] == ['{"type":"heartbeat"}'] * 3
