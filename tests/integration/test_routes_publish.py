"""``POST /publish`` and ``POST /request``, and both on a WebSocket, with a real NATS server and a real stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from sanic import Request

from sanic_nats_bridge import Permissions, Publication
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, WAIT_SECONDS, Bridge, ServerName, flush, running, until
from tests.support.streams import jetstream_fixture

shared_jetstream = jetstream_fixture("module")


class Nats:
    """A client of the server, with a stream and subjects of its own."""

    def __init__(self) -> None:
        self.client = Client()
        self.name = f"t{uuid4().hex}"
        self.messages: list[Msg] = []

    async def follow(self, pattern: str) -> None:
        async def keep(message: Msg) -> None:
            self.messages.append(message)

        await self.client.subscribe(pattern, cb=keep)
        await flush(self.client)

    async def answer(self, subject: str, payload: bytes, **headers: str) -> None:
        async def respond(message: Msg) -> None:
            self.messages.append(message)
            await self.client.publish(message.reply, payload, headers=dict(headers) or None)

        await self.client.subscribe(subject, cb=respond)
        await flush(self.client)

    async def stored(self) -> list[tuple[str, bytes]]:
        context = self.client.jetstream()
        state = (await context.stream_info(self.name)).state
        messages = [await context.get_msg(self.name, seq=number) for number in range(1, state.last_seq + 1)]
        return [(message.subject or "", message.data or b"") for message in messages]


@pytest.fixture
async def nats(shared_jetstream: NatsServer) -> AsyncIterator[Nats]:
    nats = Nats()
    await nats.client.connect(shared_jetstream.url)
    await nats.client.jetstream().add_stream(name=nats.name, subjects=[f"{nats.name}.stored.>"])
    yield nats
    await nats.client.jetstream().delete_stream(nats.name)
    await nats.client.close()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


@pytest.fixture
async def served(shared_jetstream: NatsServer, nats: Nats, server: ServerName) -> AsyncIterator[Bridge]:
    def permissions(request: Request) -> Permissions | None:
        user = request.args.get("user") or request.headers.get("user")
        return None if user == "nobody" else Permissions(publish=[f"{nats.name}.>"], request=[f"{nats.name}.svc.>"],
                                                          aliases={"me.": f"{nats.name}.{user or 'anonymous'}."},
                                                          identity=user)  # fmt: skip

    async with running(
        servers=shared_jetstream.url, permissions=permissions, server=server, publish_headers=["Trace"]
    ) as bridge:
        yield bridge


async def test_post_publishes_without_a_session(served: Bridge, nats: Nats) -> None:
    await nats.follow(f"{nats.name}.>")
    body = {"subject": "me.say", "data": {"a": 1.50}, "headers": {"trace": ["x", "y"]}, "id": 3, "session": "ignored"}
    status, reply = await served.post("/publish", body, user="ada")
    assert (status, reply["success"], reply["id"], reply["action"]) == (200, True, 3, "publish")
    await until(lambda: bool(nats.messages))
    message = nats.messages[0]
    assert (message.subject, message.data) == (f"{nats.name}.ada.say", b'{"a": 1.5}')
    assert message.headers == {"Bridge-Identity": "ada", "Trace": "y"}  # nats-py keeps one value of each


async def test_repeated_post_with_one_id_is_stored_once(served: Bridge, nats: Nats) -> None:
    body = {"subject": f"{nats.name}.stored.a", "data": 1, "ack": True, "msg_id": "0" * 22}
    replies = [(await served.post("/publish", body, user="ada"))[1] for _ in range(3)]
    assert [(reply["sequence"], reply["duplicate"]) for reply in replies] == [(1, False), (1, True), (1, True)]
    assert replies[0]["stream"] == nats.name
    # Another client, another subject, and one without an identity are other messages.
    await served.post("/publish", body, user="bob")
    await served.post("/publish", body | {"subject": f"{nats.name}.stored.b"}, user="ada")
    await served.post("/publish", body)
    assert [subject[-1] for subject, _ in await nats.stored()] == ["a", "a", "b", "a"]


async def test_request_by_post_has_the_first_answer(served: Bridge, nats: Nats) -> None:
    await nats.answer(f"{nats.name}.svc.price", b'{"price": 9.50}')
    status, reply = await served.post("/request", {"subject": f"{nats.name}.svc.price", "data": {"sku": 7}}, user="a/b")
    assert (status, reply["success"], reply["data"]) == (200, True, {"price": 9.5})
    assert nats.messages[0].headers == {"Bridge-Identity": "a%2Fb"}
    assert nats.messages[0].data == b'{"sku": 7}'


ERRORS: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "not allowed to publish": ("/publish", {"subject": "other"}, 403, "publish.forbidden"),
    "not allowed to ask": ("/request", {"subject": "{}.x"}, 403, "request.forbidden"),
    "real name of an alias": ("/publish", {"subject": "{}.ada.say"}, 403, "publish.forbidden"),
    "wildcard": ("/publish", {"subject": "{}.*"}, 400, "subject.invalid"),
    "header": ("/publish", {"subject": "{}.x", "headers": {"Nats-Msg-Id": ["1"]}}, 403, "publish.forbidden"),
    "identity": ("/request", {"subject": "{}.svc.x", "headers": {"bridge-IDENTITY": ["1"]}}, 403, "publish.forbidden"),
    "no subject": ("/publish", {"data": 1}, 400, "command.invalid"),
    "other action": ("/publish", {"subject": "{}.x", "action": "request"}, 400, "command.invalid"),
    "no stream": ("/publish", {"subject": "{}.x", "ack": True}, 424, "publish.unstored"),
    "no responder": ("/request", {"subject": "{}.svc.none"}, 424, "request.no_responders"),
    "service error": ("/request", {"subject": "{}.svc.fail"}, 424, "request.failed"),
    "no answer": ("/request", {"subject": "{}.svc.silent", "timeout": 0.05}, 424, "request.timeout"),
    "large data": ("/publish", {"subject": "{}.x", "data": "x" * 65_010}, 413, "limit.size"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("transport", ["post", "websocket"])
async def test_errors_are_alike_on_both_ways(served: Bridge, nats: Nats, name: str, transport: str) -> None:
    await nats.follow(f"{nats.name}.svc.silent")
    await nats.answer(f"{nats.name}.svc.fail", b"", **{"Nats-Service-Error-Code": "404", "Nats-Service-Error": "gone"})
    path, body, status, code = ERRORS[name]
    body = body | ({"subject": body["subject"].format(nats.name)} if "subject" in body else {}) | {"id": 1}
    if transport == "post":
        found, reply = await served.post(path, body, user="ada")
        assert found == status
    elif name == "other action":
        return
    else:
        async with served.websocket("user=ada") as client:
            await client.send({"action": path.removeprefix("/")} | body)
            reply = await client.frame()
    assert (reply["type"], reply["id"], reply["success"], reply["code"]) == ("reply", 1, False, code)
    assert reply.get("service_code") == ("404" if name == "service error" else None)
    assert "ada" not in reply["message"] or name == "real name of an alias"


async def test_unknown_client_is_refused(served: Bridge, nats: Nats) -> None:
    assert (await served.post("/publish", {"subject": f"{nats.name}.x"}, user="nobody"))[0] == 401


async def test_get_and_foreign_origins_are_refused(served: Bridge, nats: Nats) -> None:
    for path in ("/publish", "/request"):
        async with served.http.get(f"{served.url}{path}") as response:
            assert response.status == 405
        status, reply = await served.post(path, {"subject": f"{nats.name}.x"}, Origin="http://evil.example")
        assert (status, reply["code"]) == (403, "origin.forbidden")


async def test_rate_is_that_of_the_identity(shared_jetstream: NatsServer, nats: Nats) -> None:
    def permissions(request: Request) -> Permissions:
        return Permissions(publish=[f"{nats.name}.>"], identity=request.headers["user"])

    async with running(
        servers=shared_jetstream.url, permissions=permissions, publish_rate=0.001, publish_burst=2
    ) as bridge:
        for user in ("ada", "bob"):
            statuses = [(await bridge.post("/publish", {"subject": f"{nats.name}.x"}, user=user))[0] for _ in range(3)]
            assert statuses == [200, 200, 429]
        async with bridge.http.post(
            f"{bridge.url}/publish",
            data=b'{"subject":"%b.x"}' % nats.name.encode(),
            headers={"user": "ada", "content-type": "application/json"},
        ) as response:
            reply = await response.json()
        assert (response.status, reply["code"]) == (429, "limit.publish")
        # Its own time, after that of the one before.
        assert 1000 < int(response.headers["Retry-After"]) <= 2000
        assert abs(reply["retry"] / 1000 - int(response.headers["Retry-After"])) <= 1


async def test_revoked_client_publishes_nothing_while_the_app_checks(shared_jetstream: NatsServer, nats: Nats) -> None:
    checking, proceed = asyncio.Event(), asyncio.Event()

    def permissions(request: Request) -> Permissions:
        return Permissions(publish=[f"{nats.name}.>"], identity="ada")

    async with running(servers=shared_jetstream.url, permissions=permissions) as bridge:

        @bridge.extension.on_publish(f"{nats.name}.>")
        async def check(publication: Publication[Any]) -> None:
            assert publication.session is None
            checking.set()
            await proceed.wait()

        await nats.follow(f"{nats.name}.>")
        post = asyncio.create_task(bridge.post("/publish", {"subject": f"{nats.name}.x"}))
        await asyncio.wait_for(checking.wait(), WAIT_SECONDS)
        await bridge.extension.revoke(identity="ada")
        proceed.set()
        status, reply = await post
        assert (status, reply["code"]) == (401, "auth.required")
        await flush(nats.client)
        assert not nats.messages


async def test_session_of_a_publish_is_the_websockets(shared_jetstream: NatsServer, nats: Nats) -> None:
    seen: list[Publication[Any]] = []
    async with running(servers=shared_jetstream.url, publish=[f"{nats.name}.>"]) as bridge:

        @bridge.extension.on_publish(f"{nats.name}.>")
        def check(publication: Publication[Any]) -> bytes:
            seen.append(publication)
            return b'"checked"'

        await nats.follow(f"{nats.name}.>")
        async with bridge.websocket() as client:
            assert client.welcome["features"] == ["publish", "request"]
            await client.send({"action": "publish", "subject": f"{nats.name}.x", "data": [1], "id": "p"})
            assert (await client.frame())["id"] == "p"
            assert seen[0].session in bridge.extension.sessions
            assert (seen[0].identity, seen[0].data) == (None, [1])
        await until(lambda: bool(nats.messages))
        assert nats.messages[0].data == b'"checked"'


async def test_publishes_of_a_websocket_arrive_in_order(served: Bridge, nats: Nats) -> None:
    await nats.follow(f"{nats.name}.ordered")
    async with served.websocket("user=ada") as client:
        for number in range(30):
            await client.send({"action": "publish", "subject": f"{nats.name}.ordered", "data": number})
        for _ in range(30):
            assert (await client.frame())["success"]
    await until(lambda: len(nats.messages) == 30)
    assert [int(message.data) for message in nats.messages] == list(range(30))
