import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sanic import Request
from sanic.exceptions import Unauthorized
from websockets.exceptions import ConnectionClosed

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import (
    SERVERS,
    WAIT_SECONDS,
    Bridge,
    EventClient,
    Publisher,
    ServerName,
    WebSocketClient,
    running,
    until,
)
from tests.support.clock import held, turns
from tests.support.raw import sessions

ROUTES = ("websocket", "events")


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class App:
    """An app that identifies its users by a cookie, with permissions for each user."""

    def __init__(self) -> None:
        self.users: dict[str, Permissions | Any | None] = {}
        self.asked: list[str] = []
        self.wait: Callable[[], Any] | None = None

    async def permissions(self, request: Request) -> Permissions | None:
        user = request.cookies.get("user")
        self.asked.append(f"{request.method} {request.path} {user}")
        if self.wait is not None:
            await self.wait()
        known = self.users.get(user or "")
        if isinstance(known, Exception):
            raise known
        return known


@contextlib.asynccontextmanager
async def serve(
    shared_nats: NatsServer, app: App, server: ServerName = "sanic", **settings: Any
) -> AsyncIterator[Bridge]:
    async with running(
        servers=shared_nats.url, permissions=app.permissions, unsubscribe_delay=0.1, server=server, **settings
    ) as bridge:
        yield bridge


def connected(
    bridge: Bridge, route: str, user: str, *subjects: str
) -> contextlib.AbstractAsyncContextManager[WebSocketClient | EventClient]:
    """Connect a client with the cookie of a user."""
    if route == "websocket":
        return bridge.websocket(additional_headers={"Cookie": f"user={user}"})
    return bridge.events(*subjects, Cookie=f"user={user}")


async def follow(bridge: Bridge, client: WebSocketClient | EventClient, user: str, *subjects: str) -> dict[str, Any]:
    status, reply = await bridge.post(
        "/subscribe", {"session": client.session, "subjects": subjects}, Cookie=f"user={user}"
    )
    if isinstance(client, WebSocketClient) and reply["success"]:
        assert (status, reply["active"]) == (200, True)
    return reply


async def last_frame(client: WebSocketClient | EventClient) -> dict[str, Any]:
    """Return the next frame, which must be `close` and the last one."""
    frame = await client.frame()
    assert frame["type"] == "close", frame
    with pytest.raises((EOFError, ConnectionClosed)):
        await client.frame()
    if isinstance(client, WebSocketClient):
        assert client.connection.close_code == frame["code"]
    return frame


async def test_permissions_callback_is_called_once_per_session_and_post(
    shared_nats: NatsServer, server: ServerName
) -> None:
    app = App()
    app.users["ada"] = Permissions([">"])
    async with serve(shared_nats, app, server) as bridge:
        async with connected(bridge, "websocket", "ada") as client:
            assert isinstance(client, WebSocketClient)
            await client.follow("a", "b")
            await client.ask({"action": "unsubscribe", "subjects": ["a"]})
        async with connected(bridge, "events", "ada", "a", "b") as events:
            assert (await follow(bridge, events, "ada", "c"))["success"]
    assert app.asked == ["GET /nats/stream ada", "GET /nats/events ada", "POST /nats/subscribe ada"]


async def test_clients_receive_only_permitted_subjects(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName, route: str
) -> None:
    app, base = App(), publisher.base
    for user in ("ada", "bob"):
        app.users[user] = Permissions(
            [f"{base}.{{user}}.>", f"{base}.public.>"], [f"{base}.*.secret"], variables={"user": user}
        )
    async with (
        serve(shared_nats, app, server) as bridge,
        connected(bridge, route, "ada") as ada,
        connected(bridge, route, "bob") as bob,
    ):
        refused = await follow(bridge, ada, "ada", f"{base}.ada.>", f"{base}.bob.>")
        assert (refused["code"], refused["subjects"]) == ("subject.forbidden", [f"{base}.bob.>"])
        for user, client in (("ada", ada), ("bob", bob)):
            assert (await follow(bridge, client, user, f"{base}.{user}.>", f"{base}.public.>"))["success"]
        for subject in ("ada.x", "bob.x", "public.x", "ada.secret", "public.secret", "public.end"):
            await publisher.send(f"{base}.{subject}", json.dumps(subject).encode())
        assert await ada.data(3) == ["ada.x", "public.x", "public.end"]
        assert await bob.data(3) == ["bob.x", "public.x", "public.end"]


async def test_missing_and_expired_permissions_are_rejected(shared_nats: NatsServer, server: ServerName) -> None:
    app = App()
    app.users["old"] = Permissions([">"], expires=time.time() - 1)
    async with serve(shared_nats, app, server) as bridge:
        for user, code in (("eve", "auth.required"), ("old", "auth.expired")):
            async with bridge.http.get(f"{bridge.url}/events", headers={"Cookie": f"user={user}"}) as response:
                body = await response.json()
                assert (response.status, body["type"], body["code"]) == (401, "reply", code)
            async with bridge.http.head(f"{bridge.url}/events", headers={"Cookie": f"user={user}"}) as response:
                assert response.status == 401
            async with bridge.unwelcome_websocket(additional_headers={"Cookie": f"user={user}"}) as client:
                frame = await last_frame(client)
                assert (frame["code"], frame["reconnect"]) == (4401, False)
        assert (await bridge.post("/subscribe", {"session": "x", "subjects": ["a"]}))[0] == 401
        assert len(sessions(bridge)) == 0


@pytest.mark.parametrize("fault", [ValueError("hidden"), Unauthorized("hidden"), "hidden", True, [Permissions()]])
async def test_permissions_callback_error_is_logged_and_hidden_from_client(
    shared_nats: NatsServer, caplog: pytest.LogCaptureFixture, fault: Any
) -> None:
    app = App()
    app.users["ada"] = fault
    async with serve(shared_nats, app) as bridge:
        # The fault may be temporary, and an EventSource doesn't reconnect after a status other than 200.
        async with bridge.http.get(f"{bridge.url}/events", headers={"Cookie": "user=ada"}) as response:
            assert response.status == 200
            body = await response.text()
            assert re.fullmatch(r"retry: \d{4}\nevent: close\ndata: .*\"code\":1011,.*\n\n", body)
            assert "hidden" not in body
        async with bridge.unwelcome_websocket(additional_headers={"Cookie": "user=ada"}) as client:
            frame = await last_frame(client)
            assert (frame["code"], frame["reconnect"]) == (1011, True)
            assert "hidden" not in json.dumps(frame)
        status, reply = await bridge.post("/subscribe", {"session": "x", "subjects": ["a"]}, Cookie="user=ada")
        assert (status, reply["code"]) == (500, "internal")
        assert "hidden" not in json.dumps(reply)
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info is not None for record in logged] == [True] * 3


async def test_permissions_callback_timeout_closes_with_1011(
    shared_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    app.wait = asyncio.Event().wait
    async with (
        serve(shared_nats, app, permissions_timeout=0.1) as bridge,
        bridge.unwelcome_websocket() as client,
    ):
        assert (await last_frame(client))["code"] == 1011
    assert "took longer than 'permissions_timeout' (0.1 s); the client was rejected" in caplog.text


async def test_timeout_within_permissions_callback_is_logged_with_traceback(
    shared_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def permissions(request: Request) -> Permissions | None:
        raise TimeoutError("the database did not answer")

    async with (
        running(servers=shared_nats.url, permissions=permissions) as bridge,
        bridge.unwelcome_websocket() as client,
    ):
        assert (await last_frame(client))["code"] == 1011
    assert "permissions_timeout" not in caplog.text
    assert any(record.exc_info for record in caplog.records)


async def test_permissions_callback_can_be_synchronous(shared_nats: NatsServer) -> None:
    async with (
        running(servers=shared_nats.url, permissions=lambda _: Permissions(["a"])) as bridge,
        bridge.websocket() as client,
    ):
        await client.follow("a")
        assert (await client.ask({"subjects": ["b"]}))["code"] == "subject.forbidden"


async def test_cancelled_task_in_permissions_callback_closes_with_1011(
    shared_nats: NatsServer, server: ServerName, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    async def wait_and_record_cancellation() -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task

    app.wait = wait_and_record_cancellation
    async with serve(shared_nats, app, server) as bridge:
        async with bridge.unwelcome_websocket() as client:
            assert (await last_frame(client))["code"] == 1011
        async with bridge.http.get(f"{bridge.url}/events") as response:
            assert response.status == 200
            assert b'"code":1011' in await response.read()
    assert len([record for record in caplog.records if record.exc_info]) == 2


CALL_LIMITS = [
    {"max_permissions_calls": 3},
    {"max_permissions_calls_per_client": 3},
]


@pytest.mark.parametrize("limits", CALL_LIMITS, ids=str)
async def test_permissions_calls_in_progress_are_limited(
    shared_nats: NatsServer, server: ServerName, limits: dict[str, int]
) -> None:
    app, known = App(), asyncio.Event()
    app.users["ada"] = Permissions([">"])
    app.wait = known.wait
    cookie = {"Cookie": "user=ada"}
    body = {"session": "x", "subjects": ["a"]}
    async with (
        serve(shared_nats, app, server, permissions_timeout=WAIT_SECONDS, **limits) as bridge,
        contextlib.AsyncExitStack() as stack,
    ):
        sockets = [
            await stack.enter_async_context(bridge.unwelcome_websocket(additional_headers=cookie)) for _ in range(2)
        ]
        post = asyncio.create_task(bridge.post("/subscribe", body, **cookie))
        await until(lambda: len(app.asked) == 3)
        for _ in range(3):
            async with bridge.unwelcome_websocket(additional_headers=cookie) as client:
                close = await last_frame(client)
                assert (close["code"], close["reconnect"]) == (1013, True)
                assert next(iter(limits)) in close["reason"]
            async with bridge.http.get(f"{bridge.url}/events", headers={"Accept": "text/event-stream"}) as response:
                assert response.status == 200
                assert b'"code":1013' in await response.read()
            async with bridge.http.head(f"{bridge.url}/events", headers=cookie) as response:
                assert (response.status, response.headers["Retry-After"]) == (429, "1")
            status, reply = await bridge.post("/subscribe", body, **cookie)
            assert (status, reply["code"]) == (429, "limit.rate")
        assert len(app.asked) == 3
        known.set()
        assert {(await socket.frame())["type"] for socket in sockets} == {"welcome"}
        assert (await post)[0] == 404
        async with connected(bridge, "websocket", "ada"):
            assert len(sessions(bridge)) == 3
    assert len(sessions(bridge).permissions_calls) == 0


async def test_clients_that_app_is_asked_about_do_not_use_up_max_sessions(
    shared_nats: NatsServer, server: ServerName
) -> None:
    app, known = App(), asyncio.Event()
    app.users |= {"ada": Permissions([">"]), "slow": Permissions([">"])}
    async with (
        serve(shared_nats, app, server, max_sessions=2, permissions_timeout=WAIT_SECONDS) as bridge,
        contextlib.AsyncExitStack() as stack,
    ):
        app.wait = known.wait
        slow = {"Cookie": "user=slow"}
        pending = [
            await stack.enter_async_context(bridge.unwelcome_websocket(additional_headers=slow)) for _ in range(5)
        ]
        await until(lambda: len(app.asked) == 5)
        app.wait = turns
        async with connected(bridge, "websocket", "ada"), connected(bridge, "events", "ada"):
            known.set()
            assert {(await client.frame())["code"] for client in pending} == {1013}
            assert len(sessions(bridge)) == 2


@pytest.mark.parametrize("decided", ["revoke", "update_permissions"])
async def test_permission_change_during_callback_affects_that_session_only(
    shared_nats: NatsServer, server: ServerName, route: str, decided: str
) -> None:
    app, known = App(), asyncio.Event()
    app.users["ada"] = Permissions([">"], identity="ada")
    app.wait = known.wait
    async with serve(shared_nats, app, server) as bridge:

        async def first_frame() -> tuple[str, int | None]:
            if route == "websocket":
                async with bridge.unwelcome_websocket(additional_headers={"Cookie": "user=ada"}) as client:
                    frame = await client.frame()
                    return frame["type"], frame.get("code")
            async with bridge.http.get(f"{bridge.url}/events", headers={"Cookie": "user=ada"}) as response:
                frame = await EventClient(response).frame()
                return frame["type"], frame.get("code")

        coming = asyncio.create_task(first_frame())
        await until(lambda: app.asked)
        if decided == "revoke":
            assert await bridge.extension.revoke(identity="ada") == (0, True)
        else:
            assert await bridge.extension.update_permissions(Permissions(["b"]), identity="ada") == (0, True)
        known.set()
        assert await coming == (("close", 4403) if decided == "revoke" else ("welcome", None))
        # It doesn't affect clients that connect later.
        async with connected(bridge, route, "ada") as later:
            assert (await follow(bridge, later, "ada", "a"))["success"]


async def test_invalid_post_does_not_call_permissions_callback(shared_nats: NatsServer) -> None:
    app = App()
    async with serve(shared_nats, app) as bridge:
        for body in (b"{", b"[]", b'{"subjects": ["a"]}', b'{"session": "x", "subjects": []}'):
            assert (await bridge.post("/subscribe", body))[0] == 400
        assert app.asked == []


async def test_permissions_callback_is_not_called_at_max_sessions(shared_nats: NatsServer, server: ServerName) -> None:
    app = App()
    app.users["ada"] = Permissions([">"])
    async with serve(shared_nats, app, server, max_sessions=1) as bridge, connected(bridge, "events", "ada"):
        del app.asked[:]
        async with bridge.unwelcome_websocket() as client:
            assert (await last_frame(client))["code"] == 1013
        async with bridge.http.get(f"{bridge.url}/events?subjects=a") as response:
            assert response.status == 200
            assert b'"code":1013' in await response.read()
        assert app.asked == []


# POST


async def test_post_by_other_identity_is_answered_as_unknown_session(shared_nats: NatsServer, route: str) -> None:
    app = App()
    app.users |= {
        "ada": Permissions([">"], identity="ada"),
        "tab": Permissions(["none"], identity="ada"),
        "bob": Permissions([">"], identity="bob"),
        "anonymous": Permissions([">"]),
    }
    async with serve(shared_nats, app) as bridge, connected(bridge, route, "ada") as ada:
        unknown = await bridge.post("/subscribe", {"session": "x", "subjects": ["a"], "id": 1}, Cookie="user=ada")
        assert unknown[0] == 404
        body = {"session": ada.session, "subjects": ["a"], "id": 1}
        for other in ("bob", "anonymous"):
            for path in ("/subscribe", "/unsubscribe"):
                status, reply = await bridge.post(path, body, Cookie=f"user={other}")
                assert (status, reply | {"action": "subscribe"}) == unknown
        assert (await bridge.post("/subscribe", body))[0] == 401
        # The identity alone is used: what may be followed was decided when the session began.
        assert (await bridge.post("/subscribe", body, Cookie="user=tab"))[0] == 200
        (session,) = sessions(bridge)
        assert session.subscriptions == ("a",)


async def test_session_id_suffices_for_session_without_identity(shared_nats: NatsServer, route: str) -> None:
    app = App()
    app.users |= {"anonymous": Permissions([">"]), "bob": Permissions([">"], identity="bob")}
    async with serve(shared_nats, app) as bridge, connected(bridge, route, "anonymous") as client:
        body = {"session": client.session, "subjects": ["a"]}
        assert (await bridge.post("/subscribe", body, Cookie="user=bob"))[0] == 200
        assert (await bridge.post("/subscribe", body))[0] == 401


# The end of permissions


async def test_only_close_is_sent_after_permissions_expire(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName, route: str
) -> None:
    app, subject = App(), publisher.subject("a")
    async with serve(shared_nats, app, server) as bridge, held() as clock:
        app.users["ada"] = Permissions([">"], expires=time.time() + 5)
        app.users["bob"] = Permissions([">"])
        async with connected(bridge, route, "ada") as ada, connected(bridge, route, "bob") as bob:
            await follow(bridge, ada, "ada", subject)
            await follow(bridge, bob, "bob", subject)
            numbers = [b"%d" % number for number in range(20)]
            await publisher.send(subject, *numbers[:10])
            assert await ada.data(10) == list(range(10))
            await clock.forward(4.9)
            await publisher.send(subject, numbers[10])
            assert await ada.data(1) == [10]
            await clock.forward(0.1)
            await publisher.send(subject, *numbers[11:])
            frame = await last_frame(ada)
            assert (frame["code"], frame["reconnect"]) == (4401, False)
            assert await bob.data(20) == list(range(20))


async def test_pending_messages_are_dropped_when_permissions_expire(
    shared_nats: NatsServer, publisher: Publisher, route: str
) -> None:
    app, subject = App(), publisher.subject("a")
    app.users["ada"] = Permissions([">"])
    async with (
        serve(shared_nats, app, flush_interval=0.5) as bridge,
        connected(bridge, route, "ada") as ada,
        held() as clock,
    ):
        await follow(bridge, ada, "ada", subject)
        (session,) = sessions(bridge)
        expires = time.time() + 0.01
        assert await bridge.extension.update_permissions(Permissions([">"], expires=expires), session=session.key) == (
            1,
            True,
        )
        await publisher.send(subject, b"1")
        await until(lambda: bridge.runtime.sessions.hub._broadcaster._hit)
        clock.jump(0.6)
        frame = await ada.frame()
        assert (frame["type"], frame["code"]) == ("close", 4401)


# Revoking and changing


@pytest.mark.parametrize("by", ["identity", "id", "key", "session"])
async def test_revoke_closes_matching_session_immediately(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName, route: str, by: str
) -> None:
    app, subject = App(), publisher.subject("a")
    app.users |= {name: Permissions([">"], identity=name) for name in ("ada", "bob")}
    async with (
        serve(shared_nats, app, server, flush_interval=0.5) as bridge,
        connected(bridge, route, "ada") as ada,
        connected(bridge, route, "bob") as bob,
        held() as clock,
    ):
        await follow(bridge, ada, "ada", subject)
        await follow(bridge, bob, "bob", subject)
        await publisher.send(subject, b"1")
        await until(lambda: bridge.runtime.sessions.hub._broadcaster._hit)
        (session,) = (each for each in bridge.extension.sessions if each.identity == "ada")
        named = {"id": ada.session, "key": ada.key, "session": session}
        chosen: Any = {"identity": "ada"} if by == "identity" else {"session": named[by]}
        assert await bridge.extension.revoke(**chosen) == (1, True)
        frame = await ada.frame()
        assert (frame["type"], frame["code"], frame["reconnect"]) == ("close", 4403, False)
        await clock.forward(0.5)
        assert await bob.data(1) == [1]
        assert await bridge.extension.revoke(**chosen) == (0, True)


async def test_update_permissions_applies_to_live_sessions(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName, route: str
) -> None:
    app, base = App(), publisher.base
    app.users["ada"] = Permissions([f"{base}.a.>", f"{base}.b.>"], identity="ada")
    async with (
        serve(shared_nats, app, server) as bridge,
        connected(bridge, route, "ada") as first,
        connected(bridge, route, "ada") as second,
    ):
        for client in (first, second):
            await follow(bridge, client, "ada", f"{base}.a.>", f"{base}.b.>")
        narrowed = Permissions([f"{base}.a.>", f"{base}.c.>"], [f"{base}.a.secret"])
        assert await bridge.extension.update_permissions(narrowed, identity="ada") == (2, True)
        for client in (first, second):
            ended = await client.frame()
            assert (ended["type"], ended["subjects"], ended["code"]) == (
                "unsubscribed",
                [f"{base}.b.>"],
                "subject.forbidden",
            )
            assert (await follow(bridge, client, "ada", f"{base}.c.x"))["success"]
            assert (await follow(bridge, client, "ada", f"{base}.b.x"))["code"] == "subject.forbidden"
        for subject in ("b.x", "a.secret", "a.x", "c.x"):
            await publisher.send(f"{base}.{subject}", json.dumps(subject).encode())
        for client in (first, second):
            assert await client.data(2) == ["a.x", "c.x"]
        with pytest.raises(ValueError, match="identity"):
            await bridge.extension.update_permissions(Permissions(identity="bob"), identity="ada")
        for wrong in ({}, {"identity": "ada", "session": first.session}):
            with pytest.raises(ValueError, match="identity or session"):
                await bridge.extension.update_permissions(narrowed, **wrong)
            with pytest.raises(ValueError, match="identity or session"):
                await bridge.extension.revoke(**wrong)
        assert await bridge.extension.update_permissions(narrowed, session="unknown") == (0, True)
        assert {session.identity for session in bridge.extension.sessions} == {"ada"}


async def test_extension_sessions_lists_open_sessions(shared_nats: NatsServer, route: str) -> None:
    app = App()
    app.users["ada"] = Permissions([">"], identity="ada")
    async with serve(shared_nats, app) as bridge:
        view = bridge.extension.sessions
        assert (len(view), list(view)) == (0, [])
        async with connected(bridge, route, "ada") as client:
            await follow(bridge, client, "ada", "a")
            (session,) = view
            assert session in view
            transport = {"websocket": "websocket", "events": "sse"}[route]
            assert (session.key, session.identity, session.transport) == (client.key, "ada", transport)
            assert (session.permissions, session.subscriptions) == (app.users["ada"], ("a",))
        await until(lambda: not len(view))
        assert session not in view


# Names of the app's own


async def test_thousand_sessions_with_ten_permission_sets_are_isolated(
    shared_nats: NatsServer, publisher: Publisher
) -> None:
    app, base = App(), publisher.base
    for number in range(10):
        app.users[str(number)] = Permissions(
            [f"{base}.>"],
            [f"{base}.shared.{number}"],
            aliases={"me.": f"{base}.users.{number}.", "we.": f"{base}.users.{number % 3}."},
            identity=str(number),
        )
    patterns = ["me.>", "we.orders.*", f"{base}.>", f"{base}.shared.*"]
    async with serve(shared_nats, app, max_sessions_per_identity=100) as bridge, contextlib.AsyncExitStack() as stack:
        clients = []
        for number in range(1000):
            user = str(number % 10)
            client = await stack.enter_async_context(connected(bridge, ROUTES[number // 10 % 2], user, *patterns))
            if isinstance(client, WebSocketClient):
                await client.follow(*patterns)
            clients.append((user, client))
        assert len(sessions(bridge)) == 1000
        subjects = [f"{base}.{kind}" for of in range(10) for kind in (f"users.{of}.orders.1", f"shared.{of}")]
        for subject in subjects:
            await publisher.send(subject, json.dumps(subject).encode())
        await publisher.send(f"{base}.end", b'"end"')
        for user, client in clients:
            got = await _messages_before_end(client)
            assert got == _expected(base, int(user), subjects)


async def _messages_before_end(client: WebSocketClient | EventClient) -> list[tuple[str, str, str]]:
    """Return the pattern, subject and data of each message before the one with "end"."""
    got: list[tuple[str, str, str]] = []
    while not got or got[-1][2] != "end":
        frame = await client.frame()
        if frame["type"] == "message":
            got.append((frame["pattern"], frame["subject"], frame["data"]))
    return got[:-1]


def _expected(base: str, user: int, subjects: list[str]) -> list[tuple[str, str, str]]:
    own, team = f"{base}.users.{user}.", f"{base}.users.{user % 3}."
    expected = []
    for subject in subjects:
        if subject.startswith(own):
            expected.append(("me.>", subject.replace(own, "me."), subject))
        if subject.startswith(f"{team}orders."):
            expected.append(("we.orders.*", subject.replace(team, "we."), subject))
        if not subject.startswith((own, team)) and subject != f"{base}.shared.{user}":
            expected.append((f"{base}.>", subject, subject))
            if ".shared." in subject:
                expected.append((f"{base}.shared.*", subject, subject))
    return expected


async def test_no_frame_reveals_real_subjects_behind_aliases(nats_server: NatsServer, route: str) -> None:
    app = App()
    app.users["ada"] = Permissions(
        ["hidden.>"], ["hidden.9.denied"], aliases={"me.": "hidden.9."}, allow_wildcards=True, identity="ada"
    )
    nats_server.config = """
        authorization { users: [{ user: u, password: p, permissions: { subscribe: { deny: "hidden.9.shut" } } }] }
        no_auth_user: u
    """
    nats_server.restart()
    commands = (["me.>"], ["me.denied"], ["me.shut"], ["me.*.x", "hidden.9.x"], ["me.a..b"], ["me." + "x" * 250])
    frames: list[dict[str, Any]] = []
    async with serve(nats_server, app) as bridge, connected(bridge, route, "ada") as client:
        frames += [await follow(bridge, client, "ada", *wanted) for wanted in commands]
        async with Publisher.connected(nats_server) as publisher:
            await publisher.send("hidden.9.y.x", b"1")
        while frames[-1]["type"] != "message":
            frames.append(await client.frame())
        nats_server.restart()
        while not frames or frames[-1] != {"type": "status", "nats": "connected"}:
            frames.append(await client.frame())
        frames.append(await follow(bridge, client, "ada", "me.z"))
        await bridge.extension.update_permissions(Permissions(["other"]), identity="ada")
        frames.append(await client.frame())
    assert {frame["type"] for frame in frames} == {"reply", "gap", "status", "message", "unsubscribed"}
    assert {"subject.forbidden", "nats.refused", "subject.invalid"} <= {frame.get("code") for frame in frames}
    shown = [frame for frame in frames if "hidden" in json.dumps(frame)]
    # A real name that the client has guessed is part of the reply to that command.
    assert [frame["subjects"] for frame in shown] == [["hidden.9.x"]] * len(shown)


async def test_client_awaiting_permissions_is_closed_with_1001_on_shutdown(
    shared_nats: NatsServer, server: ServerName, route: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    app.wait = asyncio.Event().wait
    async with serve(shared_nats, app, server) as bridge:
        path = "/stream" if route == "websocket" else "/events"
        frame = asyncio.create_task(first_frame(bridge, route))
        await until(lambda: app.asked == [f"GET /nats{path} None"])
        sessions(bridge).close_all("The server is going away")
        assert (await frame)["code"] == 1001
        status, reply = await bridge.post("/subscribe", {"session": "x", "subjects": ["a"]})
        assert (status, reply["code"]) == (503, "session.unreachable")
    assert "has failed" not in caplog.text


async def first_frame(bridge: Bridge, route: str) -> dict[str, Any]:
    if route == "websocket":
        async with bridge.unwelcome_websocket() as client:
            return await client.frame()
    async with bridge.http.get(f"{bridge.url}/events") as response:
        return await EventClient(response).frame()
