"""The metrics, stats and health of history."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import nats
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, WebSocketClient, running, until
from tests.support.streams import jetstream_fixture

server = jetstream_fixture("module")


@asynccontextmanager
async def stream_of(server: NatsServer, count: int) -> AsyncIterator[tuple[str, JetStreamContext]]:
    """Create a stream with some messages under subjects that begin with its name."""
    name = f"s{uuid4().hex}"
    client = await nats.connect(server.url)
    stream = client.jetstream()
    await stream.add_stream(StreamConfig(name=name, subjects=[f"{name}.>"], allow_direct=True))
    for number in range(count):
        await stream.publish(f"{name}.a", b"%d" % number)
    yield name, stream
    await stream.delete_stream(name)
    await client.close()


@asynccontextmanager
async def bridge_on(server: NatsServer, *names: str, **settings: Any) -> AsyncIterator[Bridge]:
    options = {"streams": dict.fromkeys(names), "subscribe": [">"], "history": [">"]} | settings
    async with running(servers=server.url, **options) as bridge:
        yield bridge


async def replay(client: WebSocketClient, pattern: str, **options: Any) -> list[dict[str, Any]]:
    """Subscribe, and return all frames after the reply up to the end of the replay."""
    reply = await client.ask({"action": "subscribe", "subjects": [pattern], **options})
    assert reply["success"], reply
    frames = [await client.frame()]
    while frames[-1]["type"] != "caught_up":
        frames.append(await client.frame())
    return frames


def nonzero(counts: Any) -> dict[str, Any]:
    return {name: count for name, count in counts.items() if count}


async def test_replays_and_their_results_are_counted(server: NatsServer) -> None:
    async with stream_of(server, 5) as (name, _), bridge_on(server, name, max_replay_messages=3) as bridge:
        stats = bridge.extension.stats
        async with bridge.websocket() as client:
            await replay(client, f"{name}.a", **{"from": {"last": 2}})
            position = (await replay(client, f"{name}.*", **{"from": "new"}))[-1]["position"]
            gap, *_ = await replay(client, f"{name}.>", **{"from": "all"})
            assert gap["reason"] == "backlog"
            assert nonzero(stats().replays) == {"last": 1, "new": 1, "all": 1}
            assert nonzero(stats().replay_results) == {"recovered": 2, "backlog": 1}
            assert (stats().replayed, stats().deliveries) == (5, 5)
            assert nonzero(stats().gaps) == {"backlog": 1}
        async with bridge.websocket() as client:
            await replay(client, f"{name}.a", after=position)
            await replay(client, f"{name}.>", after="x")
            await replay(client, f"{name}.*", **{"from": "last_per_subject"})
        assert nonzero(stats().replays) == {"last": 1, "new": 1, "all": 1, "after": 2, "last_per_subject": 1}
        assert nonzero(stats().replay_results) == {"recovered": 4, "backlog": 1, "unknown": 1}
        assert nonzero(stats().gaps) == {"backlog": 1, "unknown": 1}
        assert nonzero(stats().current_replays) == {}
        assert stats().jetstream_requests > 0


async def test_pattern_without_stream_counts_gap_after_a_position(server: NatsServer) -> None:
    async with stream_of(server, 0) as (name, _), bridge_on(server, name) as bridge, bridge.websocket() as client:
        reply = await client.ask({"action": "subscribe", "subjects": ["other.a", "other.b"], "after": "x"})
        assert reply["success"]
        assert (await client.frame())["reason"] == "unknown"
        assert nonzero(bridge.extension.stats().gaps) == {"unknown": 2}


async def test_stats_and_health_follow_the_state_of_feeds(server: NatsServer) -> None:
    async with stream_of(server, 1) as (name, stream), bridge_on(server, name, "missing") as bridge:

        async def health() -> Any:
            async with bridge.http.get(f"{bridge.url}/health/ready") as response:
                assert response.status == 200
                return (await response.json())["streams"]

        await until(lambda: bridge.extension.stats().streams_available[name])
        feeds = {feed.name: feed for feed in bridge.runtime.sessions.streams.feeds}  # type: ignore[union-attr]
        await until(lambda: feeds["missing"].is_unavailable)
        assert await health() == {name: "idle", "missing": "unavailable"}
        assert bridge.extension.stats().streams_available == {name: True, "missing": False}
        assert not any(bridge.extension.stats().feeds_reading.values())
        async with bridge.websocket() as client:
            await replay(client, f"{name}.>", **{"from": "new"})
            await until(lambda: bridge.extension.stats().feeds_reading[name])
            assert await health() == {name: "reading", "missing": "unavailable"}
            await stream.publish(f"{name}.a", b"x" * 100)
            await client.frame()
            assert bridge.extension.stats().history_bytes > 100
            assert bridge.extension.stats().feed_lag == {name: 0, "missing": 0}


async def test_health_without_streams_has_none(server: NatsServer) -> None:
    async with (
        running(servers=server.url, subscribe=[">"]) as bridge,
        bridge.http.get(f"{bridge.url}/health/ready") as response,
    ):
        assert "streams" not in await response.json()


async def test_feed_lag_is_the_number_of_messages_that_nats_has_left(server: NatsServer) -> None:
    async with stream_of(server, 0) as (name, _), bridge_on(server, name) as bridge, bridge.websocket() as client:
        await replay(client, f"{name}.>", **{"from": "new"})
        feed = bridge.runtime.sessions.streams.feeds[0]  # type: ignore[union-attr]
        await until(lambda: feed.is_standing)
        reply = f"$JS.ACK.{name}.c.1.1.1.1700000000000000000.41"
        feed.on_message(f"{name}.a".encode(), reply.encode(), b"", b"1")
        assert bridge.extension.stats().feed_lag == {name: 41}


async def test_replays_that_wait_are_counted_apart(server: NatsServer) -> None:
    async with stream_of(server, 1) as (name, _), bridge_on(server, name, max_replays=1) as bridge:
        streams = bridge.runtime.sessions.streams
        assert streams is not None
        (turns,) = streams.turns.values()
        current = bridge.extension.stats
        async with bridge.websocket() as client:
            async with turns:
                await client.send({"action": "subscribe", "subjects": [f"{name}.>"], "from": "all"})
                await until(lambda: current().current_replays == {"running": 0, "waiting": 1})
            await client.frames(3)
            assert current().current_replays == {"running": 0, "waiting": 0}
        # One that waits when its session ends isn't counted any more.
        async with turns:
            async with bridge.websocket() as client:
                await client.send({"action": "subscribe", "subjects": [f"{name}.>"], "from": "all"})
                await until(lambda: current().current_replays["waiting"] == 1)
            await until(lambda: current().current_replays == {"running": 0, "waiting": 0})


async def test_metrics_route_has_the_streams(server: NatsServer) -> None:
    async with stream_of(server, 2) as (name, _), bridge_on(server, name, metrics=True) as bridge:
        async with bridge.websocket() as client:
            await replay(client, f"{name}.>", **{"from": "all"})
        async with bridge.http.get(f"{bridge.url}/metrics") as response:
            text = await response.text()
        assert re.search(r'natsbridge_replays_total\{start="all",worker="\w+"\} 1.0', text)
        assert re.search(r'natsbridge_replay_results_total\{result="recovered",worker="\w+"\} 1.0', text)
        assert re.search(r'natsbridge_replayed_messages_total\{worker="\w+"\} 2.0', text)
        assert re.search(rf'natsbridge_stream_available\{{stream="{name}",worker="\w+"\}} 1.0', text)
