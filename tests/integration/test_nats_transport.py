import asyncio
import ssl
from typing import Any
from urllib.parse import urlparse

import pytest
from nats.aio.transport import TcpTransport, WebSocketTransport

from sanic_nats_bridge.nats.transport import TcpSocket, WebSocket, transport_for
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, free_port, until
from tests.support.nats import Peer, sockets


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("nats://h:1", TcpSocket),
        ("tls://h", TcpSocket),
        ("h:1", TcpSocket),
        ("ws://h", WebSocket),
        ("wss://h", WebSocket),
    ],
)
async def test_each_scheme_has_its_transport(url: str, kind: type[TcpSocket | WebSocket]) -> None:
    transport: Any = transport_for(url)
    assert type(transport) is kind
    await transport.wait_closed()


async def test_the_private_names_of_nats_pys_transports_are_as_they_are_taken() -> None:
    assert vars(TcpTransport())["_bare_io_writer"] is None  # type: ignore[no-untyped-call]
    web: Any = WebSocketTransport()
    await web._client.close()


async def connected(peer: Peer) -> TcpSocket:
    transport = TcpSocket()
    await transport.connect(urlparse(peer.url), 0, WAIT_SECONDS)
    return transport


async def test_a_socket_is_let_go_of_although_the_peer_takes_nothing() -> None:
    silent = Peer(greeting=b"", answers=False, reads=False)
    async with silent.listening():
        before = sockets()
        transport = await connected(silent)
        await until(lambda: silent.accepted)
        transport.write(b"x" * 32_000_000)
        transport.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(transport.wait_closed(), 0.05)
        transport.abort()
        # The one that is left is the peer's.
        await until(lambda: sockets() == before + 1)


async def test_nothing_is_written_in_the_clear_where_tls_is_a_must() -> None:
    async with Peer().listening() as peer:
        transport: Any = TcpSocket(tls_only=True)
        await transport.connect(urlparse(peer.url), 0, WAIT_SECONDS)
        with pytest.raises(ConnectionError, match="TLS"):
            transport.write(b"x\n")
        with pytest.raises(ConnectionError, match="TLS"):
            transport.writelines([b"x\n"])
        transport.close()
        await transport.wait_closed()
        await until(lambda: peer.accepted)
        assert peer.lines == []


async def test_what_is_written_arrives_before_a_socket_is_closed() -> None:
    async with Peer().listening() as peer:
        transport = await connected(peer)
        # A socket that is closed on what it has not read is reset, and takes with it what is under way.
        assert await transport.read(0)
        transport.write((b"x" * 999 + b"\n") * 1_000)
        transport.writelines([b"y", b"\n"])
        transport.close()
        await transport.wait_closed()
        await until(lambda: sum(map(len, peer.lines)) == 1_000_002)


async def test_a_tls_handshake_that_failed_is_not_waited_for() -> None:
    silent = Peer(greeting=b"", answers=False)
    async with silent.listening():
        before = sockets()
        transport = await connected(silent)
        with pytest.raises(TimeoutError):
            await transport.connect_tls("localhost", ssl.create_default_context(), 0, 0.05)  # type: ignore[arg-type]
        transport.abort()
        transport.close()
        await transport.wait_closed()
        await until(lambda: silent.accepted)
        silent.say(b"", then_close=True)
        await until(lambda: sockets() == before)


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type:DeprecationWarning")  # nats-py's call of aiohttp
async def test_a_websocket_sends_at_once_and_is_let_go_of_although_the_server_hangs() -> None:
    port = free_port()
    with NatsServer(config=f'websocket {{listen: "127.0.0.1:{port}", no_tls: true}}') as server:
        before = sockets()
        transport: Any = WebSocket()
        await transport.connect(urlparse(f"ws://127.0.0.1:{port}"), 0, 60)
        transport.write(b"CONNECT {}\r\nPING\r\n")
        # No caller has used drain.
        await until(transport._pending.empty)
        assert (await transport.readline()).startswith(b"INFO ")
        while b"PONG" not in await transport.readline():
            pass
        server.pause()
        transport.abort()
        transport.close()
        await transport.wait_closed()
        await until(lambda: sockets() == before)
        server.resume()
