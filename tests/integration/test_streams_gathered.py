"""Messages of streams that are gathered, but not written yet, when something else is written to their clients."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sanic_nats_bridge import Session
from sanic_nats_bridge.streams.feed import Feed
from sanic_nats_bridge.streams.positions import decode_position
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WebSocketClient, running, until
from tests.support.raw import session_of
from tests.support.streams import Stream, jetstream_fixture, read_to

server = jetstream_fixture("module")


@asynccontextmanager
async def follower(server: NatsServer, stream: Stream) -> AsyncIterator[tuple[WebSocketClient, Session, Feed]]:
    """Let a client follow a stream whose messages are gathered for a second."""
    settings: dict[str, Any] = {"subscribe": [">"], "streams": {stream.name: None}, "flush_interval": 1.0}
    async with running(servers=server.url, **settings) as bridge, bridge.websocket() as client:
        await client.send({"subjects": [stream.all], "from": "new"})
        await read_to(client, "caught_up")
        streams = bridge.runtime.sessions.streams
        assert streams is not None
        yield client, session_of(bridge, client.session), streams.feeds[0]


async def test_position_of_a_heartbeat_passes_no_message(server: NatsServer) -> None:
    async with Stream.made(server) as stream, follower(server, stream) as (client, session, feed):
        await stream.store("a", 1)
        await until(lambda: feed.seq == 1)
        written = session.sent_bytes
        points = decode_position(session._position())
        assert points is not None
        assert [point.seq for point in points.values()] == [1]
        assert session.sent_bytes > written
        assert await client.data(1) == [1]


async def test_skipped_messages_precede_those_that_are_gathered(server: NatsServer) -> None:
    async with Stream.made(server) as stream, follower(server, stream) as (client, session, feed):
        session.pause_writing()
        await stream.store("a", 1)
        await until(lambda: feed.seq == 1)
        session._context.hub.flush_to(session)
        await stream.store("a", 2)
        await until(lambda: feed.seq == 2)
        session.resume_writing()
        await stream.store("a", 3)
        assert await client.data(3) == [1, 2, 3]


async def test_ids_of_old_messages_pass_no_message_that_is_gathered(server: NatsServer) -> None:
    async with Stream.made(server) as old, Stream.made(server) as live:
        settings: dict[str, Any] = {"subscribe": [">"], "history": [">"], "flush_interval": 1.0}
        await old.store("a", "old", "older")
        streams = {old.name: None, live.name: None}
        async with running(servers=server.url, streams=streams, **settings) as bridge, bridge.websocket() as client:
            await client.send({"subjects": [live.all], "from": "new"})
            await read_to(client, "caught_up")
            hub = bridge.runtime.sessions.streams
            assert hub is not None
            feed = hub.feeds[1]
            await live.store("a", "live")
            await until(lambda: feed.seq == 1)
            await client.send({"subjects": [old.all], "from": "all"})
            received = 0
            for frame in await read_to(client, "caught_up"):
                received += frame.get("data") == "live"
                points = decode_position(frame.get("id", frame.get("position", ""))) or {}
                assert feed.key not in points or points[feed.key].seq <= received


async def frames_to_caught_up(client: WebSocketClient) -> list[tuple[str, int]]:
    """Return the pattern and the content of each message up to ``caught_up``."""
    frames = await read_to(client, "caught_up")
    return [(frame.get("pattern", frame["subject"]), frame["data"]) for frame in frames if frame["type"] == "message"]


async def test_skipped_messages_precede_the_position_of_a_later_replay(server: NatsServer) -> None:
    async with Stream.made(server) as stream, follower(server, stream) as (client, session, feed):
        async with session.history._turn:
            await client.send({"subjects": [stream.subject("a")], "from": "new"})
            await read_to(client, "reply")
            session.pause_writing()
            await stream.store("a", 1)
            await until(lambda: feed.seq == 1)
            session._context.hub.flush_to(session)
        session.resume_writing()
        assert await frames_to_caught_up(client) == [(stream.subject("a"), 1), (stream.all, 1)]


async def test_messages_skipped_at_the_end_of_a_replay_are_not_repeated(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stream.made(server) as stream, follower(server, stream) as (client, session, feed):
        flushed = asyncio.Event()
        hub = session._context.hub

        def flush_to_slow_client(_: object) -> None:
            monkeypatch.undo()
            session.pause_writing()
            hub.flush_to(session)
            flushed.set()

        async with session.history._turn:
            await client.send({"subjects": [stream.subject("a")], "from": "new"})
            await read_to(client, "reply")
            await stream.store("a", 1)
            await until(lambda: feed.seq == 1)
            monkeypatch.setattr(hub, "flush_to", flush_to_slow_client)
        await flushed.wait()
        session.resume_writing()
        first = await frames_to_caught_up(client)
        await stream.store("a", 2)
        live = await client.data(2)
        assert (sorted(first), live) == (sorted([(stream.all, 1), (stream.subject("a"), 1)]), [2, 2])
