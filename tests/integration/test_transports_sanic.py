import asyncio
import contextlib
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from sanic import Request, Sanic
from websockets.protocol import Protocol

from sanic_nats_bridge import Permissions, Session
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, WebSocketClient, running, until
from tests.support.clock import HeldClock, held, turns
from tests.support.frames import CLOSE, CONT, PING, PONG, TEXT, frame, read_frame
from tests.support.raw import UPGRADE, client_frame, raw_connection, reset, session_of, sessions

LIMIT: Final = 64 * 1024
KERNEL_BYTES: Final = 32 * 1024
REQUESTS: Final = {
    "websocket": f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}\r\n",
    "events": "GET /nats/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
}

on_both_transports = pytest.mark.parametrize("route", REQUESTS)


def transport_of(session: Session) -> Any:
    return session._transport._transport  # type: ignore[attr-defined]


class Watcher:
    """A listener that records changes in the transport's state."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def pause_writing(self) -> None:
        self.heard.append("filled")

    def resume_writing(self) -> None:
        self.heard.append("drained")

    def control_frame_received(self) -> None:
        self.heard.append("pinged")

    def connection_lost(self, code: int) -> None:
        self.heard.append(f"gone {code}")


@contextlib.asynccontextmanager
async def watched(
    server: NatsServer, route: str
) -> AsyncIterator[tuple[Any, Watcher, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yield a transport with a client that doesn't read by itself."""
    async with (
        running(servers=server.url, max_pending_bytes=LIMIT) as bridge,
        raw_connection(bridge.port, REQUESTS[route], limit=1024) as (reader, writer),
    ):
        await reader.readuntil(b'"nats":"connected"}')
        (session,) = sessions(bridge)
        transport: Any = session._transport
        transport._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        transport.set_listener(listener := Watcher())
        yield transport, listener, reader, writer
        transport.set_listener(session)


@on_both_transports
async def test_listener_is_called_once_per_fill_and_once_per_drain(shared_nats: NatsServer, route: str) -> None:
    async with watched(shared_nats, route) as (transport, listener, reader, _):
        for _ in range(2):
            listener.heard.clear()
            while transport.pending < LIMIT + 100_000:
                transport.write(b"x" * 10_000)
            assert listener.heard == ["filled"]
            while transport.pending > LIMIT // 4:
                assert listener.heard == ["filled"]
                await reader.read(2**16)
            await until(lambda: listener.heard == ["filled", "drained"])
            while transport.pending:
                await reader.read(2**16)


@on_both_transports
async def test_written_counts_all_bytes_and_pending_only_unsent_bytes(shared_nats: NatsServer, route: str) -> None:
    async with watched(shared_nats, route) as (transport, _, reader, _):
        before = transport.written
        transport.write(b"x" * 500_000)
        assert transport.written - before == 500_000
        assert 0 < transport.pending <= 500_000
        await until(lambda: transport.pending < 500_000)
        received = 0
        while received < 500_000:
            received += len(await reader.read(2**16))
        await until(lambda: transport.pending == 0)


@on_both_transports
async def test_removed_listener_is_not_called_for_buffer_changes(shared_nats: NatsServer, route: str) -> None:
    async with watched(shared_nats, route) as (transport, listener, reader, _):
        transport.set_listener(None)
        transport.write(b"x" * 500_000)
        while transport.pending:
            await reader.read(2**16)
        assert listener.heard == []


@on_both_transports
async def test_abort_ends_connection_and_later_writes_are_ignored(shared_nats: NatsServer, route: str) -> None:
    async with watched(shared_nats, route) as (transport, listener, reader, _):
        transport.write(b"x" * 500_000)
        transport.set_listener(None)
        transport.abort()
        with contextlib.suppress(ConnectionError):
            while await reader.read(2**16):
                pass
        written = transport.written
        transport.write(b"x")
        assert transport.written == written
        assert "gone" not in listener.heard


@pytest.mark.parametrize(("overflow", "high"), [("gap", LIMIT), ("close", LIMIT), ("latest", LIMIT // 2)])
@on_both_transports
async def test_write_buffer_limits_follow_max_pending_bytes(
    shared_nats: NatsServer, route: str, overflow: str, high: int
) -> None:
    async with (
        running(servers=shared_nats.url, max_pending_bytes=LIMIT, overflow=overflow) as bridge,
        getattr(bridge, route)() as client,
    ):
        transport = transport_of(session_of(bridge, client.session))
        assert transport.get_write_buffer_limits() == (high // 4, high)


async def test_sanic_buffer_limits_are_restored_after_sse_session_ends(nats_server: NatsServer) -> None:
    async with (
        running(servers=nats_server.url) as bridge,
        raw_connection(bridge.port, REQUESTS["events"]) as (reader, writer),
    ):
        await reader.readuntil(b'"nats":"connected"}')
        (session,) = sessions(bridge)
        transport = transport_of(session)
        bridge.runtime.sessions.close_all("test")
        await reader.readuntil(b"\r\n0\r\n\r\n")
        assert transport.get_write_buffer_limits() == (16_384, 65_536)
        writer.write(b"GET /nats/events?subjects=%2A%2A HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"400 Bad Request" in await reader.readuntil(b"\r\n\r\n")


# A client that is silent


@on_both_transports
async def test_tcp_user_timeout_equals_write_timeout(shared_nats: NatsServer, route: str) -> None:
    async with running(servers=shared_nats.url, write_timeout=7.5) as bridge, getattr(bridge, route)() as client:
        connection = transport_of(session_of(bridge, client.session)).get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7_500


def impatient(app: Sanic[Any, Any]) -> None:
    app.config.WEBSOCKET_PING_INTERVAL = app.config.WEBSOCKET_PING_TIMEOUT = 0.2


def unlimited(app: Sanic[Any, Any]) -> None:
    app.config.WEBSOCKET_PING_INTERVAL, app.config.WEBSOCKET_PING_TIMEOUT = 0.2, None


async def test_idle_client_that_answers_no_ping_is_closed_with_1011(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, heartbeat=0.1, prepare=impatient) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, _),
    ):
        received = await reader.readuntil(b"\x88")
        assert b'{"type":"close","code":1011' in received
        assert b"\x89" in received
        assert int.from_bytes((await reader.readexactly(3))[1:]) == 1011
        assert len(sessions(bridge)) == 0


async def heartbeats(client: WebSocketClient, clock: HeldClock, count: int) -> None:
    """Advance the clock until so many heartbeats have come; the client's answers are always in time."""
    for _ in range(count):
        coming = asyncio.create_task(client._read())
        await clock.forward_until(coming.done, step=0.05)
        assert coming.result()["type"] == "heartbeat"


async def test_client_that_answers_pings_stays_connected(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, heartbeat=0.1, prepare=impatient) as bridge,
        bridge.websocket() as client,
        held() as clock,
    ):
        await heartbeats(client, clock, 15)
        assert session_of(bridge, client.session)


async def test_unanswered_pings_are_allowed_if_no_ping_timeout_is_set(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, heartbeat=0.1, prepare=unlimited) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer),
    ):
        for _ in range(12):
            assert b'"close"' not in await reader.readuntil(b'"heartbeat"}')
        writer.write(client_frame(b'{"action":"ping"}'))
        assert b'"pong"' in await reader.readuntil(b'"pong"')


async def test_pings_are_postponed_while_bytes_are_pending(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, heartbeat=0.1, prepare=impatient, max_pending_bytes=LIMIT) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"], limit=1024) as (reader, _),
    ):
        await reader.readuntil(b'"nats":"connected"}')
        (session,) = sessions(bridge)
        transport: Any = session._transport
        transport.write(b"x" * 20_000_000)
        async with held() as clock:
            await clock.forward(1)
        assert not session.closed
        received = b""
        while b"\x89" not in received:
            received = (received + await reader.read(2**20))[-100:]


async def test_client_ping_between_fragments_gets_only_pong(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer),
    ):
        await reader.readuntil(b'"nats":"connected"}')
        first, rest = client_frame(b'{"action":'), client_frame(b'"ping"}', opcode=0)
        writer.write(bytes([first[0] & 0x7F]) + first[1:] + client_frame(b"between", opcode=9) + rest)
        async with asyncio.timeout(WAIT_SECONDS):
            received = await reader.readuntil(b'"pong"}')
    assert b"\x8a\x07between" in received
    assert received.count(b'"reply"') == 1


async def test_ping_timeout_does_not_apply_while_reading_is_paused(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, heartbeat=0.1, prepare=impatient) as bridge,
        bridge.websocket() as client,
    ):
        session = session_of(bridge, client.session)
        transport: Any = session._transport
        transport._assembler.pause()
        async with held() as clock:
            await heartbeats(client, clock, 15)
        assert not session.closed
        transport._assembler.resume()
        assert (await client.ask({"action": "ping"}))["message"] == "pong"


async def test_commands_received_before_session_starts_are_executed(shared_nats: NatsServer) -> None:
    sent = asyncio.Event()

    def prepare(app: Sanic[Any, Any]) -> None:
        @app.signal("websocket.handler.before")
        async def dawdle(**_: Any) -> None:
            await sent.wait()
            await turns(20)  # until Sanic has read it

    async with (
        running(servers=shared_nats.url, prepare=prepare) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer),
    ):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(client_frame(b'{"action":"ping","id":1}') + client_frame(b'{"action":"ping","id":2}'))
        sent.set()
        received = await asyncio.wait_for(reader.readuntil(b'"id":2,"action":"ping"'), WAIT_SECONDS)
    assert 0 < received.index(b'"welcome"') < received.index(b'"id":1,')


# A client that sends much at once

UNHURRIED: Final[dict[str, Any]] = {"command_rate": 1_000_000.0, "command_burst": 1_000_000}
SLICE: Final = 4_096


async def test_loop_turn_parses_at_most_one_slice_of_frames(
    monkeypatch: pytest.MonkeyPatch, shared_nats: NatsServer
) -> None:
    turns = [0]
    receive = Protocol.recv_frame

    def count(protocol: Protocol, received: Any) -> None:
        if received.opcode == PONG:
            turns[-1] += 1
        receive(protocol, received)

    def turn() -> None:
        turns.append(0)
        if sum(turns) < 20_000:
            loop.call_soon(turn)

    monkeypatch.setattr(Protocol, "recv_frame", count)
    loop = asyncio.get_running_loop()
    smallest = frame(PONG)
    async with (
        running(servers=shared_nats.url, **UNHURRIED) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer),
    ):
        await reader.readuntil(b'"nats":"connected"}')
        loop.call_soon(turn)
        writer.write(smallest * 20_000 + client_frame(b'{"action":"ping"}'))
        await asyncio.wait_for(reader.readuntil(b'"pong"}'), WAIT_SECONDS)
    assert sum(turns) == 20_000
    assert max(turns) <= SLICE // len(smallest) + 1


async def test_commands_sent_at_once_are_answered_in_order(shared_nats: NatsServer) -> None:
    commands = [b'{"action":"ping","id":%d}' % number for number in range(500)]
    async with (
        running(servers=shared_nats.url, **UNHURRIED) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer),
    ):
        await reader.readuntil(b'"nats":"connected"}')
        writer.write(b"".join(map(client_frame, commands)))
        received = await asyncio.wait_for(reader.readuntil(b'"id":499,"action":"ping"'), WAIT_SECONDS)
    assert re.findall(rb'"id":(\d+)', received) == [b"%d" % number for number in range(500)]


@pytest.mark.parametrize("leave", ["waits", "ends"])
async def test_close_after_many_frames_is_answered_and_reported(shared_nats: NatsServer, leave: str) -> None:
    codes: list[int] = []
    async with (
        running(servers=shared_nats.url, **UNHURRIED) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer),
    ):
        sessions(bridge)._on_closed = lambda _, code: codes.append(code)
        await reader.readuntil(b'"nats":"connected"}')
        writer.write(frame(PONG) * 20_000 + frame(CLOSE, (4001).to_bytes(2)))
        if leave == "ends":
            writer.write_eof()
        assert await asyncio.wait_for(reader.read(), WAIT_SECONDS) == b"\x88\x02\x0f\xa1"
        await until(lambda: codes)
    assert codes == [4001]


async def test_session_ends_when_client_ends_tls_after_many_frames(
    shared_nats: NatsServer, server_tls: ssl.SSLContext
) -> None:
    mine = ssl.create_default_context()
    mine.check_hostname, mine.verify_mode = False, ssl.CERT_NONE
    async with running(servers=shared_nats.url, server_options={"ssl": server_tls}, **UNHURRIED) as bridge:
        tasks = asyncio.all_tasks()
        reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port, ssl=mine)
        writer.write(REQUESTS["websocket"].encode())
        await reader.readuntil(b'"nats":"connected"}')
        (session,) = sessions(bridge)
        transport: Any = session._transport
        writer.write(frame(PONG) * 20_000)
        writer.close()  # its close_notify is read together with the data before it
        await until(lambda: session.closed)
        await until(lambda: not asyncio.all_tasks() - tasks)
        assert transport._throttle._unfed is None


LARGE: Final = {
    "a frame": (b"", 1_001),
    "a frame of 2^63 bytes": (b"", 2**63),
    "the second fragment": (frame(TEXT, b" " * 600, fin=False), 401),
    "a fragment after a ping": (frame(TEXT, b" " * 1_000, fin=False) + frame(PING), 1),
}


@pytest.mark.parametrize(("begin", "length"), LARGE.values(), ids=LARGE)
async def test_too_large_message_closes_session_at_header_of_frame(
    shared_nats: NatsServer, begin: bytes, length: int
) -> None:
    async with (
        running(servers=shared_nats.url, max_command_bytes=1_000) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer),
        bridge.websocket() as other,
    ):
        await reader.readuntil(b'"nats":"connected"}')
        opcode = CONT if begin else TEXT
        writer.write(client_frame(b'{"action":"ping"}') + begin + frame(opcode, mask=None, length=length))
        frames = [await asyncio.wait_for(read_frame(reader), WAIT_SECONDS) for _ in range(4 if b"\x89" in begin else 3)]
        frames = [received for received in frames if received[0] != PONG]
        assert b'"message":"pong"' in frames[0][1]
        told = json.loads(frames[1][1])
        assert (told["type"], told["code"], told["reconnect"]) == ("close", 1009, False)
        assert told["reason"] == "A command must be at most 1000 bytes"
        assert frames[2] == (CLOSE, (1009).to_bytes(2) + told["reason"].encode())
        assert sessions(bridge).counters.refused["limit.size"] == 1
        # The rest of the frame is dropped, and the closing handshake completes.
        writer.write(bytes(4 + min(length, 1_001)) + frame(CLOSE, (1009).to_bytes(2)))
        assert (await other.ask({"action": "ping"}))["message"] == "pong"
        assert len(sessions(bridge)) == 1
        if length < 2**63:
            assert await asyncio.wait_for(reader.read(), WAIT_SECONDS) == b""


async def test_half_a_message_holds_at_most_max_command_bytes(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, max_command_bytes=100_000) as bridge:
        async with raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer):
            await reader.readuntil(b'"nats":"connected"}')
            (session,) = sessions(bridge)
            transport: Any = session._transport
            buffer = transport._protocol.reader.buffer
            writer.write(frame(TEXT, bytes(60_000), fin=False) + frame(CONT, bytes(39_999), length=40_000))
            await until(lambda: len(buffer) == 39_999)
            assert len(transport._assembler._part) == 60_000
            assert transport._throttle._unfed is None
        await until(lambda: not len(sessions(bridge)))


HALVES: Final = {
    "half a header": frame(TEXT, bytes(200))[:3],
    "half a frame": frame(TEXT, bytes(200))[:-1],
    "a fragment": frame(TEXT, b" ", fin=False),
    "half a ping": frame(PING, b"abc")[:-1],
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
async def test_message_that_is_not_completed_in_time_closes_session(shared_nats: NatsServer, half: bytes) -> None:
    async with (
        running(servers=shared_nats.url, read_timeout=7, heartbeat=3_600) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer),
    ):
        await reader.readuntil(b'"nats":"connected"}')
        (session,) = sessions(bridge)
        transport: Any = session._transport
        async with held() as clock:
            writer.write(half)
            await clock.forward_until(lambda: transport._assembler._timer, step=0)
            await clock.forward(6.9)
            assert not session.closed
            reading = asyncio.create_task(reader.read())
            await clock.forward_until(reading.done, step=0.1)
        told, close = reading.result().split(b"\x88", 1)
        assert b'"code":1013,"reason":"A message must be complete within 7 seconds","reconnect":true' in told
        assert int.from_bytes(close[1:3]) == 1013
        assert session.closed


async def test_message_that_begins_before_session_is_limited_too(shared_nats: NatsServer) -> None:
    asked = asyncio.Event()

    async def permissions(_: Request) -> Permissions:
        asked.set()
        await asyncio.Event().wait()
        return Permissions()

    async with (
        running(servers=shared_nats.url, permissions=permissions, permissions_timeout=7_200, read_timeout=7) as bridge,
        held() as clock,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer),
    ):
        await reader.readuntil(b"\r\n\r\n")
        await asked.wait()
        writer.write(frame(TEXT, bytes(10))[:-1])
        reading = asyncio.create_task(reader.read())
        await clock.forward_until(reading.done, step=0.5)
        assert reading.result()[2:4] == (1013).to_bytes(2)


@pytest.mark.parametrize("sent", [frame(TEXT, b"abc")[:-1], frame(TEXT, b"abc")[:1], frame(TEXT, b"a", fin=False)])
async def test_half_a_message_before_handler_closes_connection(shared_nats: NatsServer, sent: bytes) -> None:
    has_sent = asyncio.Event()

    def prepare(app: Sanic[Any, Any]) -> None:
        @app.signal("websocket.handler.before")
        async def dawdle(**_: Any) -> None:
            await has_sent.wait()
            await turns(20)

    async with (
        running(servers=shared_nats.url, prepare=prepare) as bridge,
        raw_connection(bridge.port, REQUESTS["websocket"]) as (reader, writer),
    ):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        has_sent.set()
        opcode, payload = await asyncio.wait_for(read_frame(reader), WAIT_SECONDS)
        assert (opcode, int.from_bytes(payload[:2])) == (CLOSE, 1013)
        await until(lambda: not len(sessions(bridge)))


async def test_requests_behind_event_stream_are_dropped(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url) as bridge,
        raw_connection(bridge.port, REQUESTS["events"]) as (reader, writer),
    ):
        await reader.readuntil(b'"nats":"connected"}')
        (session,) = sessions(bridge)
        transport: Any = session._transport
        request = b"GET /nats/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        for _ in range(10):
            writer.write(request * 5_000)
            await asyncio.wait_for(writer.drain(), WAIT_SECONDS)
        await until(lambda: not transport._request.stream.keep_alive)
        assert len(transport._protocol.recv_buffer) <= 16_384
        bridge.runtime.sessions.close_all("test")
        received = []
        # The kernel resets a connection that is closed with unread requests.
        with contextlib.suppress(ConnectionResetError):
            while part := await asyncio.wait_for(reader.read(65_536), WAIT_SECONDS):
                received.append(part)
        assert b"HTTP/1.1" not in b"".join(received)


async def test_request_behind_event_stream_is_answered_after_it(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url) as bridge,
        raw_connection(bridge.port, REQUESTS["events"]) as (reader, writer),
    ):
        await reader.readuntil(b'"nats":"connected"}')
        (session,) = sessions(bridge)
        transport: Any = session._transport
        writer.write(b"GET /nats/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: transport._protocol.recv_buffer)
        bridge.runtime.sessions.close_all("test")
        assert b'{"live":true}' in await asyncio.wait_for(reader.readuntil(b'{"live":true}'), WAIT_SECONDS)


async def test_lost_client_leaves_no_buffered_slice_or_task(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, max_pending_bytes=LIMIT, **UNHURRIED) as bridge:
        tasks = asyncio.all_tasks()
        async with raw_connection(bridge.port, REQUESTS["websocket"], limit=1024) as (reader, writer):
            await reader.readuntil(b'"nats":"connected"}')
            (session,) = sessions(bridge)
            transport: Any = session._transport
            transport._assembler.pause()
            transport._throttle.data_received(frame(PONG) * 20_000)
            assert transport._throttle._unfed
            reset(writer.transport)
            # By writing alone it is noticed that a client has gone of which nothing is read.
            await until(lambda: transport.write(b"x") or session.closed)
        assert transport._throttle._unfed is None
        await until(lambda: not asyncio.all_tasks() - tasks)
