"""The patterns that sessions follow without a command, with a real NATS server, on both transports."""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.hub.hub import refused_by_nats
from sanic_nats_bridge.sessions.session import Session
from sanic_nats_bridge.sessions.subscriptions import Subscriptions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import (
    SERVERS,
    Bridge,
    EventClient,
    ServerName,
    WebSocketClient,
    running,
    subscribed,
    until,
)
from tests.support.restricted import restricted
from tests.support.streams import Stream, jetstream_fixture, read_to

shared_jetstream = jetstream_fixture("module")

both = pytest.mark.parametrize("route", ["websocket", "events"])


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


def of_user(user: str, **changes: Any) -> Permissions:
    permissions = Permissions(
        ["news"], follow=[f"users.{user}.notice"], aliases={"me.": f"users.{user}."}, identity=user
    )
    return replace(permissions, **changes)


def by_query(request: Request) -> Permissions:
    return of_user(request.args.get("user"))


@contextlib.asynccontextmanager
async def connected(
    bridge: Bridge, route: str, user: str, *subjects: str
) -> AsyncIterator[WebSocketClient | EventClient]:
    """Connect a client of the user, and read its welcome."""
    if route == "websocket":
        async with bridge.websocket(f"user={user}") as client:
            yield client
        return
    query = [("user", user), *(("subjects", subject) for subject in subjects)]
    async with bridge.http.get(f"{bridge.url}/events", params=query) as response:
        assert response.status == 200, await response.text()
        events = EventClient(response)
        events.welcome = await events.frame()
        yield events


async def command(bridge: Bridge, client: WebSocketClient | EventClient, action: str, *subjects: str) -> dict[str, Any]:
    """Send a command by the client's transport, and return its reply."""
    if isinstance(client, WebSocketClient):
        return await client.ask({"action": action, "subjects": subjects})
    user = only_session(bridge).identity
    return (await bridge.post(f"/{action}?user={user}", {"session": client.session, "subjects": subjects}))[1]


def only_session(bridge: Bridge) -> Session:
    (session,) = bridge.extension.sessions
    return session


def answers(frame: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(frame.get(name) for name in ("type", "code", "subjects"))


@both
async def test_app_pushes_to_one_user(shared_nats: NatsServer, server: ServerName, route: str) -> None:
    async with (
        running(server=server, servers=shared_nats.url, permissions=by_query) as bridge,
        connected(bridge, route, "7") as ada,
        connected(bridge, route, "8") as bob,
    ):
        for client in (ada, bob):
            assert await client.frame() == subscribed("me.notice")
        for user in (8, 7):
            await bridge.extension.publish(f"users.{user}.notice", {"for": user})
        assert await ada.frame() == {"type": "message", "subject": "me.notice", "data": {"for": 7}}
        assert await bob.frame() == {"type": "message", "subject": "me.notice", "data": {"for": 8}}


@both
async def test_commands_for_a_followed_pattern(shared_nats: NatsServer, route: str) -> None:
    async with (
        running(servers=shared_nats.url, permissions=by_query) as bridge,
        connected(bridge, route, "7") as client,
    ):
        assert await client.frame() == subscribed("me.notice")
        assert (await command(bridge, client, "subscribe", "me.notice"))["active"]
        reply = await command(bridge, client, "unsubscribe", "me.notice")
        assert (reply["code"], reply["subjects"]) == ("subject.forbidden", ["me.notice"])
        assert reply["message"] == "Followed without a subscribe: 'me.notice'"
        await bridge.extension.publish("users.7.notice", 1)
        assert (await client.frame())["data"] == 1


async def test_frames_before_the_reply_wait(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, permissions=by_query) as bridge,
        bridge.unwelcome_websocket("user=7") as client,
    ):
        for number in range(20):
            await client.send({"action": "ping", "id": number})
        frames = await client.frames(22)
        assert [frame["type"] for frame in frames] == ["welcome", *["reply"] * 21]
        assert [frame.get("id") for frame in frames[1:]] == [None, *range(20)]
        assert frames[1] == subscribed("me.notice")


async def test_query_and_followed_patterns_have_one_reply(shared_nats: NatsServer, server: ServerName) -> None:
    async with (
        running(server=server, servers=shared_nats.url, permissions=by_query) as bridge,
        connected(bridge, "events", "7", "news", "me.notice") as client,
    ):
        assert await client.frame() == subscribed("me.notice", "news")
        await bridge.extension.publish("users.7.notice", 1)
        assert (await client.frame())["data"] == 1


async def test_query_is_refused_as_before(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, permissions=by_query, max_subscriptions=2) as bridge:
        for subjects, status in ((["users.7.notice"], 403), (["news", "me.notice"], 200), (["me.x", "news"], 403)):
            query = [("user", "7"), *(("subjects", subject) for subject in subjects)]
            async with bridge.http.head(f"{bridge.url}/events", params=query) as response:
                assert response.status == status
        assert not bridge.extension.sessions


async def test_query_and_followed_patterns_together_are_limited(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, permissions=by_query, max_subscriptions=1) as bridge:
        query = {"user": "7", "subjects": "news"}
        async with bridge.http.get(f"{bridge.url}/events", params=query) as response:
            assert (response.status, (await response.json())["code"]) == (429, "limit.subscriptions")


@both
async def test_pattern_that_nats_refuses_ends_and_the_others_are_followed(route: str) -> None:
    with NatsServer(config=restricted(denied=["users.7.secret"])) as server:
        permissions = of_user("7", follow=["users.7.secret", "users.7.notice"])
        url = server.url.replace("://", "://bridge:bridge@")
        async with (
            running(servers=url, permissions=lambda _: permissions) as bridge,
            connected(bridge, route, "7", *(["news"] if route == "events" else [])) as client,
        ):
            assert await client.frame() == subscribed("me.notice", *(["news"] if route == "events" else []))
            assert answers(await client.frame()) == ("unsubscribed", "nats.refused", ["me.secret"])
            reply = await command(bridge, client, "subscribe", "me.secret")
            assert (reply["code"], reply["subjects"]) == ("nats.refused", ["me.secret"])


async def test_query_that_nats_refuses_fails_after_the_reply_for_followed_patterns() -> None:
    with NatsServer(config=restricted(denied=["news"])) as server:
        url = server.url.replace("://", "://bridge:bridge@")
        async with (
            running(servers=url, permissions=by_query) as bridge,
            connected(bridge, "events", "7", "news") as client,
        ):
            assert await client.frame() == subscribed("me.notice")
            assert answers(await client.frame()) == ("reply", "nats.refused", ["news"])
            assert only_session(bridge).subscriptions == ("me.notice",)


# Updates


@both
@pytest.mark.parametrize("elsewhere", [False, True], ids=["this worker", "another worker"])
async def test_update_adds_and_takes_away(shared_nats: NatsServer, route: str, elsewhere: bool) -> None:
    options: dict[str, Any] = {"control_prefix": f"_T.{uuid4().hex}", "permissions": by_query}
    async with (
        running(servers=shared_nats.url, **options) as bridge,
        running(servers=shared_nats.url, **options) as other,
        connected(bridge, route, "7") as client,
    ):
        assert await client.frame() == subscribed("me.notice")
        here = other if elsewhere else bridge
        update = here.extension.update_permissions
        await update(of_user("7", follow=["users.7.notice", "users.7.mail"]), identity="7")
        assert await client.frame() == subscribed("me.mail")
        await here.extension.publish("users.7.mail", 1)
        assert (await client.frame())["data"] == 1
        await update(of_user("7", follow=["users.7.mail"]), identity="7")
        assert answers(await client.frame()) == ("unsubscribed", "subject.forbidden", ["me.notice"])
        await here.extension.publish("users.7.notice", 2)
        await here.extension.publish("users.7.mail", 3)
        assert (await client.frame())["data"] == 3


@both
async def test_update_while_the_app_is_asked_is_not_lost(shared_nats: NatsServer, route: str) -> None:
    async def permissions(request: Request) -> Permissions:
        bridge = request.app.ctx.nats_bridge
        await bridge.update_permissions(of_user("7", follow=["users.7.mail"]), identity="7")
        return of_user("7")

    async with (
        running(servers=shared_nats.url, permissions=permissions) as bridge,
        connected(bridge, route, "7") as client,
    ):
        assert await client.frame() == subscribed("me.mail")


INVALID: dict[str, tuple[Callable[[], Permissions], str]] = {
    "too many": (lambda: of_user("7", follow=["a", "b", "c"]), "follow must be at most max_subscriptions (2) patterns"),
    "control": (lambda: of_user("7", follow=["_T.x.>"]), "follow must not allow the bridge's own subjects"),
    "inbox": (lambda: of_user("7", publish=["_INBOX.>"]), "publish must not allow the bridge's own subjects"),
    "request": (lambda: of_user("7", request=["_T.x.answer.>"]), "request must not allow the bridge's own subjects"),
}


@pytest.mark.parametrize(("invalid", "message"), INVALID.values(), ids=INVALID)
async def test_update_that_is_invalid_raises_and_changes_nothing(
    shared_nats: NatsServer, invalid: Callable[[], Permissions], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"control_prefix": "_T.x", "permissions": by_query, "max_subscriptions": 2}
    async with (
        running(servers=shared_nats.url, **options) as bridge,
        running(servers=shared_nats.url, **options) as other,
        connected(other, "websocket", "7") as client,
    ):
        assert await client.frame() == subscribed("me.notice")
        with pytest.raises(ValueError, match=re.escape(message)):
            await bridge.extension.update_permissions(invalid(), identity="7")
        # The next update that other workers get is this one.
        await bridge.extension.update_permissions(of_user("7", follow=["mail"]), identity="7")
        assert [answers(frame) for frame in await client.frames(2)] == [
            ("unsubscribed", "subject.forbidden", ["me.notice"]),
            ("reply", None, ["mail"]),
        ]
        assert "another worker" not in caplog.text


@pytest.mark.parametrize(("invalid", "message"), INVALID.values(), ids=INVALID)
async def test_invalid_permissions_of_the_function_are_its_failure(
    shared_nats: NatsServer, invalid: Callable[[], Permissions], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(
        servers=shared_nats.url, permissions=lambda _: invalid(), control_prefix="_T.x", max_subscriptions=2
    ) as bridge:
        async with bridge.unwelcome_websocket() as client:
            close = await client.frame()
            assert (close["type"], close["code"], close["reason"]) == ("close", 1011, "Internal error")
        async with bridge.http.get(f"{bridge.url}/events") as response:
            assert (await EventClient(response).frame())["code"] == 1011
        status, reply = await bridge.post("/publish", {"subject": "a"})
        assert (status, reply["code"]) == (500, "internal")
        assert not bridge.extension.sessions
    records = [record for record in caplog.records if "'permissions' function has failed" in record.getMessage()]
    assert records
    assert records[0].exc_info is not None
    assert message in str(records[0].exc_info[1])


# Streams


@contextlib.asynccontextmanager
async def streaming(
    server: NatsServer, *denied: str, history: tuple[str, ...] = ("s.>",), **changes: Any
) -> AsyncIterator[tuple[Bridge, Stream]]:
    """Serve a bridge with a stream, whose subjects have the name ``s``."""
    async with Stream.made(server) as stream:
        given = of_user(
            "7", subscribe=[stream.all], history=[stream.all], aliases={"s.": f"{stream.prefix}."}, follow=[]
        )
        follow = [stream.subject(each) for each in changes.pop("follow", ["followed"])]
        permissions = replace(given, follow=follow, **changes)
        async with running(
            servers=server.url, permissions=lambda _: permissions, streams={stream.name: None}
        ) as bridge:
            yield bridge, stream


async def test_query_with_history_beside_followed_patterns(shared_jetstream: NatsServer) -> None:
    async with streaming(shared_jetstream) as (bridge, stream):
        await stream.store("asked", 1, 2)
        await stream.store("followed", 3)
        query = [("subjects", "s.asked"), ("subjects", "s.followed"), ("from", "all")]
        async with bridge.http.get(f"{bridge.url}/events", params=query) as response:
            client = EventClient(response)
            await client.frame()
            reply, *messages, caught_up = await read_to(client, "caught_up")
            assert reply["subjects"] == ["s.followed", "s.asked"]
            assert (reply["active"], reply["resumable"], reply["recovered"]) == (True, False, True)
            assert reply["resumable_subjects"] == ["s.asked"]
            assert [frame["data"] for frame in messages] == [1, 2]
            assert (caught_up["subjects"], caught_up["replayed"]) == (["s.asked"], 2)
            await stream.store("followed", 4)
            frame = await client.frame()
            assert (frame["data"], "id" in frame) == (4, False)
            await stream.store("asked", 5)
            frame = await client.frame()
            assert (frame["data"], "id" in frame) == (5, True)


async def test_query_with_history_is_tried_again_without_a_refused_pattern(
    shared_jetstream: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, refused = Subscriptions.subscribe, ["s.followed"]

    async def subscribe(self: Subscriptions, patterns: Sequence[str], *options: Any) -> Any:
        if set(refused) & set(patterns):
            raise refused_by_nats(refused)
        return await original(self, patterns, *options)

    monkeypatch.setattr(Subscriptions, "subscribe", subscribe)
    async with streaming(shared_jetstream, follow=["followed", "more"]) as (bridge, stream):
        await stream.store("asked", 1, 2)
        query = {"subjects": "s.asked", "from": "all"}
        async with bridge.http.get(f"{bridge.url}/events", params=query) as response:
            events = [(await response.content.readuntil(b"\n\n")).decode() for _ in range(6)]
        frames = [json.loads(event.partition("data: ")[2]) for event in events]
        assert [frame["type"] for frame in frames if frame["type"] != "unsubscribed"] == [
            "welcome",
            "reply",
            "message",
            "message",
            "caught_up",
        ]
        assert frames[1]["subjects"] == ["s.more", "s.asked"]
        assert frames[1]["resumable_subjects"] == ["s.asked"]
        assert ["s.followed"] in [frame["subjects"] for frame in frames if frame["type"] == "unsubscribed"]
        assert all(
            ("id: " in event) == (frame["type"] in ("message", "caught_up"))
            for event, frame in zip(events, frames, strict=True)
        )


async def test_query_without_a_stream_beside_followed_patterns(shared_jetstream: NatsServer) -> None:
    async with streaming(shared_jetstream, subscribe=["core"]) as (bridge, _):
        query = {"subjects": "core", "from": "new"}
        async with bridge.http.get(f"{bridge.url}/events", params=query) as response:
            client = EventClient(response)
            await client.frame()
            assert await client.frame() == subscribed("s.followed", "core") | {"resumable": False}


async def test_start_has_no_effect_on_a_followed_pattern(shared_jetstream: NatsServer) -> None:
    async with streaming(shared_jetstream) as (bridge, stream), bridge.websocket() as client:
        await client.frame()
        await stream.store("followed", 1)
        assert (await client.frame())["data"] == 1
        for start in ({"from": "all"}, {"after": "x"}, {"from": "last_per_subject", "after": "x"}):
            reply = await client.ask({"subjects": ["s.followed"], **start})
            assert (reply["success"], reply["active"], reply["resumable"]) == (True, True, False)
        await client.send({"subjects": ["s.followed", "s.asked"], "from": "all"})
        reply, caught_up = await read_to(client, "caught_up")
        assert reply["resumable_subjects"] == caught_up["subjects"] == ["s.asked"]
        await stream.store("followed", 2)
        assert (await client.frame())["data"] == 2


async def test_followed_pattern_that_ended_is_subscribed_to_without_history(shared_jetstream: NatsServer) -> None:
    async with streaming(shared_jetstream, subscribe=[]) as (bridge, stream), bridge.websocket() as client:
        await client.frame()
        session = only_session(bridge)
        session._subscriptions.detach(["s.followed"])
        session._subscriptions.remove("s.followed")
        reply = await client.ask({"subjects": ["s.followed"], "from": "all"})
        assert (reply["success"], reply["resumable"]) == (True, False)
        await stream.store("followed", 1)
        frame = await client.frame()
        assert (frame["data"], "id" in frame) == (1, False)


async def test_pattern_with_history_becomes_followed_and_keeps_it(shared_jetstream: NatsServer) -> None:
    async with streaming(shared_jetstream, follow=[]) as (bridge, stream), bridge.websocket() as client:
        await client.send({"subjects": ["s.asked"], "from": "all"})
        await read_to(client, "caught_up")
        permissions = only_session(bridge).permissions
        followed = replace(permissions, follow=[stream.subject("asked"), stream.subject("more")])
        await bridge.extension.update_permissions(followed, identity="7")
        assert await client.frame() == subscribed("s.asked", "s.more")
        assert (await client.ask({"action": "unsubscribe", "subjects": ["s.asked"]}))["code"] == "subject.forbidden"
        await stream.store("asked", 1)
        frame = await client.frame()
        assert (frame["data"], "id" in frame) == (1, True)
        await bridge.extension.update_permissions(permissions, identity="7")
        assert answers(await client.frame()) == ("unsubscribed", "subject.forbidden", ["s.more"])
        await stream.store("asked", 2)
        assert (await client.frame())["data"] == 2
        assert (await client.ask({"action": "unsubscribe", "subjects": ["s.asked"]}))["success"]


async def test_pattern_is_followed_after_the_end_of_its_history(shared_jetstream: NatsServer) -> None:
    async with streaming(shared_jetstream, follow=[]) as (bridge, stream), bridge.websocket() as client:
        await client.send({"subjects": ["s.asked"], "from": "all"})
        await read_to(client, "caught_up")
        followed = replace(only_session(bridge).permissions, follow=[stream.subject("asked")])
        await bridge.extension.update_permissions(followed, identity="7")
        await client.frame()
        history = only_session(bridge).history
        history.patterns_ended([history._entries["s.asked"].followed])
        assert answers(await client.frame()) == ("unsubscribed", "history.unavailable", ["s.asked"])
        assert await client.frame() == subscribed("s.asked")
        await stream.store("asked", 1)
        frame = await client.frame()
        assert (frame["data"], "id" in frame) == (1, False)


async def test_reply_does_not_wait_for_streams(shared_jetstream: NatsServer) -> None:
    async with streaming(shared_jetstream) as (bridge, _), bridge.websocket() as client:
        assert await client.frame() == subscribed("s.followed")
        await until(lambda: only_session(bridge)._history is None)
