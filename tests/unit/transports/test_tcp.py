import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Iterator

import pytest
import uvloop

from sanic_nats_bridge.transports.tcp import has_unacknowledged_data, set_user_timeout
from tests.support.bridge import until


class Transport(asyncio.Transport):
    """A transport that exposes a socket, like those of the event loop."""

    def __init__(self, connection: socket.socket | None) -> None:
        super().__init__({"socket": connection})


class Closed(asyncio.Protocol):
    """A protocol with a future for the end of its connection."""

    def __init__(self) -> None:
        self.closed = asyncio.get_running_loop().create_future()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(None)


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            yield server, client


def test_user_timeout_is_set_on_socket() -> None:
    with connected() as (server, _):
        set_user_timeout(Transport(server), 7.5)
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7_500


def test_unsupported_user_timeout_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        set_user_timeout(Transport(one), 1)
    set_user_timeout(Transport(None), 1)
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    with socket.socket() as connection:
        set_user_timeout(Transport(connection), 1)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_closed_connection_raises_no_error(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def close() -> None:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(Closed, sock=server)
        transport.abort()
        for _ in ("being closed", "closed"):
            set_user_timeout(transport, 1)
            assert not has_unacknowledged_data(transport)
            await protocol.closed

    with connected() as (server, _), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(close())


async def test_unacknowledged_data_is_detected_until_client_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected() as (server, client):
        server.setblocking(False)
        assert not has_unacknowledged_data(Transport(server))
        with contextlib.suppress(BlockingIOError):
            while True:
                server.send(bytes(2**16))
        assert has_unacknowledged_data(Transport(server))
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(sys, "platform", "darwin")
            assert not has_unacknowledged_data(Transport(server))
        client.setblocking(False)

        def taken() -> bool:
            with contextlib.suppress(BlockingIOError):
                while client.recv(2**20):
                    pass
            return not has_unacknowledged_data(Transport(server))

        await until(taken)
    assert not has_unacknowledged_data(Transport(server))
