import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from sanic.exceptions import WebsocketClosed
from sanic.http.constants import Stage

from sanic_nats_bridge import Session
from sanic_nats_bridge.errors import CloseCode
from sanic_nats_bridge.protocol.messages import Close
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.testing import NatsServer
from sanic_nats_bridge.transports.asgi import AsgiSseTransport, AsgiWebSocketTransport
from tests.support.bridge import WAIT_SECONDS, Bridge, Publisher, ServerName, running, until
from tests.support.clock import held
from tests.support.raw import UPGRADE, client_frame, reset, session_id, sessions

HIGH = 2_000

# Behind real servers.
LIMIT, SIZE, BATCH = 300_000, 10_000, 10
READ_BYTES = 65_536
FRAMING = re.compile(rb"\r\n[0-9a-f]+\r\n")  # of chunks

SETTINGS = Settings(max_pending_bytes=HIGH)
CLOSE = Close(code=1001, reason="bye", reconnect=True)


class Server:
    """An ASGI server's interface for one connection; the test decides when it takes something."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.ready = asyncio.Event()
        self.fault: Exception | None = None
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.receive = self.received.get
        self._send = self.send

    async def send(self, event: dict[str, Any]) -> None:
        await self.ready.wait()
        if self.fault is not None:
            raise self.fault
        self.taken.append(event)

    @property
    def texts(self) -> list[str]:
        return [event["text"] for event in self.taken if event["type"] == "websocket.send"]

    @property
    def request(self) -> Any:
        return SimpleNamespace(transport=self, stream=SimpleNamespace(stage=Stage.RESPONSE))


class Response:
    """Sanic's interface for a response that has begun."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def send(self, data: bytes = b"", end_stream: bool = False) -> None:
        await self._server.send({"type": "body", "data": data, "end": end_stream})


class Watcher:
    def __init__(self) -> None:
        self.calls: list[object] = []

    def pause_writing(self) -> None:
        self.calls.append("filled")

    def resume_writing(self) -> None:
        self.calls.append("drained")

    def control_frame_received(self) -> None:
        self.calls.append("pinged")

    def connection_lost(self, code: int) -> None:
        self.calls.append(code)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def websocket(server: Server) -> AsyncIterator[AsgiWebSocketTransport]:
    async with AsgiWebSocketTransport(server.request, SETTINGS).serving() as transport:
        transport.set_listener(Watcher())
        yield transport


def listener_calls(transport: Any) -> list[object]:
    listener: Watcher = transport._listener
    return listener.calls


def line(size: int, letter: str = "x") -> bytes:
    return letter.encode() * (size - 1) + b"\n"


async def test_each_json_line_is_sent_as_one_event_in_order(server: Server, websocket: AsgiWebSocketTransport) -> None:
    websocket.write(b"{}\n[1]\n")
    websocket.write('["\u2028"]\n'.encode())
    assert (websocket.written, websocket.pending) == (15, 15)
    server.ready.set()
    await until(lambda: not websocket.pending)
    assert server.texts == ["{}", "[1]", '["\u2028"]']
    assert websocket.written == 15


async def test_writing_pauses_once_above_high_water_and_resumes_once(
    server: Server, websocket: AsgiWebSocketTransport
) -> None:
    for _ in range(4):
        websocket.write(line(HIGH // 4))
    assert listener_calls(websocket) == []
    websocket.write(line(HIGH // 4))
    assert listener_calls(websocket) == ["filled"]
    websocket.write(line(HIGH // 4))
    assert websocket.pending == HIGH * 6 // 4
    server.ready.set()
    await until(lambda: not websocket.pending)
    assert listener_calls(websocket) == ["filled", "drained"]


async def test_data_not_accepted_by_server_counts_as_pending(server: Server, websocket: AsgiWebSocketTransport) -> None:
    websocket.write(line(100) * 2)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert websocket.pending == 200
    server.ready.set()
    await until(lambda: not websocket.pending)


async def test_close_frame_follows_pending_data_and_ends_writing(
    server: Server, websocket: AsgiWebSocketTransport
) -> None:
    websocket.write(line(10))
    websocket.close(CLOSE, 60)
    websocket.write(line(10))
    server.ready.set()
    await until(lambda: len(server.taken) == 3)
    assert server.texts == ["x" * 9, '{"type":"close","code":1001,"reason":"bye","reconnect":true}']
    assert server.taken[-1] == {"type": "websocket.close", "code": 1001, "reason": "bye"}


class Routes:
    """Handlers of both transports, each as its route has it."""

    @staticmethod
    async def websocket(server: Server, ready: list[Any]) -> None:
        async with AsgiWebSocketTransport(server.request, SETTINGS).serving() as transport:
            transport.set_listener(Watcher())
            ready.append(transport)
            with contextlib.suppress(WebsocketClosed):
                while True:
                    await transport.recv()

    @staticmethod
    async def events(server: Server, ready: list[Any]) -> None:
        async with AsgiSseTransport(server.request, Response(server), SETTINGS).serving() as transport:  # type: ignore[arg-type]
            transport.set_listener(Watcher())
            ready.append(transport)
            await transport.wait_finished()


@contextlib.asynccontextmanager
async def handled(server: Server, route: str) -> AsyncIterator[tuple[Any, asyncio.Task[None]]]:
    """Yield a transport and the task of its handler, and check that no task is left behind."""
    before = asyncio.all_tasks()
    ready: list[Any] = []
    handler = asyncio.create_task(getattr(Routes, route)(server, ready))
    await until(lambda: ready)
    yield ready[0], handler
    await until(lambda: asyncio.all_tasks() == before)
    assert not handler.cancelled()
    assert handler.exception() is None


both_transports = pytest.mark.parametrize("route", ["websocket", "events"])


@both_transports
async def test_abort_ends_session_writer_and_handler(server: Server, route: str) -> None:
    async with handled(server, route) as (transport, _):
        transport.write(line(HIGH * 2))
        transport.abort()
        assert listener_calls(transport) == ["filled", 1006]
        assert transport.pending == 0
        transport.write(line(1))
        assert transport.pending == 0
    assert server.taken == []


@both_transports
async def test_close_aborts_connection_after_timeout(server: Server, route: str) -> None:
    async with handled(server, route) as (transport, _):
        transport.close(CLOSE, 0.01)
    assert server.taken == []


@both_transports
async def test_server_send_error_ends_session_and_handler(server: Server, route: str) -> None:
    async with handled(server, route) as (transport, _):
        server.fault = OSError("gone")
        server.ready.set()
        transport.write(line(1))
    assert listener_calls(transport) == [1006]


@both_transports
async def test_cancelled_handler_returns_normally(server: Server, route: str) -> None:
    async with handled(server, route) as (transport, handler):
        handler.cancel()
    assert listener_calls(transport) == [1006]


async def test_timeout_error_in_handler_propagates(server: Server) -> None:
    with pytest.raises(TimeoutError):
        async with AsgiWebSocketTransport(server.request, SETTINGS).serving():
            raise TimeoutError


async def test_pending_close_frame_is_sent_before_handler_ends(server: Server) -> None:
    server.ready.set()
    async with AsgiWebSocketTransport(server.request, SETTINGS).serving() as transport:
        transport.close(Close(code=CloseCode.INTERNAL, reason="", reconnect=True), 60)
    assert [event["type"] for event in server.taken] == ["websocket.send", "websocket.close"]


@pytest.mark.parametrize(("event", "code"), [({"code": 4001}, 4001), ({"code": None}, 1006), ({}, 1006)])
async def test_listener_receives_client_close_code_or_1006(server: Server, event: dict[str, Any], code: int) -> None:
    async with handled(server, "websocket") as (transport, _):
        server.received.put_nowait({"type": "websocket.connect"})
        server.received.put_nowait({"type": "websocket.disconnect"} | event)
    assert listener_calls(transport) == [code]


async def test_recv_distinguishes_text_from_bytes(server: Server, websocket: AsgiWebSocketTransport) -> None:
    for content in ({"text": ""}, {"text": None, "bytes": b"1"}, {"bytes": b""}):
        server.received.put_nowait({"type": "websocket.receive"} | content)
    assert [await websocket.recv() for _ in range(3)] == ["", b"1", b""]


async def test_event_stream_is_sent_in_chunks_of_at_most_64_kib(server: Server) -> None:
    async with handled(server, "events") as (transport, _):
        for letter in "abc":
            transport.write(line(100_000, letter))
        transport.close(CLOSE, 60)
        server.ready.set()
        await until(lambda: not transport.pending)
    body = b"".join(event["data"] for event in server.taken)
    assert body.startswith(line(100_000, "a") + line(100_000, "b") + line(100_000, "c") + b"event: close\n")
    assert [event["end"] for event in server.taken] == [False] * 5 + [True]
    assert max(len(event["data"]) for event in server.taken) == 65_536
    assert listener_calls(transport) == ["filled", "drained", 1006]


# A session that is cut

CUT = Close(code=CloseCode.FORBIDDEN, reason="revoked", reconnect=False)


def event(letter: str, size: int = 100) -> bytes:
    return b"data: %b\n\n" % (letter.encode() * (size - 8))


@both_transports
async def test_forbidden_close_drops_data_not_yet_passed_to_server(server: Server, route: str) -> None:
    async with handled(server, route) as (transport, _):
        transport.write(event("a") if route == "events" else line(100, "a") + line(100, "b"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        transport.write(event("c") if route == "events" else line(100, "c"))
        taken = transport.written - transport.pending
        transport.close(CUT, 60)
        close = transport.pending - 100
        assert 0 < close < 100
        assert transport.written - transport.pending == taken == 0
        server.ready.set()
        await until(lambda: not transport.pending)
        assert transport.written == 100 + close
        server.received.put_nowait({"type": "websocket.disconnect"})
    if route == "events":
        body = b"".join(event["data"] for event in server.taken)
        assert body.startswith(event("a") + b"event: close\n")
        assert body.count(b"\n\n") == 2
    else:
        assert server.texts[0] == "a" * 99
        assert [json.loads(text)["type"] for text in server.texts[1:]] == ["close"]
        assert server.taken[-1]["code"] == 4403


@both_transports
async def test_forbidden_close_before_first_send_sends_only_close_frame(server: Server, route: str) -> None:
    async with handled(server, route) as (transport, _):
        transport.write(event("a") if route == "events" else line(100))
        transport.close(CUT, 60)
        server.ready.set()
        await until(lambda: not transport.pending)
        server.received.put_nowait({"type": "websocket.disconnect"})
    assert len(server.taken) == 2
    assert b'"type":"close"' in server.taken[0].get("data", server.taken[0].get("text", "").encode())


PART = 65_536


@pytest.mark.parametrize(
    "sizes",
    [(PART - 50, 100, 100), (PART, 100, 100), (PART + 1, 100, 100), (PART + 2, 100, 100), (PART * 2, 100, 100)],
    ids=["within the second event", "at its end", "before its last byte", "before its last two", "within the first"],
)
async def test_partly_sent_event_is_completed_before_forbidden_close(server: Server, sizes: tuple[int, ...]) -> None:
    events = [event(letter, size) for letter, size in zip("abc", sizes, strict=True)]
    whole = b"".join(events)
    ends = [len(b"".join(events[: count + 1])) for count in range(3)]
    async with handled(server, "events") as (transport, _):
        transport.write(whole)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        transport.close(CUT, 60)
        server.ready.set()
        await until(lambda: not transport.pending)
    body = b"".join(event["data"] for event in server.taken)
    end = min(end for end in ends if end >= PART)
    assert body[:end] == whole[:end]
    assert body[end:].startswith(b"event: close\n")


# Behind real servers

REQUESTS = {
    "websocket": f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}\r\n",
    "events": "GET /nats/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
SERVERS: dict[str, tuple[ServerName, dict[str, Any]]] = {
    "uvicorn": ("uvicorn", {}),
    "uvicorn with websockets and h11": ("uvicorn", {"ws": "websockets", "http": "h11"}),
    "uvicorn with wsproto": ("uvicorn", {"ws": "wsproto", "http": "httptools"}),
    "hypercorn": ("hypercorn", {}),
}


def behind_servers(test: Any) -> Any:
    """Run the test on both transports behind each of the servers."""
    for mark in (
        both_transports,
        pytest.mark.parametrize(("name", "options"), SERVERS.values(), ids=SERVERS),
        pytest.mark.filterwarnings("ignore:The `websockets` implementation is deprecated"),
        pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets"),
    ):
        test = mark(test)
    return test


@contextlib.asynccontextmanager
async def stalled(
    bridge: Bridge, route: str, subject: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Session, str]]:
    """Connect a client that follows the subject and reads no further than its welcome, and yield its id too."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", bridge.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**16)
    writer.write(REQUESTS[route].encode())
    secret = session_id(await reader.readuntil(b'"nats":"connected"}'))
    (session,) = sessions(bridge)
    assert (await bridge.post("/subscribe", {"session": secret, "subjects": [subject]}))[0] == 200
    try:
        yield reader, writer, session, secret
    finally:
        writer.transport.abort()


class Received:
    """Data that a client has read, without the framing of chunks."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._received = bytearray()

    @property
    def text(self) -> bytes:
        return FRAMING.sub(b"", self._received)

    async def until_contains(self, expected: bytes) -> None:
        # Only the end of the text can be new: all of it would be searched thousands of times.
        await self.until(lambda: expected in FRAMING.sub(b"", self._received[-READ_BYTES - SIZE :]))

    async def until(self, fact: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not fact():
                data = await self._reader.read(READ_BYTES)
                assert data
                self._received += data


async def overfill(session: Session, publisher: Publisher, subject: str) -> int:
    """Publish until more waits for the session than may, and some more; how many messages."""
    published = 0
    while (session.is_writable and not session.closed) or published % 1_000:
        await publisher.send(subject, *[b"x" * SIZE] * BATCH)
        published += BATCH
    return published


@behind_servers
async def test_gap_counts_every_message_lost_to_stalled_client(
    shared_nats: NatsServer, publisher: Publisher, route: str, name: ServerName, options: dict[str, Any]
) -> None:
    subject = publisher.subject("a")
    limits: dict[str, Any] = {"subscribe": [">"], "max_pending_bytes": LIMIT, "write_timeout": 3600}
    async with (
        running(server=name, server_options=options, servers=shared_nats.url, **limits) as bridge,
        stalled(bridge, route, subject) as (reader, _, session, _),
    ):
        published = await overfill(session, publisher, subject)
        # The last write is at most what one turn of the event loop brings: asyncio reads 256 KiB at once.
        assert LIMIT // 4 < session._transport.pending <= LIMIT + 300_000
        received = Received(reader)
        await received.until(lambda: session.is_writable)
        await publisher.send(subject, b'"end"')
        await received.until_contains(b'"data":"end"')
    lost = sum(map(int, re.findall(rb'"lost":(\d+)', received.text)))
    assert lost > 0
    assert received.text.count(b'"type":"message"') + lost == published + 1


@behind_servers
async def test_write_timeout_closes_stalled_client_and_leaves_no_task(
    shared_nats: NatsServer, publisher: Publisher, route: str, name: ServerName, options: dict[str, Any]
) -> None:
    subject = publisher.subject("a")
    limits: dict[str, Any] = {"subscribe": [">"], "max_pending_bytes": LIMIT, "write_timeout": 5}
    async with running(server=name, server_options=options, servers=shared_nats.url, **limits) as bridge:
        await bridge.post("/subscribe", {})
        tasks = len(asyncio.all_tasks())
        async with held() as clock, stalled(bridge, route, subject) as (_, _, session, _):
            await overfill(session, publisher, subject)
            await clock.forward_until(lambda: not len(sessions(bridge)))
        await until(lambda: len(asyncio.all_tasks()) <= tasks)


@both_transports
@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
async def test_stalled_client_does_not_delay_uvicorn_shutdown(
    shared_nats: NatsServer, publisher: Publisher, route: str, ws: str
) -> None:
    subject = publisher.subject("a")
    options = {"ws": ws, "timeout_graceful_shutdown": None}
    limits: dict[str, Any] = {"subscribe": [">"], "max_pending_bytes": LIMIT, "write_timeout": 3600}
    async with (
        contextlib.AsyncExitStack() as stack,
        asyncio.timeout(WAIT_SECONDS),
        running(server="uvicorn", server_options=options, servers=shared_nats.url, **limits) as bridge,
    ):
        _, _, session, _ = await stack.enter_async_context(stalled(bridge, route, subject))
        await overfill(session, publisher, subject)
        session.close(CloseCode.GOING_AWAY, "", 0.2)


@both_transports
@pytest.mark.parametrize("code", [CloseCode.UNAUTHORIZED, CloseCode.FORBIDDEN])
async def test_auth_close_drops_queued_data_of_stalled_client(
    shared_nats: NatsServer, publisher: Publisher, route: str, code: CloseCode
) -> None:
    subject = publisher.subject("a")
    limits: dict[str, Any] = {"subscribe": [">"], "max_pending_bytes": 4 * LIMIT, "write_timeout": 3600}
    async with (
        running(server="uvicorn", servers=shared_nats.url, **limits) as bridge,
        stalled(bridge, route, subject) as (reader, _, session, _),
    ):
        await overfill(session, publisher, subject)
        transport: Any = session._transport
        waiting = transport.pending
        session.close(code, "cut", WAIT_SECONDS)
        # What the server is being given is at most one part, and there may be the rest of an event.
        assert transport.pending < PART + 2 * SIZE < waiting
        received = Received(reader)
        await received.until_contains(b'"reason":"cut"')
    whole = re.findall(rb'"data":"?x{%d}"?[,}]' % SIZE, received.text)
    assert received.text.count(b'"type":"message"') == len(whole) > 0
    assert b'"code":%d' % code in received.text


@behind_servers
async def test_disconnected_client_leaves_no_session_or_task(
    shared_nats: NatsServer, publisher: Publisher, route: str, name: ServerName, options: dict[str, Any]
) -> None:
    subject = publisher.subject("a")
    async with running(server=name, server_options=options, servers=shared_nats.url, subscribe=[">"]) as bridge:
        await bridge.post("/subscribe", {})
        tasks = len(asyncio.all_tasks())
        for leave in (asyncio.StreamWriter.close, lambda writer: reset(writer.transport)):
            async with stalled(bridge, route, subject) as (_, writer, _, _):
                leave(writer)
                await until(lambda: not len(sessions(bridge)))
                await until(lambda: len(asyncio.all_tasks()) <= tasks)


@behind_servers
async def test_client_receives_gap_reply_and_message_in_order_after_stall(
    shared_nats: NatsServer, publisher: Publisher, route: str, name: ServerName, options: dict[str, Any]
) -> None:
    subject, late = publisher.subject("a"), publisher.subject("late")
    limits: dict[str, Any] = {"subscribe": [">"], "max_pending_bytes": LIMIT, "write_timeout": 3600}
    async with (
        running(server=name, server_options=options, servers=shared_nats.url, **limits) as bridge,
        stalled(bridge, route, subject) as (reader, writer, session, secret),
    ):
        await overfill(session, publisher, subject)
        post: asyncio.Task[Any] | None = None
        if route == "websocket":
            writer.write(client_frame(b'{"subjects":["%b"]}' % late.encode()))
        else:
            post = asyncio.create_task(bridge.post("/subscribe", {"session": secret, "subjects": [late]}))
        received = Received(reader)
        await received.until(lambda: late in session.subscriptions)
        await publisher.send(late, b'"late"')
        await received.until_contains(b'"data":"late"')
        if post is not None:
            assert (await post)[1]["active"] is True
    gap, message = received.text.rindex(b'"gap"'), received.text.rindex(b'"data":"late"')
    assert received.text.rindex(b"xxx") < gap < message
    assert post or gap < received.text.rindex(b'"active":true') < message


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [(*served, 1006 if served[0] == "hypercorn" else 4001) for served in SERVERS.values()],
    ids=SERVERS,
)
@pytest.mark.filterwarnings("ignore:The `websockets` implementation is deprecated")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets")
async def test_client_close_code_is_reported_unless_server_is_hypercorn(
    shared_nats: NatsServer, name: ServerName, options: dict[str, Any], code: int
) -> None:
    codes: list[int] = []
    async with running(server=name, server_options=options, servers=shared_nats.url) as bridge:
        sessions(bridge)._on_closed = lambda session, code: codes.append(code)
        async with bridge.websocket() as client:
            await client.connection.close(4001)
        await until(lambda: codes)
    assert codes == [code]


async def test_hypercorn_serves_websocket_and_sse_clients(shared_nats: NatsServer, publisher: Publisher) -> None:
    subject, rest = publisher.subject("a"), publisher.subject(">")
    async with (
        running(server="hypercorn", servers=shared_nats.url, subscribe=[">"]) as bridge,
        bridge.websocket() as websocket,
        bridge.events(subject) as events,
    ):
        await websocket.follow(subject)
        assert (await bridge.post("/subscribe", {"session": events.session, "subjects": [rest]}))[0] == 200
        await publisher.send(subject, "ä\u2028".encode(), b"\xff", b"1")
        assert await websocket.data(3) == ["ä\u2028", "/w==", 1]
        frames = await events.frames(6)
        assert sorted(frame.get("pattern", "") for frame in frames) == [""] * 3 + [rest] * 3
        await websocket.send(" " * 70_000)
        assert (await websocket.frame())["code"] == 1009
        await websocket.connection.wait_closed()
        assert websocket.connection.close_code == 1009
