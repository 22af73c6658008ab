"""Replays that something interrupts, with a real nats-server."""

import asyncio
import json
from itertools import combinations
from typing import Any

import pytest

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.sessions.resumption import Resumption
from sanic_nats_bridge.sessions.subscriptions import Subscriptions
from sanic_nats_bridge.streams.replay import Replay
from sanic_nats_bridge.streams.snapshot import SnapshotTooLarge
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, running, until
from tests.support.raw import session_of
from tests.support.streams import Stream, halting, jetstream_fixture, read_to

server = jetstream_fixture("module")


halted = pytest.fixture(halting)


def settings(stream: Stream, **options: Any) -> dict[str, Any]:
    return {"subscribe": [">"], "history": [">"], "streams": {stream.name: None}} | options


def followers(bridge: Bridge) -> int:
    streams = bridge.runtime.sessions.streams
    assert streams is not None
    return sum(each.claims for feed in streams.feeds for each in feed.followed)


async def test_live_messages_wait_for_the_replay(server: NatsServer, halted: asyncio.Event) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", *range(6))
        async with bridge.websocket() as client:
            await client.send({"subjects": [stream.all], "from": "all"})
            await read_to(client, "message")
            await stream.store("a", 6, 7)
            halted.set()
            *frames, caught_up = await read_to(client, "caught_up")
            assert [frame["data"] for frame in frames] == [1, 2, 3, 4, 5, 6, 7]
            assert caught_up["replayed"] == 8
            await stream.store("a", 8)
            assert await client.data(1) == [8]


async def test_unsubscribe_ends_the_replay(server: NatsServer, halted: asyncio.Event) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", *range(6))
        async with bridge.websocket() as client:
            await client.send({"subjects": [stream.all], "from": "all"})
            await read_to(client, "message")
            await client.send({"action": "unsubscribe", "subjects": [stream.all]})
            frames = await read_to(client, "reply")
            assert frames[-1]["action"] == "unsubscribe"
            halted.set()
            assert (await client.ask({"action": "ping"}))["message"] == "pong"
            assert followers(bridge) == 0


async def test_two_replays_of_one_session_follow_each_other(server: NatsServer, halted: asyncio.Event) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", *range(4))
        await stream.store("b", *range(4))
        async with bridge.websocket() as client:
            await client.send({"subjects": [stream.subject("a")], "from": "all", "id": 1})
            await client.send({"subjects": [stream.subject("b")], "from": "all", "id": 2})
            halted.set()
            frames = await read_to(client, "caught_up")
            frames += await read_to(client, "caught_up")
            subjects = [frame["subject"] for frame in frames if frame["type"] == "message"]
            assert subjects == [stream.subject("a")] * 4 + [stream.subject("b")] * 4


async def test_session_that_ends_leaves_no_replay(server: NatsServer, halted: asyncio.Event) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", *range(6))
        async with bridge.websocket() as client:
            await client.send({"subjects": [stream.all], "from": "all"})
            await read_to(client, "message")
        await until(lambda: not bridge.runtime.sessions and not followers(bridge))
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "natsbridge-replay"]


async def test_subjects_that_new_permissions_deny_are_not_shown(server: NatsServer, halted: asyncio.Event) -> None:
    async with Stream.made(server) as stream:

        async def permissions(_: object) -> Permissions:
            return Permissions([stream.all], identity="u", history=[stream.all])

        for number in range(6):
            await stream.store("secret" if number % 2 else "open", number)
        options = {"permissions": permissions, "streams": {stream.name: None}}
        async with running(servers=server.url, **options) as bridge, bridge.websocket() as client:  # type: ignore[arg-type]
            await client.send({"subjects": [stream.all], "from": "all"})
            *_, message = await read_to(client, "message")
            assert (await client.data(1), message["data"]) == ([1], 0)
            denying = Permissions([stream.all], deny=[stream.subject("secret")], identity="u", history=[stream.all])
            await bridge.extension.update_permissions(denying, identity="u")
            halted.set()
            *frames, _ = await read_to(client, "caught_up")
            assert [frame["data"] for frame in frames] == [2, 4]


async def test_history_that_is_not_allowed_any_more_is_skipped(server: NatsServer, halted: asyncio.Event) -> None:
    async with Stream.made(server) as stream:

        async def permissions(_: object) -> Permissions:
            return Permissions([stream.all], identity="u", history=[stream.all])

        await stream.store("a", *range(6))
        options = {"permissions": permissions, "streams": {stream.name: None}}
        async with running(servers=server.url, **options) as bridge, bridge.websocket() as client:  # type: ignore[arg-type]
            await client.send({"subjects": [stream.all], "from": "all"})
            await read_to(client, "message")
            await client.data(1)
            await bridge.extension.update_permissions(Permissions([stream.all], identity="u"), identity="u")
            halted.set()
            gap, caught_up = await client.frames(2)
            assert (gap["type"], gap["reason"], caught_up["recovered"]) == ("gap", "expired", False)
            await stream.store("a", "live")
            assert await client.data(1) == ["live"]


@pytest.mark.parametrize("start", ['"all"', '{"last":3}'])
async def test_first_message_of_overlapping_patterns_has_the_position_before_it(server: NatsServer, start: str) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", *range(5))
        query = [("subjects", stream.all), ("subjects", stream.subject("a")), ("from", start)]

        async def read(headers: dict[str, str]) -> tuple[list[int], str, dict[str, Any]]:
            """Return the data of the old messages, the first id, and ``caught_up``."""
            ids: list[str] = []
            frames: list[dict[str, Any]] = [{"type": ""}]
            async with bridge.http.get(f"{bridge.url}/events", params=query, headers=headers) as response:
                while frames[-1]["type"] != "caught_up":
                    name, _, value = (await response.content.readuntil(b"\n")).decode().rstrip("\n").partition(": ")
                    if name == "data":
                        frames.append(json.loads(value))
                    elif name == "id":
                        ids.append(value)
            return [each["data"] for each in frames if each["type"] == "message"], ids[0], frames[-1]

        first, line, _ = await read({})
        await stream.store("a", 5, 6)
        second, _, caught_up = await read({"Last-Event-ID": line})
        assert second == [*first, 5, 5, 6, 6]
        assert caught_up["recovered"] is True


async def test_too_large_state_that_is_noticed_just_before_the_reply(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, subscribe = Replay.prepare, Subscriptions.subscribe
    may_prepare, has_failed = asyncio.Event(), asyncio.Event()

    async def wait_and_prepare(self: Replay, *arguments: Any) -> None:
        await may_prepare.wait()
        try:
            await prepare(self, *arguments)
        except SnapshotTooLarge:
            has_failed.set()
            raise

    async def wait_and_subscribe(self: Subscriptions, *arguments: Any) -> tuple[list[str], bool]:
        may_prepare.set()
        await has_failed.wait()
        return await subscribe(self, *arguments)

    async with Stream.made(server) as stream:
        await stream.store("a", 1)
        await stream.store("b", 2)
        options = settings(stream, max_snapshot_subjects=1, confirm_timeout=0.1)
        async with running(servers=server.url, **options) as bridge, bridge.websocket() as client:
            await client.ask({"subjects": ["core.x"]})
            monkeypatch.setattr(Replay, "prepare", wait_and_prepare)
            # The pattern that is held already is confirmed after the wait for the replay.
            monkeypatch.setattr(Subscriptions, "subscribe", wait_and_subscribe)
            reply = await client.ask({"subjects": [stream.all, "core.x"], "from": "last_per_subject"})
            assert (reply["success"], reply["active"]) == (True, False)
            ended = await client.frame()
            assert (ended["type"], ended["subjects"], ended["code"]) == (
                "unsubscribed",
                [stream.all],
                "history.unavailable",
            )
            assert session_of(bridge, client.session).subscriptions == ("core.x",)


async def test_too_many_overlapping_patterns_end_in_a_replay(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        tokens = ["a", "b", "c", "d", "e", "f"]
        patterns = [
            stream.subject(".".join("*" if place in wild else token for place, token in enumerate(tokens)))
            for wild in combinations(range(6), 3)
        ]
        await stream.store("a.b.c.d.e.f", 1, 2)
        async with (
            running(servers=server.url, **settings(stream, max_overlap=5)) as bridge,
            bridge.websocket() as client,
        ):
            await client.send({"subjects": patterns, "from": "all"})
            frames = await read_to(client, "caught_up")
            messages = [frame for frame in frames if frame["type"] == "message"]
            assert len(messages) == 10
            (ended,) = [frame for frame in frames if frame["type"] == "unsubscribed"]
            assert (ended["code"], ended["subjects"]) == ("limit.overlap", patterns[5:])
            assert session_of(bridge, client.session).subscriptions == tuple(patterns[:5])


async def test_replayed_messages_count_as_commands(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        for number in range(5000):
            await stream.client.publish(stream.subject("a"), b"%d" % number)
        await stream.store("a", "end")
        options = settings(stream, command_rate=0.001, command_burst=20)
        async with running(servers=server.url, **options) as bridge, bridge.websocket() as client:
            await client.send({"subjects": [stream.all], "from": "all"})
            await read_to(client, "caught_up")
            for _ in range(3):
                reply = await client.ask({"action": "ping"})
            assert reply["code"] == "limit.rate"


async def test_fault_in_a_replay_is_a_gap(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", 1)
        monkeypatch.setattr(Replay, "take_window", lambda self, most: 1 / 0)
        async with bridge.websocket() as client:
            await client.send({"subjects": [stream.all], "from": "all"})
            _, gap, caught_up = await read_to(client, "caught_up")
            assert (gap["reason"], caught_up["recovered"]) == ("internal", False)
            assert "A replay has failed" in caplog.text
            await stream.store("a", 2)
            assert await client.data(1) == [2]


async def test_subscription_waits_for_messages_that_the_slow_client_has_skipped(
    server: NatsServer, halted: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, catching_up = Resumption._try_to_prepare, asyncio.Event()

    async def prepare(self: Resumption) -> bool:
        if not self.request.announces:
            await catching_up.wait()
        return await original(self)

    monkeypatch.setattr(Resumption, "_try_to_prepare", prepare)
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("old", *range(6))
        async with bridge.websocket() as client:
            await client.send({"subjects": [stream.subject("live")], "from": "new"})
            await read_to(client, "caught_up")
            await client.send({"subjects": [stream.subject("old")], "from": "all"})
            await read_to(client, "message")
            await client.data(1)
            session = session_of(bridge, client.session)
            session.pause_writing()
            last = await stream.store("live", "skipped")
            hub = bridge.runtime.sessions.streams
            assert hub is not None
            await until(lambda: hub.feeds[0].seq == last)
            session._context.hub.flush_to(session)
            session.resume_writing()
            halted.set()
            assert await client.data(4) == [2, 3, 4, 5]
            # The next messages of the other subscription would have ids that pass the skipped one.
            await stream.store("old", 6)
            catching_up.set()
            frames = await read_to(client, "caught_up")
            assert "skipped" in [frame.get("data") for frame in frames]


async def test_events_have_no_ids_while_the_patterns_of_the_query_are_behind(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, caught_up = Resumption._try_to_prepare, asyncio.Event()

    async def prepare(self: Resumption) -> bool:
        if self.request.has_lines:
            await caught_up.wait()
        return await original(self)

    monkeypatch.setattr(Resumption, "_try_to_prepare", prepare)
    async with Stream.made(server) as stream:
        await stream.store("query", 1)
        options = settings(stream) | {"confirm_timeout": 0.1}
        async with running(servers=server.url, **options) as bridge:
            url = f"{bridge.url}/events?subjects={stream.subject('query')}&from=all"
            async with bridge.http.get(url) as response:

                async def event() -> dict[str, str]:
                    block = (await response.content.readuntil(b"\n\n")).decode()
                    return dict(line.split(": ", 1) for line in block.splitlines() if line)

                session = json.loads((await event())["data"])["session"]
                await event()
                body = {"session": session, "subjects": [stream.subject("post")], "from": "new"}
                assert (await bridge.post("/subscribe", body))[0] == 200
                while "caught_up" not in (await event())["data"]:
                    pass
                await stream.store("post", 2)
                message = await event()
                assert (json.loads(message["data"])["data"], "id" in message) == (2, False)
                caught_up.set()
                while "caught_up" not in (await event())["data"]:
                    pass
                await stream.store("post", 3)
                message = await event()
                assert (json.loads(message["data"])["data"], "id" in message) == (3, True)


async def test_session_reads_one_state_at_a_time(
    server: NatsServer, halted: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Resumption._try_to_prepare
    prepared: list[str] = []

    async def prepare(self: Resumption) -> bool:
        prepared.extend(entry.grant.pattern for entry in self.entries)
        return await original(self)

    monkeypatch.setattr(Resumption, "_try_to_prepare", prepare)
    async with Stream.made(server) as stream:
        for number in range(6):
            await stream.store(f"a.{number}", number)
        options = settings(stream) | {"confirm_timeout": 0.1}
        patterns = [stream.all, stream.subject("a.*")]
        async with running(servers=server.url, **options) as bridge, bridge.websocket() as client:
            await client.send({"subjects": patterns[:1], "from": "last_per_subject"})
            await read_to(client, "message")
            await client.data(1)
            reply = await client.ask({"subjects": patterns[1:], "from": "last_per_subject"})
            assert (reply["success"], reply["active"], prepared) == (True, False, patterns[:1])
            halted.set()
            await read_to(client, "caught_up")
            frames = await read_to(client, "caught_up")
            assert (len(frames), prepared) == (7, patterns)


async def test_stream_that_does_not_answer_delays_no_others(server: NatsServer) -> None:
    async with Stream.made(server) as silent, Stream.made(server) as other:
        options = settings(other, streams={silent.name: None, other.name: None}, max_replays=1)
        options |= {"subscribe": [">"], "history": [">"], "confirm_timeout": 0.2}
        await silent.store("a", 1)
        await other.store("a", 2)
        async with running(servers=server.url, **options) as bridge, bridge.websocket() as client:
            streams = bridge.runtime.sessions.streams
            assert streams is not None
            turns = next(turns for feed, turns in streams.turns.items() if feed.name == silent.name)
            async with turns:
                await client.send({"subjects": [silent.all], "from": "all"})
                assert (await client.frame())["active"] is False
                await client.send({"subjects": [other.all], "from": "all"})
                assert [frame["data"] for frame in await read_to(client, "caught_up") if "data" in frame] == [2]
            assert [frame["data"] for frame in await read_to(client, "caught_up") if "data" in frame] == [1]
