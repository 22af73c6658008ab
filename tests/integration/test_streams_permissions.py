"""Permissions that change while a client reads the past: nothing that they forbid now may show."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sanic_nats_bridge import Permissions, Session
from sanic_nats_bridge.sessions.resumption import Resumption
from sanic_nats_bridge.streams.positions import decode_position
from sanic_nats_bridge.streams.replay import Replay
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, running, until
from tests.support.streams import Stream, halting, jetstream_fixture, read_to

server = jetstream_fixture("function")


halted = pytest.fixture(halting)


def permitting(*subjects: str, history: bool = True, **options: Any) -> Permissions:
    return Permissions(subjects, identity="u", history=subjects if history else (), **options)


@asynccontextmanager
async def bridge_of(
    server: NatsServer, permissions: Permissions, *streams: Stream, **options: Any
) -> AsyncIterator[Bridge]:
    settings: dict[str, Any] = {
        "streams": dict.fromkeys(each.name for each in streams),
        "permissions": lambda _: permissions,
    }
    async with running(servers=server.url, **settings | options) as bridge:
        yield bridge


def session_of(bridge: Bridge) -> Session:
    (session,) = bridge.runtime.sessions
    return session


def held_replays(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Let replays wait before they begin; return the event that one waits, and the one with which all go on."""
    preparing, going_on = asyncio.Event(), asyncio.Event()
    original = Resumption._try_to_prepare

    async def prepare(self: Resumption) -> bool:
        preparing.set()
        await going_on.wait()
        return await original(self)

    monkeypatch.setattr(Resumption, "_try_to_prepare", prepare)
    return preparing, going_on


def keys(frames: list[dict[str, Any]]) -> list[list[str]]:
    """Return the keys of the streams in the ids of these frames."""
    ids = [frame["id"] if frame["type"] == "message" else frame["position"] for frame in frames]
    return [sorted(decode_position(each) or ()) for each in ids]


async def test_ids_hold_no_stream_that_is_not_allowed_any_more(server: NatsServer, halted: asyncio.Event) -> None:
    async with Stream.made(server) as one, Stream.made(server) as two:
        await one.store("a", *range(6))
        await two.store("a", *range(6))
        async with bridge_of(server, permitting(one.all, two.all), one, two) as bridge, bridge.websocket() as client:
            await client.send({"subjects": [one.all, two.all], "from": "all"})
            *_, message = await read_to(client, "message")
            await client.frame()
            assert len(keys([message])[0]) == 2
            await bridge.extension.update_permissions(permitting(one.all), identity="u")
            assert (await client.frame())["type"] == "unsubscribed"
            halted.set()
            frames = await read_to(client, "caught_up")
            assert [frame["data"] for frame in frames[:-1]] == [2, 3, 4, 5]
            feed = bridge.runtime.sessions.streams.feeds[0]  # type: ignore[union-attr]
            assert keys(frames) == [[feed.key]] * 5


async def test_ids_hold_no_stream_of_a_pattern_that_was_unsubscribed(server: NatsServer, halted: asyncio.Event) -> None:
    async with Stream.made(server) as one, Stream.made(server) as two:
        await one.store("a", *range(6))
        await two.store("a", *range(6))
        async with bridge_of(server, permitting(one.all, two.all), one, two) as bridge, bridge.websocket() as client:
            await client.send({"subjects": [one.all, two.all], "from": "all"})
            await read_to(client, "message")
            await client.frame()
            assert (await client.ask({"action": "unsubscribe", "subjects": [two.all]}))["success"]
            halted.set()
            frames = await read_to(client, "caught_up")
            assert {len(each) for each in keys(frames)} == {1}


async def test_gap_does_not_count_messages_that_are_not_allowed_any_more(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stream.made(server) as stream:
        await stream.store("open", *range(6))
        await stream.store("secret", *range(6))
        patterns = [stream.subject("open"), stream.subject("secret")]
        options = {"max_replay_messages": 4}
        async with bridge_of(server, permitting(*patterns), stream, **options) as bridge, bridge.websocket() as client:
            original = Replay.take_missed

            def narrowed(self: Replay) -> Any:
                history = session_of(bridge).history
                if patterns[1] in history.patterns:
                    session_of(bridge).update_permissions(permitting(patterns[0]))
                return original(self)

            monkeypatch.setattr(Replay, "take_missed", narrowed)
            await client.send({"subjects": patterns, "from": "all"})
            frames = await read_to(client, "caught_up")
            (gap,) = (frame for frame in frames if frame["type"] == "gap")
            assert (gap["subjects"], gap["reason"], gap["lost"]) == ([patterns[0]], "backlog", None)


async def test_history_that_is_taken_away_before_the_stream_is_known(server: NatsServer) -> None:
    async with Stream.made(server, storage="file") as first, Stream.made(server, storage="file") as second:
        await second.store("a", 1, 2)
        server.stop()
        options = {"connected": False, "confirm_timeout": 0.1}
        async with (
            bridge_of(server, permitting(second.all), first, second, **options) as bridge,
            bridge.websocket() as client,
        ):
            reply = await client.ask({"subjects": [second.all], "from": "all"})
            assert (reply["success"], reply["active"]) == (True, False)
            session_of(bridge).update_permissions(permitting(second.all, history=False))
            server.start()
            frames = await read_to(client, "caught_up")
            assert [frame["type"] for frame in frames if frame["type"] != "status"] == ["gap", "caught_up"]


async def test_event_stream_has_the_permissions_that_came_while_the_app_was_asked(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        await stream.store("a", 1)
        asked, answering = asyncio.Event(), asyncio.Event()

        async def permissions(_: object) -> Permissions:
            asked.set()
            await answering.wait()
            return permitting("other.>")

        options: dict[str, Any] = {"streams": {stream.name: None}, "permissions": permissions}
        async with running(servers=server.url, **options) as bridge:
            url = f"{bridge.url}/events?subjects={stream.all}&from=all"
            opening = asyncio.create_task(bridge.http.get(url).__aenter__())
            await asked.wait()
            await bridge.extension.update_permissions(permitting(stream.all), identity="u")
            answering.set()
            response = await opening
            status = response.status
            response.close()
            assert status == 200


async def test_event_stream_fails_if_its_past_was_forbidden_while_the_app_was_asked(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        asked, answering = asyncio.Event(), asyncio.Event()

        async def permissions(_: object) -> Permissions:
            asked.set()
            await answering.wait()
            return permitting(stream.all)

        options: dict[str, Any] = {"streams": {stream.name: None}, "permissions": permissions}
        async with running(servers=server.url, **options) as bridge:
            url = f"{bridge.url}/events?subjects={stream.all}&from=all"
            opening = asyncio.create_task(bridge.http.get(url).__aenter__())
            await asked.wait()
            await bridge.extension.update_permissions(permitting(stream.all, history=False), identity="u")
            answering.set()
            response = await opening
            assert (response.status, (await response.json())["code"]) == (403, "history.forbidden")


async def test_pattern_that_changes_its_meaning_while_it_is_subscribed_is_replayed_again(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stream.made(server) as stream:
        await stream.store("one.x", 1)
        await stream.store("two.x", 2)

        def aliased(target: str) -> Permissions:
            aliases = {"me.": stream.subject(f"{target}.")}
            return permitting(stream.all, aliases=aliases)

        preparing, going_on = held_replays(monkeypatch)
        async with bridge_of(server, aliased("one"), stream) as bridge, bridge.websocket() as client:
            await client.send({"subjects": ["me.>"], "from": "all"})
            await preparing.wait()
            await bridge.extension.update_permissions(aliased("two"), identity="u")
            going_on.set()
            frames = await read_to(client, "caught_up")
            assert [frame["type"] for frame in frames] == ["reply", "message", "caught_up"]
            assert (frames[0]["success"], frames[0]["resumable"], frames[1]["data"]) == (True, True, 2)


async def test_pattern_that_is_forbidden_while_it_is_subscribed_fails_once(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stream.made(server) as stream:
        preparing, _ = held_replays(monkeypatch)
        async with bridge_of(server, permitting(stream.all), stream) as bridge, bridge.websocket() as client:
            await client.send({"subjects": [stream.all], "from": "all"})
            await preparing.wait()
            await bridge.extension.update_permissions(permitting("other.>"), identity="u")
            frames = [await client.frame(), await client.ask({"action": "ping"})]
            assert [frame["type"] for frame in frames] == ["reply", "reply"]
            assert frames[0]["code"] == "subject.forbidden"


async def test_revoked_session_gets_no_message_that_was_gathered(server: NatsServer) -> None:
    async with Stream.made(server) as one, Stream.made(server) as two:
        options = {"flush_interval": 1.0}
        async with (
            bridge_of(server, permitting(one.all, two.all), one, two, **options) as bridge,
            bridge.websocket() as client,
        ):
            await client.send({"subjects": [one.all, two.all], "from": "new"})
            await read_to(client, "caught_up")
            feed = bridge.runtime.sessions.streams.feeds[1]  # type: ignore[union-attr]
            seq = feed.seq
            await two.store("a", "secret")
            await until(lambda: feed.seq > seq)
            await bridge.extension.revoke(identity="u")
            assert (await client.frame())["type"] == "close"


async def test_subscribe_of_a_session_that_expires_meanwhile_fails(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stream.made(server) as stream:
        preparing, going_on = held_replays(monkeypatch)
        async with bridge_of(server, permitting(stream.all), stream) as bridge, bridge.events() as client:
            body = {"session": client.session, "subjects": [stream.all], "from": "all"}
            posting = asyncio.create_task(bridge.post("/subscribe", body))
            await preparing.wait()
            session_of(bridge).withhold()
            going_on.set()
            status, _ = await posting
            assert status == 404
            session_of(bridge).expire()
