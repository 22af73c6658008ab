import asyncio
import contextlib
import os
import shutil
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from sanic import Request, Sanic

from sanic_nats_bridge import Session
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, Publisher, running, until
from tests.support.clock import held
from tests.support.process import app_process, ended
from tests.support.raw import UPGRADE, client_frame, raw_connection, session_id, session_of, sessions

HEARTBEAT: Final = 0.5
SERVER, CLIENT = "192.0.2.1", "192.0.2.2"  # RFC 5737: documentation only

HOLD_OPEN = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.sendall(sys.argv[3].encode())
while b'"welcome"' not in connection.recv(65536):
    pass
print("welcome", flush=True)
while connection.recv(65536):
    pass
"""


def transport_of(session: Session) -> Any:
    return session._transport._transport  # type: ignore[attr-defined]


@pytest.mark.parametrize("route", ["websocket", "events"])
async def test_tcp_user_timeout_is_set_to_write_timeout(bridge: Bridge, route: str) -> None:
    async with getattr(bridge, route)() as client:
        connection = transport_of(session_of(bridge, client.session)).get_extra_info("socket")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


def network(process: str) -> Path:
    return Path(f"/proc/{process}/ns/net").readlink()


def entering(process: Process) -> tuple[str, ...]:
    """Return the command that enters namespaces of that process, and its user namespace if we aren't root."""
    user = () if os.geteuid() == 0 else ("-U", "--preserve-credentials")
    return ("nsenter", "-t", str(process.pid), *user)


async def in_namespace(process: Process, *command: str) -> None:
    """Run a command in the network of that process."""
    entered = await asyncio.create_subprocess_exec(*entering(process), "-n", *command, stderr=PIPE)
    _, error = await entered.communicate()
    assert entered.returncode == 0, error.decode()


@contextlib.asynccontextmanager
async def own_network() -> AsyncIterator[Process]:
    """Start a process with a network of its own, which ends with it."""
    user = () if os.geteuid() == 0 else ("--map-root-user",)
    holder = await asyncio.create_subprocess_exec("unshare", *user, "--net", "sleep", "infinity")
    try:
        await until(lambda: network(str(holder.pid)) != network("self"))
        yield holder
    finally:
        await ended(holder)


async def test_half_open_clients_are_disconnected() -> None:
    assert shutil.which("ip"), "make test installs iproute2"
    async with (
        own_network() as client_net,
        app_process(
            {"heartbeat": HEARTBEAT, "write_timeout": 1}, wrapper=(*entering(client_net), "unshare", "--net")
        ) as app,
        contextlib.AsyncExitStack() as stack,
    ):
        pair = ("veth0", "type", "veth", "peer", "name", "veth1", "netns", str(client_net.pid))
        await in_namespace(app.process, "ip", "link", "add", *pair)
        for holder, link, address in ((app.process, "veth0", SERVER), (client_net, "veth1", CLIENT)):
            await in_namespace(holder, "ip", "address", "add", f"{address}/30", "dev", link)
            await in_namespace(holder, "ip", "link", "set", link, "up")
        for request in (f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}\r\n", "GET /nats/events HTTP/1.1\r\nHost: x\r\n\r\n"):
            command = (sys.executable, "-c", HOLD_OPEN, SERVER, str(app.ports[0]), request)
            client = await asyncio.create_subprocess_exec(*entering(client_net), "-n", *command, stdout=PIPE)
            stack.push_async_callback(ended, client)
            assert client.stdout is not None
            assert await client.stdout.readline() == b"welcome\n"
        await in_namespace(client_net, "ip", "link", "set", "veth1", "down")
        assert [await app.line() for _ in range(2)] == ["closed 1006"] * 2


async def test_replies_and_messages_keep_order_behind_full_buffer(
    shared_nats: NatsServer, publisher: Publisher
) -> None:
    big, late = publisher.subject("big"), publisher.subject("late")
    upgrade = f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}\r\n"
    async with (
        running(servers=shared_nats.url, subscribe=[">"], max_pending_bytes=2**24) as bridge,
        raw_connection(bridge.port, upgrade, limit=2**16) as (reader, writer),
    ):
        await reader.readuntil(b'"nats":"connected"}')
        (session,) = sessions(bridge)
        writer.write(client_frame(b'{"subjects":["%b"]}' % big.encode()))
        await until(lambda: session.subscriptions == (big,))
        while transport_of(session).get_write_buffer_size() < 500_000:
            await publisher.send(big, b"x" * 1_000_000)
        writer.write(client_frame(b'{"subjects":["%b"]}' % late.encode()))
        writer.write(client_frame(b"payload", opcode=9))
        await until(lambda: late in session.subscriptions)
        await publisher.send(late, b'"late"')
        received = b""
        while b'"data":"late"' not in received:
            received = received[-100_000:] + await reader.read(2**20)
        assert 0 < received.rindex(b'"active":true') < received.rindex(b'"data":"late"')
        assert received.rindex(b"xxx") < received.rindex(b'"active":true')


@pytest.mark.parametrize(
    "request_head",
    [f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}\r\n", "GET /nats/events HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    ids=["websocket", "events"],
)
async def test_client_that_stopped_reading_does_not_block_server_stop(
    shared_nats: NatsServer, publisher: Publisher, request_head: str
) -> None:
    subject = publisher.subject("big")
    async with contextlib.AsyncExitStack() as stack:
        async with running(servers=shared_nats.url, subscribe=[">"]) as bridge:
            reader, _ = await stack.enter_async_context(raw_connection(bridge.port, request_head, limit=2**16))
            welcome = await reader.readuntil(b'"nats":"connected"}')
            (session,) = sessions(bridge)
            status, _ = await bridge.post("/subscribe", {"session": session_id(welcome), "subjects": [subject]})
            assert status == 200
            while transport_of(session).get_write_buffer_size() < 500_000:
                await publisher.send(subject, b"x" * 1_000_000)
        assert not len(sessions(bridge))


async def test_write_to_half_closed_transport_is_skipped(bridge: Bridge) -> None:
    # Sanic writes the end of file some turns of the loop before it closes the transport.
    async with bridge.websocket() as client:
        session = session_of(bridge, client.session)
        transport = transport_of(session)
        transport.write_eof()
        assert not transport.is_closing()
        session.write(b"\x81\x00")


async def test_pending_message_precedes_close_of_failing_connection(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with raw_connection(bridge.port, f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}\r\n") as (reader, writer):
        await reader.readuntil(b'"nats":"connected"}')
        writer.write(client_frame(b'{"subjects":["%b"]}' % subject.encode()))
        await reader.readuntil(b'"active":true}')
        hub = bridge.runtime.sessions.hub
        (interest,) = hub._interests.values()
        (session,) = sessions(bridge)
        hub.on_message(interest, subject.encode(), b"", b"1")
        websocket: Any = session._transport
        websocket._websocket.fail_connection(1002, "test")
        received = await reader.read()
    message, close = received.index(b'"data":1}'), received.index(b'"type":"close","code":1002')
    assert message < close < received.index(b"\x88")


async def test_rejected_client_gets_one_close_frame_despite_invalid_data(nats_server: NatsServer) -> None:
    async with (
        running(servers=nats_server.url, max_sessions=1) as bridge,
        bridge.websocket(),
        raw_connection(bridge.port, f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}\r\n") as (reader, writer),
    ):
        received = await reader.readuntil(b"\x88")
        writer.write(b"\xff" * 64)
        received += await reader.read()
    assert received.count(b'"type":"close"') == 1


async def test_response_after_finished_stream_is_not_truncated(nats_server: NatsServer) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        @app.get("/slow")
        async def slow(request: Request) -> None:
            response = await request.respond()
            for _ in range(6):
                await response.send("x" * 1000)
                await clock.forward(1)

    async with (
        running(servers=nats_server.url, max_sessions=1, prepare=prepare) as bridge,
        bridge.websocket(),
        raw_connection(bridge.port, "GET /nats/events HTTP/1.1\r\nHost: x\r\n\r\n") as (reader, writer),
        held() as clock,
    ):
        assert b"1013" in await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        received = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert received.count(b"x" * 1000) == 6
