import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from sanic.models.asgi import MockTransport

from sanic_nats_bridge.testing import NatsServer
from sanic_nats_bridge.transports.asgi import AsgiSseTransport, AsgiWebSocketTransport
from sanic_nats_bridge.transports.auto import is_misdirected
from sanic_nats_bridge.transports.base import Transport
from sanic_nats_bridge.transports.sanic import SanicSseTransport, SanicWebSocketTransport
from tests.support.bridge import ServerName, running, until
from tests.support.raw import session_of, sessions


@pytest.mark.parametrize(
    ("server", "transports"),
    [
        ("sanic", [SanicWebSocketTransport, SanicSseTransport]),
        ("uvicorn", [AsgiWebSocketTransport, AsgiSseTransport]),
        ("hypercorn", [AsgiWebSocketTransport, AsgiSseTransport]),
    ],
)
async def test_server_determines_transport_class(
    shared_nats: NatsServer, server: ServerName, transports: list[type[Transport]]
) -> None:
    async with running(server=server, servers=shared_nats.url) as bridge:
        async with bridge.websocket() as websocket, bridge.events() as events:
            ways = [type(session_of(bridge, client.session)._transport) for client in (websocket, events)]
        assert ways == transports
        await until(lambda: not len(sessions(bridge)))


def request(version: str, transport: Any) -> Any:
    return SimpleNamespace(version=version, transport=transport)


def test_http_3_is_served_only_through_asgi_server() -> None:
    asgi = MockTransport({}, contextlib.nullcontext, contextlib.nullcontext)  # type: ignore[arg-type]
    assert is_misdirected(request("3", object()))
    assert not is_misdirected(request("3", asgi))
    assert not is_misdirected(request("1.1", object()))
