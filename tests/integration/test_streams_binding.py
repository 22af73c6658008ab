"""Subscriptions that are made before it is known which stream holds their patterns."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from sanic_nats_bridge.hub.interest import State
from sanic_nats_bridge.sessions import binding
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, Publisher, WebSocketClient, running, until
from tests.support.raw import session_of
from tests.support.streams import Stream, jetstream_fixture, read_to

server = jetstream_fixture("function")


async def test_pattern_goes_to_the_stream_that_holds_it(server: NatsServer) -> None:
    async with Stream.made(server, storage="file") as first, Stream.made(server, storage="file") as second:
        await second.store("a", 1, 2)
        await first.store("a", 3)
        server.stop()
        settings: dict[str, Any] = {
            "subscribe": [">"],
            "history": [">"],
            "streams": dict.fromkeys((first.name, second.name)),
        }
        async with (
            running(servers=server.url, connected=False, **settings | {"confirm_timeout": 0.1}) as bridge,
            bridge.websocket() as client,
        ):
            reply = await client.ask({"subjects": [second.all, first.subject("a")], "from": "all"})
            assert (reply["success"], reply["active"]) == (True, False)
            server.start()
            frames = await read_to(client, "caught_up")
            assert [frame["data"] for frame in frames if frame["type"] == "message"] in ([1, 2, 3], [3, 1, 2])
            assert len(frames[-1]["position"].split("~")) == 2
            await second.store("a", 4)
            assert await client.data(1) == [4]


async def test_pattern_that_no_stream_holds_ends(server: NatsServer) -> None:
    async with Stream.made(server, storage="file") as stream:
        server.stop()
        settings: dict[str, Any] = {"subscribe": [">"], "history": [">"], "streams": {stream.name: None}}
        async with (
            running(servers=server.url, connected=False, **settings | {"confirm_timeout": 0.1}) as bridge,
            bridge.websocket() as client,
        ):
            reply = await client.ask({"subjects": ["other.>", stream.all], "from": "all"})
            assert (reply["success"], reply["active"]) == (True, False)
            server.start()
            frames = await read_to(client, "caught_up")
            (ended,) = (frame for frame in frames if frame["type"] == "unsubscribed")
            assert (ended["subjects"], ended["code"]) == (["other.>"], "history.unavailable")
            assert frames[-1]["subjects"] == [stream.all]


async def test_pattern_is_bound_if_the_streams_become_known_between_two_attempts(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each attempt ends before the streams are known.
    monkeypatch.setattr(binding, "_KNOWN_SECONDS", 0)
    async with Stream.made(server, storage="file") as first, Stream.made(server, storage="file") as second:
        await second.store("a", 1, 2)
        server.stop()
        settings: dict[str, Any] = {
            "subscribe": [">"],
            "history": [">"],
            "streams": dict.fromkeys((first.name, second.name)),
        }
        async with (
            running(servers=server.url, connected=False, **settings | {"confirm_timeout": 0.1}) as bridge,
            bridge.websocket() as client,
        ):
            reply = await client.ask({"subjects": [second.all], "from": "all"})
            assert (reply["success"], reply["active"]) == (True, False)
            server.start()
            frames = await read_to(client, "caught_up")
            assert [frame["data"] for frame in frames if frame["type"] == "message"] == [1, 2]


@asynccontextmanager
async def before_nats(server: NatsServer, *streams: Stream, **options: Any) -> AsyncIterator[tuple[Bridge, Any]]:
    """Run a bridge whose NATS server is stopped, with a client."""
    server.stop()
    settings: dict[str, Any] = {
        "subscribe": [">"],
        "history": [">"],
        "streams": {each.name: None for each in streams},
        "confirm_timeout": 0.1,
        "servers": server.url,
    }
    async with (
        running(**settings | options, connected=False) as bridge,
        bridge.websocket() as client,
    ):
        yield bridge, client


async def ask(client: WebSocketClient, *subjects: str, **fields: Any) -> None:
    """Subscribe while nothing is known about the streams."""
    if "start" in fields:
        fields["from"] = fields.pop("start")
    reply = await client.ask({"action": "subscribe", "subjects": subjects, **fields})
    assert (reply["success"], reply["active"], reply["subjects"]) == (True, False, list(subjects)), reply
    assert not {"resumable", "resumable_subjects", "recovered"} & reply.keys()


async def frames_to_reply(client: WebSocketClient, **command: Any) -> list[dict[str, Any]]:
    """Send a command, and return the frames up to its reply, which is the last one."""
    await client.send(command)
    return await read_to(client, "reply")


async def read_all(client: WebSocketClient, *kinds: str) -> list[dict[str, Any]]:
    """Read frames until one of each type has come."""
    frames: list[dict[str, Any]] = []
    while not {*kinds} <= {frame["type"] for frame in frames}:
        frames.append(await client.frame())
    return frames


async def messages(client: WebSocketClient, count: int) -> list[dict[str, Any]]:
    """Return the next messages. Reports on the status of NATS may come in between."""
    frames: list[dict[str, Any]] = []
    while len(frames) < count:
        frame = await client.frame()
        if frame["type"] != "status":
            frames.append(frame)
    assert {frame["type"] for frame in frames} == {"message"}, frames
    return frames


async def until_confirmed(bridge: Bridge, client: WebSocketClient, pattern: str) -> None:
    """Wait until NATS has a subscription without history."""
    session = session_of(bridge, client.session)
    await until(
        lambda: any(
            view.pattern == pattern and view.interest.state is State.ACTIVE for view in session._subscriptions.views
        )
    )


@pytest.mark.parametrize("fields", [{"start": "new"}, {"after": "x"}, {"after": "x", "start": "all"}], ids=str)
async def test_pattern_that_no_stream_holds_goes_on_without_history(server: NatsServer, fields: dict[str, Any]) -> None:
    async with Stream.made(server, storage="file") as stream, before_nats(server, stream) as (bridge, client):
        await ask(client, "other.>", stream.all, **fields)
        await ask(client, "more.x", **fields)
        server.start()
        frames = await read_to(client, "caught_up")
        assert frames[-1]["subjects"] == [stream.all]
        assert "unsubscribed" not in {frame["type"] for frame in frames}
        await until_confirmed(bridge, client, "other.>")
        await until_confirmed(bridge, client, "more.x")
        frames += await frames_to_reply(client, action="ping")
        gaps = [(frame["subjects"], frame["reason"]) for frame in frames if frame["type"] == "gap"]
        expected = [[stream.all], ["more.x"], ["other.>"]] if "after" in fields else []
        assert sorted(gaps) == sorted((each, "unknown") for each in expected)
        async with Publisher.connected(server) as publisher:
            await publisher.send("other.a", b"1")
            await publisher.send("more.x", b"2")
            live = await messages(client, 2)
            assert [(each["subject"], each["data"]) for each in live] == [("other.a", 1), ("more.x", 2)]
            assert not any("id" in each for each in live)
        # They are held, and can be ended.
        *_, reply = await frames_to_reply(client, subjects=["other.>"], **{"from": "new"})
        assert (reply["active"], reply["resumable"]) == (True, False)
        *_, reply = await frames_to_reply(client, action="unsubscribe", subjects=["other.>", "more.x"])
        assert reply["success"]
        assert session_of(bridge, client.session).subscriptions == (stream.all,)


async def test_pattern_that_nats_refuses_ends_and_others_go_on(server: NatsServer) -> None:
    async with Stream.made(server, storage="file") as stream:
        server.config = """no_auth_user: admin, authorization { users: [
            {user: admin, password: admin}
            {user: bridge, password: bridge, permissions: {subscribe: {deny: ["refused.>"]}}}
        ] }"""
        url = f"nats://bridge:bridge@127.0.0.1:{server.port}"
        async with before_nats(server, stream, servers=url) as (bridge, client):
            await ask(client, "refused.x", "other.x", start="new")
            server.start()
            (ended,) = [f for f in await read_to(client, "unsubscribed") if f["type"] == "unsubscribed"]
            assert (ended["subjects"], ended["code"]) == (["refused.x"], "nats.refused")
            await until_confirmed(bridge, client, "other.x")
            assert session_of(bridge, client.session).subscriptions == ("other.x",)


async def test_unsubscribe_before_the_streams_are_known(server: NatsServer) -> None:
    async with Stream.made(server, storage="file") as stream, before_nats(server, stream) as (bridge, client):
        await ask(client, "other.x", "more.x", start="new")
        assert (await client.ask({"action": "unsubscribe", "subjects": ["other.x"]}))["success"]
        server.start()
        await until_confirmed(bridge, client, "more.x")
        assert session_of(bridge, client.session).subscriptions == ("more.x",)


async def test_session_that_ends_before_the_streams_are_known(server: NatsServer) -> None:
    async with Stream.made(server, storage="file") as stream, before_nats(server, stream) as (bridge, client):
        async with bridge.websocket() as other:
            await ask(other, "other.x", stream.all, start="new")
        await until(lambda: len(bridge.runtime.sessions) == 1)
        await ask(client, "other.x", start="new")
        server.start()
        await until_confirmed(bridge, client, "other.x")
        streams = bridge.runtime.sessions.streams
        assert streams is not None
        assert not [each for feed in streams.feeds for each in feed.followed if each.claims]


@pytest.mark.parametrize(("option", "value"), [("max_snapshot_subjects", 3), ("max_replay_bytes", 1024)])
async def test_state_that_turns_out_too_large_ends(server: NatsServer, option: str, value: int) -> None:
    async with Stream.made(server, storage="file") as stream, Stream.made(server, storage="file") as small:
        for number in range(4):
            await stream.store(f"k.{number}", "x" * 300)
        await small.store("a", 1)
        async with before_nats(server, stream, small, **{option: value}) as (bridge, client):
            await ask(client, stream.all, small.all, start="last_per_subject")
            await ask(client, small.subject("a"), start="last_per_subject")
            server.start()
            frames = await read_all(client, "caught_up", "unsubscribed")
            (ended,) = [frame for frame in frames if frame["type"] == "unsubscribed"]
            assert (ended["subjects"], ended["code"]) == ([stream.all, small.all], "history.unavailable")
            assert ended["message"].startswith(f"The state exceeds {option} of this server: ")
            # Not even the state of the smaller stream is shown for it.
            assert [f["data"] for f in frames if f["type"] == "message"] == [1]
            assert session_of(bridge, client.session).subscriptions == (small.subject("a"),)
            await stream.store("k.1", 2)
            await small.store("a", 3)
            assert [each["data"] for each in await messages(client, 1)] == [3]


async def test_state_that_turns_out_too_large_after_an_id_is_carried_out_as_new(server: NatsServer) -> None:
    async with Stream.made(server, storage="file") as stream, Stream.made(server, storage="file") as small:
        for number in range(4):
            await stream.store(f"k.{number}", number)
        await small.store("a", 1)
        async with before_nats(server, stream, small, max_snapshot_subjects=3) as (_, client):
            await ask(client, small.all, stream.all, start="last_per_subject", after="x")
            server.start()
            frames = [frame for frame in await read_to(client, "caught_up") if frame["type"] != "status"]
            gap, caught_up = frames
            assert (gap["subjects"], gap["reason"]) == ([small.all, stream.all], "unknown")
            assert (caught_up["replayed"], caught_up["recovered"]) == (0, False)
            await stream.store("k.1", 2)
            assert [each["data"] for each in await messages(client, 1)] == [2]


async def test_patterns_of_more_streams_than_a_session_may_follow_end(server: NatsServer) -> None:
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(Stream.made(server, storage="file")) for _ in range(6)]
        _, client = await stack.enter_async_context(before_nats(server, *streams))
        # Until then all of them count as patterns of the first stream.
        await ask(client, *(stream.all for stream in streams[1:]), start="all")
        server.start()
        frames = await read_to(client, "caught_up")
        (ended,) = [frame for frame in frames if frame["type"] == "unsubscribed"]
        assert (ended["subjects"], ended["code"]) == ([streams[5].all], "limit.subscriptions")
        assert frames[-1]["subjects"] == [stream.all for stream in streams[1:5]]
        assert frames[-1]["position"].count("~") == 3
