"""The status that clients get of the two connections of a worker: only of those that their subscriptions use."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, WebSocketClient, running, until
from tests.support.nats import NamedConnections
from tests.support.streams import jetstream_fixture

CORE, STREAMS = "sanic-nats-bridge", "sanic-nats-bridge-streams"


server = jetstream_fixture("function")


@asynccontextmanager
async def publisher_on(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(server.url)
    stream = client.jetstream()
    await stream.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], allow_direct=True))
    yield stream
    await client.close()


@asynccontextmanager
async def bridge_on(url: str, **settings: Any) -> AsyncIterator[Bridge]:
    async with running(servers=url, subscribe=[">"], streams={"ORDERS": None}, **settings) as bridge:
        await until(lambda: bridge.runtime.sessions._context.streams_nats == "connected")
        yield bridge


async def follow(client: WebSocketClient, *, core: bool = False, stream: bool = False) -> None:
    if core:
        await client.follow("other.>")
    if stream:
        reply = await client.ask({"action": "subscribe", "subjects": ["orders.>"], "from": "new"})
        assert reply["resumable"] is True
        assert (await client.frame())["type"] == "caught_up"


async def received(client: WebSocketClient) -> list[Any]:
    """Return the frames before the answer to a ping: the states of NATS, and the types of the others."""
    await client.send({"action": "ping", "id": "end"})
    frames = []
    while (frame := await client.frame()).get("id") != "end":
        frames.append(frame["nats"] if frame["type"] == "status" else frame["type"])
    return frames


def states(bridge: Bridge) -> tuple[str, str]:
    context = bridge.runtime.sessions._context
    return context.nats, context.streams_nats


async def changed(bridge: Bridge, *, core: str = "connected", streams: str = "connected") -> None:
    await until(lambda: states(bridge) == (core, streams))


@pytest.mark.parametrize("name", [CORE, STREAMS])
async def test_only_users_of_a_lost_connection_are_notified(server: NatsServer, name: str) -> None:
    lost = {"core" if name == CORE else "streams": "disconnected"}
    async with (
        publisher_on(server),
        NamedConnections.before(server) as proxy,
        bridge_on(proxy.url) as bridge,
        bridge.websocket() as none,
        bridge.websocket() as core,
        bridge.websocket() as stream,
        bridge.websocket() as both,
    ):
        await follow(core, core=True)
        await follow(stream, stream=True)
        await follow(both, core=True, stream=True)
        proxy.cut(name)
        await changed(bridge, **lost)
        affected = [none, core, both] if name == CORE else [stream, both]
        for client in (none, core, stream, both):
            assert await received(client) == (["disconnected"] if client in affected else [])
        proxy.restore(name)
        await changed(bridge)
        for client in (none, core, stream, both):
            # Only messages without history are lost with a connection.
            gap = ["gap"] if name == CORE and client in (core, both) else []
            assert await received(client) == ([*gap, "connected"] if client in affected else [])


@pytest.mark.parametrize("first", [CORE, STREAMS])
@pytest.mark.parametrize("first_back", [CORE, STREAMS])
async def test_client_gets_one_status_for_two_lost_connections(server: NatsServer, first: str, first_back: str) -> None:
    other = {CORE: STREAMS, STREAMS: CORE}
    async with (
        publisher_on(server),
        NamedConnections.before(server) as proxy,
        bridge_on(proxy.url) as bridge,
        bridge.websocket() as client,
    ):
        await follow(client, core=True, stream=True)
        proxy.cut(first)
        await until(lambda: "disconnected" in states(bridge))
        proxy.cut(other[first])
        await changed(bridge, core="disconnected", streams="disconnected")
        assert await received(client) == ["disconnected"]
        proxy.restore(first_back)
        await until(lambda: "connected" in states(bridge))
        assert [frame for frame in await received(client) if frame != "gap"] == []
        proxy.restore(other[first_back])
        await changed(bridge)
        assert [frame for frame in await received(client) if frame != "gap"] == ["connected"]


async def test_restart_of_nats_causes_one_status_each_and_with_history_no_gap(server: NatsServer) -> None:
    async with publisher_on(server) as stream, bridge_on(server.url) as bridge, bridge.websocket() as client:
        await follow(client, core=True, stream=True)
        for _ in range(3):
            server.kill()
            await changed(bridge, core="disconnected", streams="disconnected")
            server.start()
            await changed(bridge)
            frames = await received(client)
            assert [frame for frame in frames if frame != "gap"] == ["disconnected", "connected"]
        await until(lambda: stream._nc.is_connected)
        await stream.publish("orders.1", b'"after"')
        message = await client.frame()
        assert (message["type"], message["data"]) == ("message", "after")


async def test_status_follows_the_subscriptions(server: NatsServer) -> None:
    async with (
        publisher_on(server),
        NamedConnections.before(server) as proxy,
        bridge_on(proxy.url, confirm_timeout=0.05) as bridge,
        bridge.websocket() as client,
    ):
        proxy.cut(STREAMS)
        await changed(bridge, streams="disconnected")
        assert await received(client) == []
        reply = await client.ask({"action": "subscribe", "subjects": ["orders.>"], "from": "new"})
        assert (reply["success"], reply["active"]) == (True, False)
        assert await received(client) == ["disconnected"]
        assert (await client.ask({"action": "unsubscribe", "subjects": ["orders.>"]}))["success"]
        assert await received(client) == ["connected"]
        await client.ask({"action": "subscribe", "subjects": ["orders.>"], "from": "new"})
        assert await received(client) == ["disconnected"]
        proxy.restore(STREAMS)
        await changed(bridge)
        frames = [await client.frame() for _ in range(2)]
        assert sorted(frame["type"] for frame in frames) == ["caught_up", "status"]
        assert await received(client) == []


async def test_many_sessions_are_notified_in_several_turns(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanic_nats_bridge.sessions.registry._NOTIFIED_PER_TURN", 1)
    async with (
        publisher_on(server),
        NamedConnections.before(server) as proxy,
        bridge_on(proxy.url) as bridge,
        bridge.websocket() as first,
        bridge.websocket() as second,
        bridge.websocket() as third,
    ):
        clients = (first, second, third)
        for client in clients:
            await follow(client, core=True, stream=True)
        both = bridge.runtime.sessions
        # The second change begins before all clients were notified of the first.
        both.hub._on_disconnected()
        assert both.streams is not None
        both.streams.connected = False
        both._streams_changed()
        for client in clients:
            assert await received(client) == ["disconnected"]
        both.streams.connected = True
        both._streams_changed()
        both._nats_connected()
        for client in clients:
            assert await received(client) == ["connected"]


async def test_connections_have_their_own_names_in_nats(server: NatsServer) -> None:
    async with bridge_on(server.url, name="shop"):
        url = f"http://127.0.0.1:{server._started_ports()[1]}/connz"
        body = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())
        assert {each["name"] for each in json.loads(body)["connections"]} == {"shop", "shop-streams"}
