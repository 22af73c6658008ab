"""Event streams through Express with its package for compression, which gathers what it compresses."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, Publisher, running
from tests.support.node_program import NODE, running_node


@pytest.fixture
async def bridge(shared_nats: NatsServer) -> AsyncIterator[Bridge]:
    """Serve a bridge, and yield it as clients see it through the proxy."""
    async with running(servers=shared_nats.url, subscribe=[">"], metrics=True) as served:
        target = f"http://127.0.0.1:{served.port}"
        async with running_node(NODE / "compressing_proxy.js", target) as proxy:
            yield replace(served, port=await proxy.line())


async def test_compressing_proxy_delivers_each_event_immediately(bridge: Bridge, publisher: Publisher) -> None:
    async with bridge.http.get(f"{bridge.url}/metrics") as response:
        assert "Content-Encoding" in response.headers, "the proxy compresses what it may"
    subject = publisher.subject("a")
    async with bridge.events(subject) as client:
        assert "Content-Encoding" not in client.response.headers
        for number in range(20):
            await publisher.send(subject, b"%d" % number)
            assert await client.data(1) == [number]
    async with bridge.http.head(f"{bridge.url}/events") as response:
        assert response.headers["Cache-Control"] == "no-store, no-transform"
