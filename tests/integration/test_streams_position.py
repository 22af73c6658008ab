"""`NatsBridge.position`: the moment after which a rendered page follows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StreamConfig

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, WebSocketClient, running, until
from tests.support.streams import jetstream_fixture

server = jetstream_fixture("function")


@asynccontextmanager
async def publisher_on(server: NatsServer, *names: str) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(server.url)
    stream = client.jetstream()
    for name in names:
        await stream.add_stream(StreamConfig(name=name, subjects=[f"{name.lower()}.>"], allow_direct=True))
    yield stream
    await client.close()


@asynccontextmanager
async def bridge_on(server: NatsServer, *names: str) -> AsyncIterator[Bridge]:
    async with running(servers=server.url, subscribe=[">"], streams=dict.fromkeys(names)) as bridge:
        streams = bridge.runtime.sessions.streams
        await until(lambda: streams is None or all(feed.is_known for feed in streams.feeds))
        yield bridge


async def replayed(client: WebSocketClient, position: str, *patterns: str) -> list[Any]:
    reply = await client.ask({"action": "subscribe", "subjects": patterns, "after": position})
    assert reply["recovered"] is True, reply
    data = []
    while (frame := await client.frame())["type"] != "caught_up":
        data.append(frame["data"])
    return data


@pytest.mark.parametrize("before", [0, 3])
async def test_page_gets_only_messages_published_after_the_call(server: NatsServer, before: int) -> None:
    async with publisher_on(server, "ORDERS") as stream, bridge_on(server, "ORDERS") as bridge:
        for _ in range(before):
            await stream.publish("orders.1", b'"before"')
        position = await bridge.extension.position("orders.>")
        await stream.publish("orders.1", b'"first"')
        await stream.publish("orders.2", b'"second"')
        async with bridge.websocket() as client:
            assert await replayed(client, position, "orders.>") == ["first", "second"]
            await stream.publish("orders.1", b'"live"')
            assert (await client.frame())["data"] == "live"


async def test_positions_in_a_busy_stream_lose_and_double_nothing(server: NatsServer) -> None:
    async with publisher_on(server, "ORDERS") as stream, bridge_on(server, "ORDERS") as bridge:
        acknowledged = 0

        async def publish() -> None:
            nonlocal acknowledged
            for number in range(1, 301):
                await stream.publish("orders.1", b"%d" % number)
                acknowledged = number

        publishing = asyncio.create_task(publish())
        seen: list[tuple[int, str, int]] = []
        while not publishing.done():
            at_least = acknowledged
            position = await bridge.extension.position("orders.>")
            # The message after the acknowledged one may be stored already.
            seen.append((at_least, position, acknowledged + 1))
            await asyncio.sleep(0)
        await publishing
        for at_least, position, at_most in seen[:: max(1, len(seen) // 10)]:
            async with bridge.websocket() as client:
                numbers = await replayed(client, position, "orders.>")
                first = numbers[0] if numbers else 301
                assert numbers == list(range(first, 301))
                assert at_least < first <= at_most + 1


async def test_position_of_several_patterns_holds_all_their_streams(server: NatsServer) -> None:
    names = ("ORDERS", "STOCK", "OTHER")
    async with publisher_on(server, *names) as stream, bridge_on(server, *names) as bridge:
        await stream.publish("orders.1", b'"old"')
        position = await bridge.extension.position("orders.1", "stock.>", "orders.2")
        assert position.count("~") == 1
        for subject in ("orders.1", "stock.1", "other.1"):
            await stream.publish(subject, b'"%s"' % subject.encode())
        async with bridge.websocket() as client:
            assert sorted(await replayed(client, position, "orders.>", "stock.>")) == ["orders.1", "stock.1"]


async def test_position_in_a_purged_stream_is_its_end(server: NatsServer) -> None:
    async with publisher_on(server, "ORDERS") as stream, bridge_on(server, "ORDERS") as bridge:
        await stream.publish("orders.1", b'"old"')
        await stream.purge_stream("ORDERS")
        position = await bridge.extension.position("orders.>")
        await stream.publish("orders.1", b'"purged"')
        async with bridge.websocket() as client:
            assert await replayed(client, position, "orders.>") == ["purged"]


async def test_position_in_a_stream_that_was_created_again_is_known_to_its_feed(server: NatsServer) -> None:
    async with (
        publisher_on(server, "ORDERS") as stream,
        bridge_on(server, "ORDERS") as bridge,
        bridge.websocket() as other,
        bridge.websocket() as client,
    ):
        await replayed(other, await bridge.extension.position("orders.>"), "orders.>")
        await stream.publish("orders.1", b'"old"')
        await other.frame()
        # The feed doesn't notice this for seconds.
        await stream.delete_stream("ORDERS")
        await stream.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], allow_direct=True))
        position = await bridge.extension.position("orders.>")
        await stream.publish("orders.1", b'"new"')
        await client.send({"action": "subscribe", "subjects": ["orders.*"], "after": position})
        frames = await client.frames(3)
        assert [frame["type"] for frame in frames] == ["reply", "message", "caught_up"]
        assert frames[1]["data"] == "new"
        assert frames[2]["recovered"] is True
        assert (await other.frame())["reason"] == "reset"


async def test_pattern_that_no_stream_holds_is_an_error(server: NatsServer) -> None:
    async with publisher_on(server, "ORDERS") as stream, bridge_on(server, "ORDERS", "QUEUE", "MISSING") as bridge:
        await stream.add_stream(name="QUEUE", subjects=["queue.>"], retention=RetentionPolicy.WORK_QUEUE)
        for patterns in (["other.>"], ["orders.>", "other.>"], [">"], ["queue.1"], ["missing.1"]):
            with pytest.raises(LookupError, match=f"no stream has the history of '{patterns[-1]}'"):
                await bridge.extension.position(*patterns)


async def test_invalid_patterns_are_an_error(server: NatsServer) -> None:
    async with bridge_on(server) as bridge:
        for pattern in ("orders..x", "", 5, "_NATSBRIDGE..>"):
            with pytest.raises(ValueError, match="patterns must be valid, got"):
                await bridge.extension.position(pattern)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="at least one pattern"):
            await bridge.extension.position()
        with pytest.raises(LookupError, match="'streams' is empty"):
            await bridge.extension.position("orders.>")


async def test_too_many_streams_are_an_error(server: NatsServer) -> None:
    names = [f"S{number}" for number in range(5)]
    async with publisher_on(server, *names), bridge_on(server, *names) as bridge:
        with pytest.raises(ValueError, match="at most 4 streams, got 5"):
            await bridge.extension.position(*(f"{name.lower()}.>" for name in names))


async def test_position_while_nats_is_disconnected_is_an_error(server: NatsServer) -> None:
    async with publisher_on(server, "ORDERS"), bridge_on(server, "ORDERS") as bridge:
        server.stop()
        await until(lambda: bridge.runtime.sessions._context.streams_nats == "disconnected")
        with pytest.raises(ConnectionError, match="NATS is disconnected"):
            await bridge.extension.position("orders.>")
