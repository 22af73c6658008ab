"""Streams that can't serve clients: one line in the log for each state, and the rest of the bridge works."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StreamConfig

from sanic_nats_bridge.streams import feed as feed_module
from sanic_nats_bridge.streams.feed import Feed
from sanic_nats_bridge.streams.jetstream import PermissionMissing
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, WebSocketClient, running, until
from tests.support.restricted import ALLOWED, administrator, restricted
from tests.support.streams import read_to


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with NatsServer(jetstream=True, config=restricted()) as server:
        yield server


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sanic.root.nats_bridge")


@asynccontextmanager
async def bridge_on(server: NatsServer, **settings: Any) -> AsyncIterator[Bridge]:
    options = {"streams": {"ORDERS": None}, "subscribe": ["orders.>"], "history": ["orders.>"]} | settings
    async with running(servers=server.url, user="bridge", password="bridge", **options) as bridge:
        yield bridge


@asynccontextmanager
async def orders_on(server: NatsServer, config: str = "") -> AsyncIterator[JetStreamContext]:
    """Make the stream, after a restart with another configuration if there is one."""
    if config:
        server.config = config
        server.restart()
    async with administrator(server) as stream:
        await stream.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], allow_direct=True))
        yield stream


def feed_of(bridge: Bridge) -> Feed:
    streams = bridge.runtime.sessions.streams
    assert streams is not None
    return streams.feeds[0]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines about streams."""
    return [line for line in caplog.messages if "stream '" in line.lower()]


async def subscribe(client: WebSocketClient, start: object) -> dict[str, Any]:
    """Subscribe, and return the reply. A status may come before, if one of the connections is a new one."""
    await client.send({"action": "subscribe", "subjects": ["orders.>"], "from": start})
    return (await read_to(client, "reply"))[-1]


async def has_no_history(bridge: Bridge, stream: JetStreamContext) -> None:
    """Check that the stream's history is refused, and that live messages arrive all the same."""
    async with bridge.websocket() as client:
        refused = await subscribe(client, "all")
        assert (refused["success"], refused["code"]) == (False, "history.unavailable")
        reply = await subscribe(client, "new")
        assert reply["success"], reply
        assert not reply.get("resumable"), reply
        await stream._nc.publish("orders.1", b'"live"')
        assert (await client.frame())["data"] == "live"


async def has_history(bridge: Bridge) -> None:
    async with bridge.websocket() as client:
        reply = await subscribe(client, "all")
        assert reply["success"], reply
        assert reply["resumable"] is True


async def is_refused(feed: Feed) -> bool:
    """Ask for a message, which needs a permission."""
    try:
        await feed.jetstream.next_message("ORDERS", 1, ">")
    except PermissionMissing:
        return True
    return False


async def test_missing_stream_is_logged_once_and_again_when_it_exists(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with administrator(server) as stream, bridge_on(server) as bridge:
        feed = feed_of(bridge)
        await until(lambda: feed.is_unavailable)
        await has_no_history(bridge, stream)
        requests = feed.jetstream.requests
        await until(lambda: feed.jetstream.requests > requests + 2)
        missing = "Clients get no history from stream 'ORDERS': it does not exist in JetStream. "
        assert lines(caplog) == [f"{missing}Create it, or remove it from the setting 'streams'"]
        await stream.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], allow_direct=True))
        await until(lambda: not feed.is_unavailable)
        assert lines(caplog)[1:] == ["Stream 'ORDERS' can be read again"]
        await has_history(bridge)


@pytest.mark.parametrize("retention", [RetentionPolicy.INTEREST, RetentionPolicy.WORK_QUEUE])
async def test_stream_that_removes_read_messages_gets_no_consumer(
    server: NatsServer, caplog: pytest.LogCaptureFixture, retention: RetentionPolicy
) -> None:
    async with administrator(server) as stream:
        await stream.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], retention=retention))
        async with bridge_on(server) as bridge:
            feed = feed_of(bridge)
            await until(lambda: feed.is_unavailable)
            await has_no_history(bridge, stream)
            requests = feed.jetstream.requests
            await until(lambda: feed.jetstream.requests > requests + 2)
            (line,) = lines(caplog)
            assert f"its retention is '{retention.value}'" in line
            assert not (await stream.stream_info("ORDERS")).state.consumer_count


@pytest.mark.parametrize("missing", [permission for permission in ALLOWED if "DELETE" not in permission])
async def test_missing_permission_is_named_once(
    server: NatsServer, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    async with orders_on(server, restricted(missing)) as stream, bridge_on(server) as bridge:
        feed = feed_of(bridge)
        await until(lambda: feed.is_unavailable)
        await has_no_history(bridge, stream)
        reason = f"the NATS user may not publish to {missing}. Allow these subjects in NATS"
        assert lines(caplog) == [f"Clients get no history from stream 'ORDERS': {reason}"]
        # The line of NATS itself would add nothing.
        assert not [line for line in caplog.messages if "reported an error" in line]
        server.config = restricted()
        server.restart()
        await until(lambda: not feed.is_unavailable)
        assert lines(caplog)[1:] == ["Stream 'ORDERS' can be read again"]
        await has_history(bridge)


async def test_all_missing_permissions_are_in_one_line(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    server.config = restricted(*ALLOWED)
    server.restart()
    async with bridge_on(server) as bridge:
        await until(lambda: feed_of(bridge).is_unavailable)
        (line,) = lines(caplog)
        names = line.partition("publish to ")[2].partition(". Allow")[0]
        assert set(names.split(", ")) == set(ALLOWED)


MESSAGES = "_NATSBRIDGE.*.streams.*.feed.>"


@pytest.mark.parametrize("refused", ["_NATSBRIDGE.*.streams.>", MESSAGES, "_NATSBRIDGE.*.streams.*.reply.>"])
async def test_missing_permission_to_subscribe_is_named_once(
    server: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    monkeypatch.setattr(feed_module, "INFO_SECONDS", 0.2)
    async with orders_on(server, restricted(denied=[refused])) as stream, bridge_on(server) as bridge:
        feed = feed_of(bridge)
        await until(lambda: feed.is_unavailable)
        await has_no_history(bridge, stream)
        tries = 0
        begin = feed._check._probe.begin

        def count() -> None:
            nonlocal tries
            tries += 1
            begin()

        monkeypatch.setattr(feed._check._probe, "begin", count)
        await until(lambda: tries > 2)
        (line,) = lines(caplog)
        allow = f"_NATSBRIDGE.{bridge.app.name}.streams.>"
        problem = f"the NATS user may not subscribe to {allow}. Allow this subject in NATS"
        assert line == f"Clients get no history from stream 'ORDERS': {problem}"
        # No consumer was made in vain.
        assert (await stream.stream_info("ORDERS")).state.consumer_count == 0
        server.config = restricted()
        server.reload()
        await until(lambda: not feed.is_unavailable)
        assert lines(caplog)[1:] == ["Stream 'ORDERS' can be read again"]
        await has_history(bridge)


async def test_permission_to_subscribe_taken_from_a_followed_stream_is_logged(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with orders_on(server), bridge_on(server) as bridge, bridge.websocket() as client:
        await subscribe(client, "new")
        feed = feed_of(bridge)
        await until(lambda: feed.is_standing)
        server.config = restricted(denied=[MESSAGES])
        server.reload()
        await until(lambda: lines(caplog))
        assert "may not subscribe to _NATSBRIDGE." in lines(caplog)[0]
        await until(lambda: not feed.is_standing)


@pytest.mark.parametrize("missing", [(), ("$JS.API.STREAM.MSG.GET.ORDERS",)], ids=str)
async def test_domain_of_the_server_itself(
    server: NatsServer, caplog: pytest.LogCaptureFixture, missing: tuple[str, ...]
) -> None:
    server.config = restricted(*missing, domain="hub")
    server.restart()
    async with administrator(server) as stream:
        await stream.add_stream(name="ORDERS", subjects=["orders.>"], storage="memory", allow_direct=True)
        async with bridge_on(server, jetstream_domain="hub") as bridge:
            if not missing:
                await has_history(bridge)
                return
            await until(lambda: feed_of(bridge).is_unavailable)
            # NATS judges the subject without its own domain, also for requests with it.
            problem = f"the NATS user may not publish to {missing[0]}. Allow these subjects in NATS"
            assert lines(caplog) == [f"Clients get no history from stream 'ORDERS': {problem}"]


async def test_stream_is_served_without_the_permission_to_delete_consumers(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with orders_on(server, restricted("$JS.API.CONSUMER.DELETE.ORDERS.*")), bridge_on(server) as bridge:
        await has_history(bridge)
        (line,) = lines(caplog)
        denied = "the NATS user may not publish to $JS.API.CONSUMER.DELETE.ORDERS.*"
        assert line == f"Stream 'ORDERS' is served, but {denied}. Allow it, or consumers remain in NATS for 30 s"


async def test_stream_without_direct_get_is_served_with_advice(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.config = restricted("$JS.API.DIRECT.GET.ORDERS")
    server.restart()
    async with administrator(server) as stream:
        await stream.add_stream(name="ORDERS", subjects=["orders.>"])
        await stream.publish("orders.1", b"1")
        async with bridge_on(server) as bridge:
            async with bridge.websocket() as client:
                reply = await subscribe(client, "all")
                assert reply["resumable"] is True
                assert [(await client.frame())["type"] for _ in range(2)] == ["message", "caught_up"]
            server.restart()
            await until(lambda: feed_of(bridge).link.client is None)
            await until(lambda: feed_of(bridge).is_standing)
            (line,) = lines(caplog)
            assert line.startswith("Stream 'ORDERS' is served, but it has no allow_direct")


async def test_permission_taken_from_a_followed_stream_is_logged(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with orders_on(server), bridge_on(server) as bridge, bridge.websocket() as client:
        await subscribe(client, "new")
        await client.frame()
        feed = feed_of(bridge)
        await until(lambda: feed.is_standing)
        server.config = restricted("$JS.API.STREAM.MSG.GET.ORDERS")
        server.reload()
        # The first request to be refused shows that the permission is missing.
        while not await is_refused(feed):
            pass
        await until(lambda: lines(caplog))
        assert "$JS.API.STREAM.MSG.GET.ORDERS" in lines(caplog)[0]
        assert not feed.is_standing
