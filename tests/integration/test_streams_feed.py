"""The feed of a stream, with a real nats-server: what happens to the stream, the consumer and the connection."""

from typing import Any

import pytest

from sanic_nats_bridge.streams import feed as feed_module
from sanic_nats_bridge.streams.feed import Feed
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, WebSocketClient, running, until
from tests.support.streams import Stream, jetstream_fixture, read_to

server = jetstream_fixture("function")


def settings(stream: Stream, **options: Any) -> dict[str, Any]:
    return {"subscribe": [">"], "history": [">"], "streams": {stream.name: None}} | options


def feed_of(bridge: Bridge) -> Feed:
    streams = bridge.runtime.sessions.streams
    assert streams is not None
    return streams.feeds[0]


async def follow(client: WebSocketClient, stream: Stream) -> None:
    await client.send({"subjects": [stream.all], "from": "new"})
    reply, *_ = await read_to(client, "caught_up")
    assert reply["resumable"], reply


async def test_followers_of_one_stream_share_one_consumer(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        assert await stream.consumers() == []
        async with bridge.websocket() as one, bridge.websocket() as other:
            await follow(one, stream)
            await other.send({"subjects": [stream.subject("a"), stream.subject("b.*")], "from": "new"})
            await read_to(other, "caught_up")
            await until(lambda: feed_of(bridge).is_standing)
            assert len(await stream.consumers()) == 1
            await stream.store("a", 1)
            assert await one.data(1) == await other.data(1) == [1]


async def test_stop_deletes_the_consumer(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        async with running(servers=server.url, **settings(stream)) as bridge, bridge.websocket() as client:
            await follow(client, stream)
        assert await stream.consumers() == []


async def test_deleted_consumer_is_replaced_and_nothing_is_lost(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A consumer that is gone is silent, and only the silence shows it.
    monkeypatch.setattr(feed_module, "_SILENT_SECONDS", 0.5)
    monkeypatch.setattr(feed_module, "HEARTBEAT_SECONDS", 0.2)
    async with (
        Stream.made(server) as stream,
        running(servers=server.url, **settings(stream)) as bridge,
        bridge.websocket() as client,
    ):
        await follow(client, stream)
        await until(lambda: feed_of(bridge).is_standing)
        for number in range(3):
            for name in await stream.consumers():
                await stream.jetstream.delete_consumer(stream.name, name)
            await stream.store("a", number)
            assert await client.data(1) == [number]


async def test_server_that_is_killed_causes_no_gap(server: NatsServer) -> None:
    async with (
        Stream.made(server, storage="file") as stream,
        running(servers=server.url, **settings(stream)) as bridge,
        bridge.websocket() as client,
    ):
        await follow(client, stream)
        await stream.store("a", 0)
        server.kill()
        server.start()
        await until(lambda: stream.client.stats["reconnects"] and stream.client.is_connected)
        await stream.store("a", 1)
        frames = await read_to(client, "message")
        frames += await read_to(client, "message")
        assert [frame["data"] for frame in frames if frame["type"] == "message"] == [0, 1]
        assert "gap" not in {frame["type"] for frame in frames}


async def test_recreated_stream_is_a_gap(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_SILENT_SECONDS", 0.5)
    monkeypatch.setattr(feed_module, "HEARTBEAT_SECONDS", 0.2)
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        async with bridge.websocket() as client:
            await follow(client, stream)
            await stream.store("a", 1)
            old = (await client.frame())["id"]
            key = feed_of(bridge).key
            await stream.jetstream.delete_stream(stream.name)
            await stream.create()
            await until(lambda: feed_of(bridge).key != key and feed_of(bridge).is_standing)
            gap = await client.frame()
            assert (gap["type"], gap["subjects"], gap["reason"]) == ("gap", [stream.all], "reset")
            await stream.store("a", 2)
            assert await client.data(1) == [2]
        async with bridge.websocket() as client:
            await client.send({"subjects": [stream.all], "after": old})
            reply, gap, _ = await read_to(client, "caught_up")
            assert (reply["recovered"], gap["reason"]) == (False, "reset")


async def test_patterns_of_a_stream_that_is_gone_end(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_SILENT_SECONDS", 0.5)
    monkeypatch.setattr(feed_module, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(feed_module, "GONE_SECONDS", 0.5)
    async with (
        Stream.made(server) as stream,
        running(servers=server.url, **settings(stream)) as bridge,
        bridge.websocket() as client,
    ):
        await follow(client, stream)
        await stream.jetstream.delete_stream(stream.name)
        frame = await client.frame()
        assert (frame["type"], frame["subjects"], frame["code"]) == (
            "unsubscribed",
            [stream.all],
            "history.unavailable",
        )


async def test_idle_feed_reads_nothing_and_begins_at_the_present(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanic_nats_bridge.streams.hub._LINGER_SECONDS", 0)
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        for round_number in range(3):
            async with bridge.websocket() as client:
                await follow(client, stream)
                await stream.store("a", round_number)
                assert await client.data(1) == [round_number]
            await until(lambda: not feed_of(bridge).is_standing and not feed_of(bridge).followed)
            await stream.until_unread()
            await stream.store("a", *range(20))
