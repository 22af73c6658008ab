import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from sanic.models.asgi import MockTransport

from sanic_nats_bridge.testing import NatsServer
from sanic_nats_bridge.transports.asgi import QueuedEventStreamOutlet, QueuedWebSocketOutlet
from sanic_nats_bridge.transports.auto import is_misdirected
from sanic_nats_bridge.transports.base import Outlet
from sanic_nats_bridge.transports.sanic import EventStreamOutlet, WebSocketOutlet
from tests.support.bridge import ServerName, running, until
from tests.support.raw import session_of, sessions


@pytest.mark.parametrize(
    ("server", "outlets"),
    [
        ("sanic", [WebSocketOutlet, EventStreamOutlet]),
        ("uvicorn", [QueuedWebSocketOutlet, QueuedEventStreamOutlet]),
        ("hypercorn", [QueuedWebSocketOutlet, QueuedEventStreamOutlet]),
    ],
)
async def test_the_server_decides_which_way_leads_back(
    shared_nats: NatsServer, server: ServerName, outlets: list[type[Outlet]]
) -> None:
    async with running(server=server, servers=shared_nats.url) as bridge:
        async with bridge.websocket() as websocket, bridge.events() as events:
            ways = [type(session_of(bridge, client.session)._outlet) for client in (websocket, events)]
        assert ways == outlets
        await until(lambda: not len(sessions(bridge)))


def request(version: str, transport: Any) -> Any:
    return SimpleNamespace(version=version, transport=transport)


def test_http_3_is_served_where_an_asgi_server_brings_it() -> None:
    asgi = MockTransport({}, contextlib.nullcontext, contextlib.nullcontext)  # type: ignore[arg-type]
    assert is_misdirected(request("3", object()))
    assert not is_misdirected(request("3", asgi))
    assert not is_misdirected(request("1.1", object()))
