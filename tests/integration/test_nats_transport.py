import asyncio
import ssl
from typing import Any
from urllib.parse import urlparse

import pytest

from sanic_nats_bridge.nats.addresses import Addresses
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
async def test_url_scheme_selects_transport(url: str, kind: type[TcpSocket | WebSocket]) -> None:
    transport: Any = transport_for(url, Addresses())
    assert type(transport) is kind
    await transport.wait_closed()


async def connected(peer: Peer) -> TcpSocket:
    transport = TcpSocket(Addresses())
    await transport.connect(urlparse(peer.url), 0, WAIT_SECONDS)
    return transport


async def test_abort_releases_socket_when_peer_does_not_read() -> None:
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


async def test_tls_only_socket_rejects_plaintext_writes() -> None:
    async with Peer().listening() as peer:
        transport: Any = TcpSocket(Addresses(), tls_only=True)
        await transport.connect(urlparse(peer.url), 0, WAIT_SECONDS)
        with pytest.raises(ConnectionError, match="TLS"):
            transport.write(b"x\n")
        with pytest.raises(ConnectionError, match="TLS"):
            transport.writelines([b"x\n"])
        transport.close()
        await transport.wait_closed()
        await until(lambda: peer.accepted)
        assert peer.lines == []


async def test_written_data_arrives_before_socket_closes() -> None:
    async with Peer().listening() as peer:
        transport = await connected(peer)
        # A socket that is closed on what it has not read is reset, and takes with it what is under way.
        assert await transport.read(0)
        transport.write((b"x" * 999 + b"\n") * 1_000)
        transport.writelines([b"y", b"\n"])
        assert transport.unsent_bytes == 1_000_002
        transport.close()
        await transport.wait_closed()
        await until(lambda: sum(map(len, peer.lines)) == 1_000_002)


async def test_close_does_not_wait_for_failed_tls_handshake() -> None:
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
async def test_websocket_sends_immediately_and_closes_when_server_hangs() -> None:
    port = free_port()
    with NatsServer(config=f'websocket {{listen: "127.0.0.1:{port}", no_tls: true}}') as server:
        before = sockets()
        transport: Any = WebSocket()
        await transport.connect(urlparse(f"ws://127.0.0.1:{port}"), 0, 60)
        transport.write(b"CONNECT {}\r\nPING\r\n")
        assert transport.unsent_bytes == len(b"CONNECT {}\r\nPING\r\n")
        # No caller has used drain.
        await until(transport._pending.empty)
        await until(lambda: transport.unsent_bytes == 0)
        assert (await transport.readline()).startswith(b"INFO ")
        while b"PONG" not in await transport.readline():
            pass
        server.pause()
        transport.abort()
        transport.close()
        await transport.wait_closed()
        await until(lambda: sockets() == before)
        server.resume()
