"""Limits and metrics of publishes and requests, with a real NATS server: what one client causes harms no other."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sanic import Request

from sanic_nats_bridge import Permissions, Publication
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import (
    SERVERS,
    WAIT_SECONDS,
    Bridge,
    Publisher,
    ServerName,
    WebSocketClient,
    flush,
    running,
    until,
)
from tests.support.raw import UPGRADE, client_frame, raw_connection
from tests.support.streams import Stream, jetstream_fixture

shared_jetstream = jetstream_fixture("module")


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


async def user_permissions(request: Request) -> Permissions:
    user = request.args.get("user") or request.headers.get("user")
    lists: dict[str, Any] = {name: [">"] for name in ("subscribe", "publish", "request")}
    return Permissions(identity=user, **lists)


@contextlib.asynccontextmanager
async def serving(nats: NatsServer, server: ServerName = "sanic", **settings: Any) -> AsyncIterator[Bridge]:
    async with running(servers=nats.url, server=server, permissions=user_permissions, **settings) as bridge:
        yield bridge


async def all_to_the_end(client: WebSocketClient) -> list[dict[str, Any]]:
    frames = [await client.frame()]
    while frames[-1]["type"] != "close":
        frames.append(await client.frame())
    return frames


# Refusals

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "the app refuses": ({"subject": "checked", "data": 0}, "publish.invalid"),
    "the schema refuses": ({"subject": "checked", "data": "x"}, "publish.invalid"),
    "not allowed": ({"subject": "$JS.API.INFO"}, "publish.forbidden"),
    "header": ({"subject": "a", "headers": {"Nats-TTL": ["1"]}}, "publish.forbidden"),
    "unstored": ({"subject": "no.stream", "ack": True}, "publish.unstored"),
    "no responders": ({"action": "request", "subject": "no.service"}, "request.no_responders"),
    "large": ({"subject": "a", "data": "x" * 2000}, "limit.size"),
}


@pytest.mark.parametrize("reason", REFUSALS)
async def test_many_refusals_do_not_close_session(
    shared_jetstream: NatsServer, server: ServerName, reason: str
) -> None:
    command, code = REFUSALS[reason]
    async with serving(shared_jetstream, server, publish_burst=100, max_publish_bytes=1000) as bridge:

        @bridge.extension.on_publish("checked", schema=int)
        def check(publication: Publication[int]) -> None:
            raise ValueError("not today")

        async with bridge.websocket("user=ada") as client:
            for number in range(41):
                reply = await client.ask({"action": "publish"} | command | {"id": number})
                assert (reply["id"], reply["success"], reply["code"]) == (number, False, code)
            assert (await client.ask({"action": "ping"}))["success"]
            assert bridge.extension.stats().refused == {code: 41}


INVALID: dict[str, dict[str, Any]] = {
    "no subject": {"data": 1},
    "wildcard": {"subject": "a.*"},
    "invalid subject": {"subject": "a b"},
    "not base64": {"subject": "a", "data": "?", "encoding": "base64"},
    "header with a line end": {"subject": "a", "headers": {"Trace": ["x\r\ny"]}},
    "id without ack": {"subject": "a", "msg_id": "1"},
    "request without id": {"action": "request", "subject": "a"},
}


@pytest.mark.parametrize("reason", INVALID)
async def test_more_than_twenty_invalid_publishes_close_session(
    shared_jetstream: NatsServer, server: ServerName, reason: str
) -> None:
    async with (
        serving(shared_jetstream, server, publish_burst=100, command_burst=100) as bridge,
        bridge.websocket("user=ada") as client,
    ):
        for _ in range(21):
            await client.send({"action": "publish"} | INVALID[reason])
        *replies, close = await all_to_the_end(client)
        assert len(replies) == 20
        assert {reply["code"] for reply in replies} <= {"command.invalid", "subject.invalid"}
        assert (close["code"], close["reason"]) == (4429, "Too many invalid commands")


@pytest.mark.parametrize("action", ["publish", "request"])
async def test_client_that_ignores_the_rate_is_closed_and_others_are_served(
    shared_jetstream: NatsServer, server: ServerName, publisher: Publisher, action: str
) -> None:
    received: list[bytes] = []

    async def keep(message: Any) -> None:
        received.append(message.data)

    async with (
        serving(shared_jetstream, server, publish_rate=0.001, publish_burst=10) as bridge,
        bridge.websocket("user=bob") as other,
        bridge.websocket("user=ada") as client,
        Publisher.connected(shared_jetstream) as follower,
    ):
        await follower.client.subscribe(follower.subject(">"), cb=keep)
        await flush(follower.client)
        for number in range(300):
            command = {"action": action, "subject": follower.subject("a"), "data": number, "id": number}
            await client.send(command | ({"timeout": 60} if action == "request" else {}))
        frames = await all_to_the_end(client)
        refused = [frame for frame in frames if frame["type"] == "reply" and not frame["success"]]
        assert {frame["code"] for frame in refused} == {"limit.publish"}
        assert (frames[-1]["code"], frames[-1]["reason"]) == (4429, "Too many publishes")
        # Commands have a budget of their own, and so has each session.
        assert (await other.ask({"action": "publish", "subject": follower.subject("a"), "data": "other"}))["success"]
        await until(lambda: b'"other"' in received)
        assert received == [b"%d" % number for number in range(10)] + [b'"other"']
        await until(lambda: bridge.runtime.publisher.in_progress == 0)


# Shares


async def test_one_client_leaves_requests_and_acknowledgements_to_others(
    shared_jetstream: NatsServer, server: ServerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanic_nats_bridge.publishing.clients._MAX_UNACKNOWLEDGED", 40)
    async with (
        serving(shared_jetstream, server, max_requests_per_worker=40, request_timeout=600) as bridge,
        contextlib.AsyncExitStack() as stack,
        Publisher.connected(shared_jetstream) as service,
    ):

        async def echo(message: Any) -> None:
            await service.client.publish(message.reply, message.data)

        async def ignore(message: Any) -> None:
            pass

        await service.client.subscribe(service.subject("echo"), cb=echo)
        await service.client.subscribe(service.subject("silent"), cb=ignore)
        await flush(service.client)
        clients = [await stack.enter_async_context(bridge.websocket("user=mallory")) for _ in range(10)]
        silent = service.subject("silent")
        for client in clients:
            for number in range(4):
                await client.send({"action": "request", "subject": silent, "id": number, "timeout": 600})
                await client.send({"action": "publish", "subject": silent, "id": number, "ack": True})
        await until(lambda: bridge.extension.stats().refused == {"limit.requests": 20, "limit.publish": 20})
        assert bridge.extension.stats().current_publishes == {"publish": 20, "request": 20}
        async with bridge.websocket("user=ada") as honest, Stream.made(shared_jetstream) as stream:
            for number in range(10):
                reply = await honest.ask({"action": "request", "subject": service.subject("echo"), "id": number})
                assert reply["success"], reply
                reply = await honest.ask({"action": "publish", "subject": stream.subject("a"), "ack": True})
                assert reply["sequence"] == number + 1
        assert (await bridge.post("/request", {"subject": service.subject("echo")}, user="bob"))[0] == 200
        status, reply = await bridge.post("/request", {"subject": service.subject("echo")}, user="mallory")
        assert (status, reply["code"]) == (429, "limit.requests")
        for client in clients:
            await client.connection.close()
        await until(lambda: bridge.extension.stats().current_publishes == {"publish": 0, "request": 0})


async def test_large_publishes_behind_a_slow_check_take_bounded_memory(
    shared_jetstream: NatsServer, server: ServerName
) -> None:
    proceed = asyncio.Event()
    async with serving(shared_jetstream, server) as bridge:

        @bridge.extension.on_publish(">")
        async def check(publication: Publication[Any]) -> None:
            await proceed.wait()

        async with bridge.websocket("user=ada") as client:
            for number in range(40):
                await client.send({"action": "publish", "subject": "a", "data": "x" * 64_000, "id": number})
            refused = [await client.frame() for _ in range(24)]
            assert {reply["code"] for reply in refused} == {"limit.publish"}
            assert [reply["id"] for reply in refused] == [*range(16, 40)]
            # Other commands don't wait.
            assert (await client.ask({"action": "ping"}))["success"]
            proceed.set()
            assert [(await client.frame())["id"] for _ in range(16)] == [*range(16)]


async def test_large_answers_that_a_slow_client_does_not_read_are_held_and_counted(
    shared_jetstream: NatsServer,
) -> None:
    waiting: list[str] = []
    large = b'"%b"' % (b"x" * 900_000)
    request = f"GET /nats/stream?user=ada HTTP/1.1\r\n{UPGRADE}\r\n"
    async with (
        serving(shared_jetstream, max_pending_bytes=65_536, max_requests=8, publish_burst=100, write_timeout=3600,
                request_timeout=600) as bridge,
        Publisher.connected(shared_jetstream) as service,
        raw_connection(bridge.port, request, limit=1000) as (reader, writer),
    ):  # fmt: skip

        async def answer(message: Any) -> None:
            if message.subject == service.subject("later"):
                waiting.append(message.reply)
            else:
                await service.client.publish(message.reply, large)

        def ask(name: str, number: int) -> None:
            command = {"action": "request", "subject": service.subject(name), "id": number}
            writer.write(client_frame(json.dumps(command).encode()))

        await service.client.subscribe(service.subject("*"), cb=answer)
        await flush(service.client)
        for number in range(5):
            ask("later", number)
        await until(lambda: len(waiting) == 5)
        (session,) = bridge.extension.sessions
        sent = 0
        while session.is_writable:
            ask("now", sent)
            sent += 1
            assert sent < 100
            await until(lambda: bridge.runtime.stats().answered_requests == sent)  # noqa: B023
        pending = session.pending
        assert pending < 65_536 + 2 * len(large)
        for reply in waiting:
            await service.client.publish(reply, large)
        await until(lambda: bridge.runtime.publisher.in_progress == 0)
        # They wait outside of the buffer, and still count.
        assert session.pending <= pending
        assert bridge.extension.stats().current_publishes == {"publish": 0, "request": 5}
        assert (await bridge.post("/request", {"subject": service.subject("now")}, user="bob"))[0] == 200
        told = b""
        replies = 0
        async with asyncio.timeout(WAIT_SECONDS):
            while replies < sent + 5:
                part = await reader.read(1 << 20)
                assert part
                told += part
                replies += told.count(b'"action":"request"')
                told = told[-17:]  # shorter than what is counted
        assert bridge.extension.stats().current_publishes == {"publish": 0, "request": 0}


# Metrics


async def test_publishes_and_requests_are_counted_by_result(shared_jetstream: NatsServer, server: ServerName) -> None:
    async with (
        serving(shared_jetstream, server, metrics=True) as bridge,
        Publisher.connected(shared_jetstream) as service,
        Stream.made(shared_jetstream) as stream,
        bridge.websocket("user=ada") as client,
    ):

        async def echo(message: Any) -> None:
            await service.client.publish(message.reply, message.data)

        await service.client.subscribe(service.subject("echo"), cb=echo)
        await flush(service.client)
        ask = {"subject": service.subject("echo"), "id": 1}
        store = {"subject": stream.subject("a"), "ack": True, "msg_id": "1", "id": 1}
        for _ in range(2):
            assert (await client.ask({"action": "publish"} | ask))["success"]
            assert (await client.ask({"action": "publish"} | store))["success"]
            assert (await client.ask({"action": "request"} | ask))["success"]
        assert (await bridge.post("/publish", ask, user="bob"))[0] == 200
        assert (await bridge.post("/publish", store, user="bob"))[0] == 200
        assert (await bridge.post("/request", ask, user="bob"))[0] == 200
        assert (await bridge.post("/request", ask | {"subject": "no.service"}, user="bob"))[0] == 424
        # The app's own don't count.
        await bridge.extension.publish("a", 1)
        found = bridge.extension.stats()
        assert found.published == {"sent": 3, "stored": 2, "duplicate": 1}
        assert found.answered_requests == 3
        assert found.current_publishes == {"publish": 0, "request": 0}
        assert found.refused == {"request.no_responders": 1}
        async with bridge.http.get(f"{bridge.url}/metrics") as response:
            lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
        values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
        for result, count in found.published.items():
            assert sum(value for name, value in values.items() if f'result="{result}"' in name) == count
        assert json.dumps(sorted(values)).count("natsbridge_current_publishes") == 2
