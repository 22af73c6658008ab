"""History and resume on the wire, with a real nats-server and real sockets."""

from itertools import pairwise
from typing import Any

import pytest

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Publisher, WebSocketClient, running, until
from tests.support.raw import session_of
from tests.support.streams import Stream, jetstream_fixture, read_to

server = jetstream_fixture("module")


def settings(*streams: Stream, **options: Any) -> dict[str, Any]:
    """Return the settings of a bridge whose clients may read everything of these streams."""
    subjects = [stream.all for stream in streams]
    return {
        "subscribe": [*subjects, "core.>"],
        "history": subjects,
        "streams": {each.name: None for each in streams},
    } | options


def data(frames: list[dict[str, Any]]) -> list[Any]:
    return [frame["data"] for frame in frames if frame["type"] == "message"]


async def subscribe(client: WebSocketClient, *subjects: str, **fields: Any) -> list[dict[str, Any]]:
    """Send a subscribe, and return the frames from the reply to ``caught_up``."""
    await client.send({"action": "subscribe", "subjects": subjects, **fields})
    frames = await read_to(client, "caught_up")
    assert frames[0]["type"] == "reply", frames
    assert frames[0]["success"], frames
    return frames


async def test_server_without_streams_has_no_feature_and_refuses_the_fields(server: NatsServer) -> None:
    async with running(servers=server.url, subscribe=[">"]) as bridge, bridge.websocket() as client:
        assert client.welcome["features"] == ["publish", "request"]
        reply = await client.ask({"subjects": ["a"], "from": "new"})
        assert reply["code"] == "command.unsupported"
        assert len(server.monitor("/connz")["connections"]) >= 1
        names = [each.get("name") for each in server.monitor("/connz")["connections"]]
        assert names.count("sanic-nats-bridge") == 1


async def test_all_messages_then_live_ones(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        await stream.store("a", 1, 2, 3)
        async with running(servers=server.url, **settings(stream)) as bridge, bridge.websocket() as client:
            assert client.welcome["features"] == ["history", "publish", "request"]
            reply, *messages, caught_up = await subscribe(client, stream.all, **{"from": "all"})
            assert (reply["active"], reply["resumable"], reply["recovered"]) == (True, True, True)
            assert data(messages) == [1, 2, 3]
            assert (caught_up["subjects"], caught_up["replayed"], caught_up["recovered"]) == ([stream.all], 3, True)
            await stream.store("a", 4)
            live = await client.frame()
            assert live["data"] == 4
            ids = [*[frame["id"] for frame in messages], live["id"]]
            assert len({*ids}) == 4
            assert caught_up["position"] == ids[2]
            assert all(len(each) <= 128 for each in ids)


@pytest.mark.parametrize("where", ["message", "caught_up"])
async def test_client_resumes_after_messages_that_it_has_received(server: NatsServer, where: str) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        async with bridge.websocket() as client:
            *_, caught_up = await subscribe(client, stream.all, **{"from": "new"})
            position = caught_up["position"]
            if where == "message":
                await stream.store("a", "before")
                position = (await client.frame())["id"]
        last = await stream.store("a", *range(10))
        hub = bridge.runtime.sessions.streams
        assert hub is not None
        await until(lambda: hub.feeds[0].seq == last)
        async with bridge.websocket() as client:
            reply, *messages, caught_up = await subscribe(client, stream.all, after=position)
            assert reply["recovered"]
            assert data(messages) == list(range(10))
            assert (caught_up["replayed"], caught_up["recovered"]) == (10, True)


async def test_last_messages_and_last_of_each_subject(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        for number in range(10):
            await stream.store(f"{number % 3}", number)
        async with bridge.websocket() as client:
            assert data(await subscribe(client, stream.all, **{"from": {"last": 4}})) == [6, 7, 8, 9]
        async with bridge.websocket() as client:
            frames = await subscribe(client, stream.all, **{"from": "last_per_subject"})
            assert {frame["subject"][-1]: frame["data"] for frame in frames[1:-1]} == {"0": 9, "1": 7, "2": 8}
            await stream.store("1", "live")
            assert (await client.frame())["data"] == "live"


async def test_several_patterns_of_one_command_are_replayed_as_one(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        for number in range(20):
            await stream.store(f"{number % 4}.x", number)
        patterns = [stream.subject("0.*"), stream.subject("2.x"), stream.subject("*.x")]
        async with bridge.websocket() as client:
            *frames, caught_up = await subscribe(client, *patterns, **{"from": "all"})
            assert caught_up["subjects"] == patterns
            assert caught_up["replayed"] == 20 + 5 + 5
            numbers = data(frames)
            assert numbers == sorted(numbers)
            for pattern, expected in zip(patterns, [range(0, 20, 4), range(2, 20, 4), range(20)], strict=True):
                got = [f["data"] for f in frames if f.get("pattern", f.get("subject")) == pattern]
                assert got == list(expected)


async def test_two_streams_in_one_session(server: NatsServer) -> None:
    async with (
        Stream.made(server) as one,
        Stream.made(server) as two,
        running(servers=server.url, **settings(one, two)) as bridge,
    ):
        await one.store("a", 1, 2)
        await two.store("a", 3, 4)
        async with bridge.websocket() as client:
            *frames, caught_up = await subscribe(client, one.all, two.all, **{"from": "all"})
            assert sorted(data(frames)) == [1, 2, 3, 4]
            assert caught_up["position"].count("~") == 1
            position = frames[2]["id"]
            rest = data(frames)[2:]
        await one.store("a", 5)
        await two.store("a", 6)
        async with bridge.websocket() as client:
            reply, *frames, _ = await subscribe(client, one.all, two.all, after=position)
            assert reply["recovered"]
            assert sorted(data(frames)) == [*rest, 5, 6]


async def test_id_of_one_pattern_holds_no_other_stream(server: NatsServer) -> None:
    async with (
        Stream.made(server) as one,
        Stream.made(server) as two,
        running(servers=server.url, **settings(one, two)) as bridge,
        bridge.websocket() as both,
        bridge.websocket() as only,
    ):
        await subscribe(both, one.all, two.all, **{"from": "new"})
        *_, caught_up = await subscribe(only, one.all, **{"from": "new"})
        assert "~" not in caught_up["position"]
        await one.store("a", 1)
        assert (await both.frame())["id"].count("~") == 1
        assert "~" not in (await only.frame())["id"]


async def test_pattern_that_no_stream_holds(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        async with bridge.websocket() as client:
            reply = await client.ask({"subjects": ["core.a"], "from": "new"})
            assert (reply["success"], reply["resumable"]) == (True, False)
            reply = await client.ask({"subjects": ["core.b"], "after": "nonsense"})
            assert (reply["success"], reply["resumable"]) == (True, False)
            gap = await client.frame()
            assert (gap["type"], gap["subjects"], gap["reason"]) == ("gap", ["core.b"], "unknown")
            reply = await client.ask({"subjects": ["core.c", stream.subject("a")], "from": "all"})
            assert reply["code"] == "history.forbidden"
            assert reply["subjects"] == ["core.c"]
        async with running(servers=server.url, **settings(stream, history=[stream.all, "core.>"])) as other:
            async with other.websocket() as client:
                reply = await client.ask({"subjects": ["core.c", stream.subject("a")], "from": "all"})
                assert (reply["code"], reply["subjects"]) == ("history.unavailable", ["core.c"])
                assert session_of(other, client.session).subscriptions == ()
            async with Publisher.connected(server) as publisher, other.websocket() as client:
                await client.send({"subjects": ["core.c", stream.subject("a")], "from": "new"})
                reply, caught_up = await client.frames(2)
                assert reply["resumable"] is False
                assert reply["resumable_subjects"] == [stream.subject("a")]
                assert caught_up["subjects"] == [stream.subject("a")]
                await publisher.send("core.c", b'"core"')
                message = await client.frame()
                assert (message["data"], "id" in message) == ("core", False)


async def test_unreadable_id_is_a_gap_and_then_from(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", 1, 2, 3)
        async with bridge.websocket() as client:
            reply, gap, *messages, caught_up = await subscribe(
                client, stream.all, **{"after": "what?", "from": {"last": 1}}
            )
            assert reply["recovered"] is False
            assert (gap["type"], gap["reason"], gap["lost"]) == ("gap", "unknown", None)
            assert data(messages) == [3]
            assert caught_up["recovered"] is False


async def test_without_permission_only_the_last_seconds_can_be_had(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        options = settings(stream, history=())
        async with running(servers=server.url, **options) as bridge, bridge.websocket() as client:
            *_, caught_up = await subscribe(client, stream.all, **{"from": "new"})
            reply = await client.ask({"subjects": [stream.subject("x")], "from": "all"})
            assert reply["code"] == "history.forbidden"
        await stream.store("a", 1, 2)
        async with running(servers=server.url, **options) as bridge, bridge.websocket() as client:
            _, *messages, _ = await subscribe(client, stream.all, after=caught_up["position"])
            assert data(messages) == [1, 2]
        async with running(servers=server.url, **options, resume_window=0) as bridge, bridge.websocket() as client:
            reply, gap, last = await subscribe(client, stream.all, after=caught_up["position"])
            assert (reply["recovered"], gap["reason"], last["replayed"]) == (False, "expired", 0)


async def test_backlog_beyond_the_limit_shows_the_newest(server: NatsServer) -> None:
    async with Stream.made(server) as stream:
        await stream.store("a", *range(50))
        async with (
            running(servers=server.url, **settings(stream, max_replay_messages=10)) as bridge,
            bridge.websocket() as client,
        ):
            reply, gap, *messages, caught_up = await subscribe(client, stream.all, **{"from": "all"})
            assert (reply["recovered"], gap["reason"], gap["lost"]) == (False, "backlog", 40)
            assert data(messages) == list(range(40, 50))
            assert caught_up["recovered"] is False
            reply = await client.ask({"subjects": [stream.subject("a")], "from": {"last": 11}})
            assert reply["code"] == "command.invalid"


async def test_denied_subjects_and_real_names_stay_hidden(server: NatsServer) -> None:
    async with Stream.made(server) as stream:

        async def permissions(_: object) -> Permissions:
            return Permissions(
                [stream.all],
                deny=[stream.subject("secret.>")],
                aliases={"me.": f"{stream.prefix}."},
                history=[stream.all],
            )

        await stream.store("secret.a", "secret")
        await stream.store("open.a", "open")
        options: dict[str, Any] = {"permissions": permissions, "streams": {stream.name: None}}
        async with running(servers=server.url, **options) as bridge, bridge.websocket() as client:
            _, message, caught_up = await subscribe(client, "me.>", **{"from": "all"})
            assert (message["subject"], message["data"], caught_up["replayed"]) == ("me.open.a", "open", 1)
            await stream.store("secret.b", "secret")
            await stream.store("open.b", "live")
            assert (await client.frame())["subject"] == "me.open.b"


async def test_held_pattern_is_not_replayed_again(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", 1)
        async with bridge.websocket() as client:
            await subscribe(client, stream.all, **{"from": "all"})
            reply = await client.ask({"subjects": [stream.all], "from": "all"})
            assert (reply["success"], reply["resumable"]) == (True, True)
            reply = await client.ask({"subjects": [stream.all]})
            assert reply["success"]
            await stream.store("a", 2)
            assert await client.data(1) == [2]
            reply = await client.ask({"action": "unsubscribe", "subjects": [stream.all]})
            assert reply["success"]
            assert session_of(bridge, client.session).subscriptions == ()
            reply = await client.ask({"action": "unsubscribe", "subjects": [stream.all]})
            assert reply["code"] == "subject.not_subscribed"


async def test_slow_consumer_catches_up_from_the_stream(server: NatsServer) -> None:
    async with Stream.made(server, storage="file") as stream:
        options = settings(stream, max_pending_bytes=65_536, history_buffer_bytes=65_536)
        async with running(servers=server.url, **options) as bridge, bridge.websocket(max_queue=1) as client:
            await subscribe(client, stream.all, **{"from": "new"})
            session = session_of(bridge, client.session)
            count, text = 0, "x" * 20_000
            while session.is_writable:
                await stream.store("a", f"{count} {text}")
                count += 1
            for _ in range(50):
                await stream.store("a", f"{count} {text}")
                count += 1
            numbers = [int(each.partition(" ")[0]) for each in await client.data(count)]
            assert numbers == list(range(count))
            await stream.store("a", "live")
            assert await client.data(1) == ["live"]
            stats = bridge.extension.stats()
            assert not stats.lost["slow_consumer"]
            assert not sum(stats.gaps.values())


async def test_outage_of_nats_causes_no_gap(server: NatsServer) -> None:
    async with (
        Stream.made(server, storage="file") as stream,
        running(servers=server.url, **settings(stream)) as bridge,
        bridge.websocket() as client,
    ):
        await subscribe(client, stream.all, **{"from": "new"})
        await stream.store("a", 1)
        server.restart()
        await until(lambda: stream.client.stats["reconnects"] and stream.client.is_connected)
        await stream.store("a", 2)
        frames: list[dict[str, Any]] = []
        while data(frames) != [1, 2]:
            frames.append(await client.frame())
        assert {frame["type"] for frame in frames} <= {"message", "status"}


async def test_event_source_resumes_by_its_last_event_id(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        query = [("subjects", stream.all), ("from", "new")]

        async def lines(headers: dict[str, str], count: int) -> list[list[str]]:
            async with bridge.http.get(f"{bridge.url}/events", params=query, headers=headers) as response:
                assert response.status == 200
                events: list[list[str]] = []
                block: list[str] = []
                while len(events) < count:
                    line = (await response.content.readuntil(b"\n")).decode().rstrip("\n")
                    if line:
                        block.append(line)
                    else:
                        events.append(block)
                        block = []
                        if len(events) == 3 and not headers:
                            await stream.store("a", 1)
                return events

        welcome, reply, caught_up, message = await lines({}, 4)
        assert not any(line.startswith("id:") for line in [*welcome, *reply])
        assert caught_up[0].startswith("id: ")
        assert message[0].startswith("id: ")
        last = await stream.store("a", 2, 3)
        hub = bridge.runtime.sessions.streams
        assert hub is not None
        await until(lambda: hub.feeds[0].seq == last)
        *_, two, three, caught_up = await lines({"Last-Event-ID": message[0][4:]}, 5)
        assert [two[1][-2:], three[1][-2:]] == ["2}", "3}"]
        assert '"recovered":true' in caught_up[-1]


async def test_query_and_post_of_event_stream(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", 1, 2)
        async with bridge.events() as client:
            status, reply = await bridge.post(
                "/subscribe", {"session": client.session, "subjects": [stream.all], "from": "all"}
            )
            assert (status, reply["resumable"], reply["recovered"]) == (200, True, True)
            frames = await read_to(client, "caught_up")
            assert data(frames) == [1, 2]
        for query, status in (("from=nonsense", 400), ("from=all", 403)):
            url = f"{bridge.url}/events?subjects=core.x&{query}"
            async with bridge.http.get(url) as response:
                assert response.status == status


async def test_permissions_taken_away_end_the_subscription(server: NatsServer) -> None:
    async with Stream.made(server) as stream:

        async def permissions(_: object) -> Permissions:
            return Permissions([stream.all], identity="u", history=[stream.all])

        options: dict[str, Any] = {"permissions": permissions, "streams": {stream.name: None}}
        async with running(servers=server.url, **options) as bridge, bridge.websocket() as client:
            await subscribe(client, stream.subject("a"), stream.subject("b"), **{"from": "new"})
            await bridge.extension.update_permissions(Permissions([stream.subject("a")], identity="u"), identity="u")
            frame = await client.frame()
            assert (frame["type"], frame["subjects"], frame["code"]) == (
                "unsubscribed",
                [stream.subject("b")],
                "subject.forbidden",
            )
            await stream.store("b", 1)
            await stream.store("a", 2)
            assert await client.data(1) == [2]


async def test_closed_sessions_leave_nothing(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", *range(100))
        for _ in range(5):
            async with bridge.websocket() as client:
                await client.send({"subjects": [stream.all], "from": "all"})
                await client.frame()
        hub = bridge.runtime.sessions.streams
        assert hub is not None
        await until(
            lambda: not bridge.runtime.sessions and all(not f.claims for feed in hub.feeds for f in feed.followed)
        )
        assert len(await stream.consumers()) <= 1
        assert not [f.channels for feed in hub.feeds for f in feed.followed if f.channels]


async def test_ids_rise_with_the_messages(server: NatsServer) -> None:
    async with Stream.made(server) as stream, running(servers=server.url, **settings(stream)) as bridge:
        await stream.store("a", *range(30))
        async with bridge.websocket() as client:
            frames = await subscribe(client, stream.all, **{"from": "all"})
            ids = [int(frame["id"].split(".")[1], 36) for frame in frames[1:-1]]
            assert all(one < other for one, other in pairwise(ids))
