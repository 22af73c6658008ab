import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import (
    SERVERS,
    WAIT_SECONDS,
    Bridge,
    Publisher,
    ServerName,
    WebSocketClient,
    running,
    sanic_only,
    until,
)
from tests.support.raw import reset, session_of, sessions

MAX_COMMAND_BYTES = 65_536

DEEP = "[" * 20_000 + "]" * 20_000  # deeper than the decoder follows on any Python


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


@pytest.fixture
async def busy_subject(bridge: Bridge, publisher: Publisher) -> AsyncIterator[str]:
    """Publish on a subject continuously, and check that its follower gets every message in order."""
    subject = publisher.subject("followed")
    stopped = asyncio.Event()

    async def publish() -> int:
        published = 0
        while published < 5 or not stopped.is_set():
            await publisher.send(subject, b"%d" % published)
            published += 1
            await asyncio.sleep(0.002)
        return published

    async with bridge.websocket() as follower:
        await follower.follow(subject)
        publishing = asyncio.create_task(publish())
        yield subject
        stopped.set()
        published = await publishing
        assert await follower.data(published) == list(range(published))


async def next_reply(client: WebSocketClient) -> dict[str, Any]:
    """Return the next frame that isn't a message."""
    while (frame := await client.frame())["type"] == "message":
        pass
    return frame


async def close_frame_and_code(client: WebSocketClient) -> tuple[dict[str, Any], int | None]:
    """Return the last frame and the close code after it."""
    frame = await next_reply(client)
    with pytest.raises(ConnectionClosed) as closed:
        await client.frame()
    assert closed.value.rcvd is not None
    return frame, closed.value.rcvd.code


def subscribe(*subjects: str, **fields: Any) -> dict[str, Any]:
    return {"action": "subscribe", "subjects": subjects} | fields


async def test_first_frame_is_welcome(bridge: Bridge) -> None:
    async with bridge.websocket() as client, bridge.websocket() as other:
        assert len(client.session) >= 32
        assert client.session != other.session
        assert client.welcome == {
            "type": "welcome",
            "success": True,
            "data": "Successfully connected",
            "session": client.session,
            "protocol": 1,
            "features": ["publish", "request"],
            "heartbeat": 15,
            "nats": "connected",
        }


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("protocol=2", "protocol must be 1, the version that this server supports"),
        ("protocol=abc", "protocol must be 1, the version that this server supports"),
        ("protocol=", "protocol must be 1, the version that this server supports"),
        ("from=5", "Not supported here: 'from' and 'after'"),
        ("token=x&after=", "Not supported here: 'from' and 'after'"),
        ("subjects=a", "'subjects' is a parameter of /events; on a WebSocket send a subscribe command"),
        ("token=x&topic=a", "The parameter is 'subjects', not 'topic': one for each subject"),
    ],
)
async def test_websocket_with_unsupported_query_closes_with_4400(bridge: Bridge, query: str, reason: str) -> None:
    async with bridge.unwelcome_websocket(query) as client:
        assert await client.frame() == {"type": "close", "code": 4400, "reason": reason, "reconnect": False}
        with pytest.raises(ConnectionClosed) as closed:
            await client.frame()
        assert (closed.value.rcvd and (closed.value.rcvd.code, closed.value.rcvd.reason)) == (4400, reason)
    assert len(bridge.extension.sessions) == 0


async def test_other_query_parameters_are_ignored(bridge: Bridge) -> None:
    async with bridge.websocket("protocol=1&token=x&theme=a&empty="):
        assert len(bridge.extension.sessions) == 1


async def test_command_of_panini_example_subscribes(bridge: Bridge, publisher: Publisher) -> None:
    async with bridge.websocket() as client:
        assert await client.ask('{"subjects":["test.subject"],"action":"subscribe"}') == {
            "type": "reply",
            "action": "subscribe",
            "success": True,
            "message": "Successfully connected to events: 'test.subject'",
            "subjects": ["test.subject"],
            "active": True,
        }
        await publisher.send("test.subject", b'{"key1":"value1"}')
        assert await client.frame() == {"type": "message", "subject": "test.subject", "data": {"key1": "value1"}}


INVALID_SUBJECTS = {
    "empty": "",
    "empty token": "a..b",
    "CR LF": "a\r\nPUB b 0\r\n",
    "space": "a b",
    "NUL": "a\0b",
    "not ASCII": "ä",
    "5,000 bytes": "a" * 5_000,
    "33 tokens": ".".join("a" * 33),
    "wildcard inside a token": "a*.b",
    "> before the end": "a.>.b",
}

BAD_INPUT: dict[str, tuple[str | bytes | dict[str, Any], str]] = {
    "broken JSON": ('{"action": ', "command.invalid"),
    "two JSON documents": ('{"action": "ping"} {"action": "ping"}', "command.invalid"),
    "empty text frame": ("", "command.invalid"),
    "not an object": ("[]", "command.invalid"),
    "binary frame": (b'{"action": "ping"}', "command.unsupported"),
    "empty binary frame": (b"", "command.unsupported"),
    "20,000 levels": (DEEP, "command.invalid"),
    "20,000 levels in an unknown field": ('{"action": "ping", "x": ' + DEEP + "}", "command.invalid"),
    "unknown action": ({"action": "delete", "subjects": ["a"]}, "command.invalid"),
    "action isn't a string": ({"action": 1, "subjects": ["a"]}, "command.invalid"),
    "id is an object": (subscribe("a", id={}), "command.invalid"),
    "id is a fraction": (subscribe("a", id=1.5), "command.invalid"),
    "reserved action": ({"action": "authenticate", "subjects": ["a"]}, "command.unsupported"),
    "publish without subject": ({"action": "publish", "subjects": ["a"]}, "command.invalid"),
    "request without id": ({"action": "request", "subject": "a"}, "command.invalid"),
    **{f"reserved field {name}": (subscribe("a", **{name: 1}), "command.unsupported") for name in ("from", "after")},
    "no subjects": ({"action": "subscribe"}, "command.invalid"),
    "subjects empty": (subscribe(), "command.invalid"),
    "subjects is a string": ({"action": "subscribe", "subjects": "a"}, "command.invalid"),
    "a subject is a number": ({"action": "subscribe", "subjects": [1]}, "command.invalid"),
    "129 subjects": (subscribe(*(f"a.{number}" for number in range(129))), "limit.subscriptions"),
    "lone surrogate": ('{"subjects": ["a\\ud800"]}', "command.invalid"),
    **{f"subject {name}": (subscribe(subject), "subject.invalid") for name, subject in INVALID_SUBJECTS.items()},
    **{
        f"subject {subject}": (subscribe(subject), "subject.forbidden")
        for subject in ("$SYS.>", "$SYS.ACCOUNT.*.>", "_INBOX.>", "_NATSBRIDGE.x")
    },
    "one of two is forbidden": (subscribe("a", "$JS.API.>"), "subject.forbidden"),
    "unsubscribe without subscription": ({"action": "unsubscribe", "subjects": ["a"]}, "subject.not_subscribed"),
    "unsubscribe without subjects": ({"action": "unsubscribe"}, "command.invalid"),
}


@pytest.mark.parametrize(("command", "code"), BAD_INPUT.values(), ids=BAD_INPUT)
async def test_invalid_input_is_rejected_without_affecting_sessions(
    bridge: Bridge, busy_subject: str, command: str | bytes | dict[str, Any], code: str
) -> None:
    async with bridge.websocket() as client:
        await client.follow(busy_subject)
        await client.send(command)
        reply = await next_reply(client)
        assert (reply["type"], reply["success"], reply["code"]) == ("reply", False, code)
        assert reply["message"]
        await client.send({"action": "ping"})
        assert (await next_reply(client))["message"] == "pong"
        assert session_of(bridge, client.session).subscriptions == (busy_subject,)


@pytest.mark.parametrize(
    "text",
    [" " * (MAX_COMMAND_BYTES + 1), " " * 2**21, [" " * 40_000, " " * 40_000]],
    ids=["one byte", "2 MiB", "fragmented"],
)
async def test_frame_over_size_limit_closes_session_with_1009(
    bridge: Bridge, busy_subject: str, text: str | list[str]
) -> None:
    async with bridge.websocket() as client:
        await client.follow(busy_subject)
        with contextlib.suppress(ConnectionClosed):
            await client.connection.send(text)
        frame, code = await close_frame_and_code(client)
    assert (frame["type"], frame["code"], frame["reconnect"], code) == ("close", 1009, False, 1009)
    await until(lambda: len(sessions(bridge)) == 1)


async def test_command_of_exactly_size_limit_is_executed(bridge: Bridge) -> None:
    async with bridge.websocket() as client:
        assert (await client.ask('{"action": "ping"}'.ljust(MAX_COMMAND_BYTES)))["message"] == "pong"


async def test_text_frame_with_invalid_utf8_affects_only_its_sender(bridge: Bridge, busy_subject: str) -> None:
    async with bridge.websocket() as client:
        await client.connection.send(b'{"action": "\xff"}', text=True)
        assert await reply_or_close_code(client) in ("command.invalid", 1007)


async def reply_or_close_code(client: WebSocketClient) -> object:
    """Return the code of the next reply, or the close code of the connection."""
    try:
        return (await next_reply(client)).get("code")
    except ConnectionClosed as closed:
        return closed.rcvd and closed.rcvd.code


async def test_ping_is_answered_by_pong(bridge: Bridge) -> None:
    async with bridge.websocket() as client:
        assert await client.ask({"action": "ping"}) == {
            "type": "reply",
            "action": "ping",
            "success": True,
            "message": "pong",
        }


@pytest.mark.parametrize("command_id", ["1", "", "ä" * 100, 0, -1, 2**60], ids=ascii)
async def test_reply_contains_id_of_command(bridge: Bridge, command_id: str | int) -> None:
    async with bridge.websocket() as client:
        good: list[dict[str, Any]] = [subscribe("a"), {"action": "unsubscribe", "subjects": ["a"]}, {"action": "ping"}]
        bad: list[dict[str, Any]] = [subscribe("$SYS.>"), {"action": "none"}, {"action": "ping", "subjects": 1}]
        replies = [await client.ask(command | {"id": command_id}) for command in good + bad]
        assert [reply["id"] for reply in replies] == [command_id] * 6
        assert [reply["success"] for reply in replies] == [True] * 3 + [False] * 3


async def test_command_without_action_subscribes(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with bridge.websocket() as client:
        reply = await client.ask({"subjects": [subject], "unknown": {"field": 1}})
        assert (reply["action"], reply["success"], reply["subjects"]) == ("subscribe", True, [subject])


async def test_repeated_subscription_delivers_one_copy(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with bridge.websocket() as client:
        assert (await client.ask(subscribe(subject, subject)))["subjects"] == [subject]
        await client.follow(subject)
        await publisher.send(subject, b"1", b"2")
        assert await client.data(2) == [1, 2]


async def test_overlapping_patterns_deliver_one_copy_each(bridge: Bridge, publisher: Publisher) -> None:
    subject, star, rest = publisher.subject("a"), publisher.subject("*"), publisher.subject(">")
    async with bridge.websocket() as client:
        await client.follow(subject, star, rest)
        await publisher.send(subject, b"1")
        copies = await client.frames(3)
        assert {(frame["subject"], frame["data"]) for frame in copies} == {(subject, 1)}
        assert sorted(frame.get("pattern", "") for frame in copies) == sorted(["", star, rest])


async def test_command_is_executed_atomically(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with bridge.websocket() as client:
        assert (await client.ask(subscribe(subject, "$SYS.>")))["subjects"] == ["$SYS.>"]
        await client.follow(publisher.subject("end"))
        await publisher.send(subject, b"1")
        await publisher.send(publisher.subject("end"), b"2")
        assert await client.data(1) == [2]
        refused = await client.ask({"action": "unsubscribe", "subjects": [publisher.subject("end"), subject]})
        assert (refused["code"], refused["subjects"]) == ("subject.not_subscribed", [subject])
        await publisher.send(publisher.subject("end"), b"3")
        assert await client.data(1) == [3]


async def test_reply_precedes_first_message(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")

    stopped = asyncio.Event()

    async def flood() -> None:
        while not stopped.is_set():
            await publisher.send(subject, *[b"1"] * 20)

    async with asyncio.TaskGroup() as flooding, bridge.websocket() as early, bridge.websocket() as late:
        flooding.create_task(flood())
        for client in (early, late):
            await client.send(subscribe(subject))
            assert [frame["type"] for frame in await client.frames(50)] == ["reply"] + ["message"] * 49
        stopped.set()


async def test_commands_are_answered_in_order(nats_server: NatsServer, server: ServerName) -> None:
    async with running(server=server, servers=nats_server.url, subscribe=["a"]) as bridge, bridge.websocket() as client:
        nats_server.pause()
        for number, action in enumerate(["subscribe", "unsubscribe", "ping", "unsubscribe"]):
            await client.send({"action": action, "subjects": ["a"], "id": number})
        await until(lambda: bridge.runtime.sessions.hub.patterns)
        nats_server.resume()
        replies = await client.frames(4)
        assert [(reply["id"], reply["success"]) for reply in replies] == [(0, True), (1, True), (2, True), (3, False)]


async def test_unsubscribe_stops_messages_for_its_client_only(bridge: Bridge, publisher: Publisher) -> None:
    subject, end = publisher.subject("a"), publisher.subject("end")
    async with bridge.websocket() as client, bridge.websocket() as other:
        for each in (client, other):
            await each.follow(subject, end)
        assert await client.ask({"action": "unsubscribe", "subjects": [subject], "id": 7}) == {
            "type": "reply",
            "id": 7,
            "action": "unsubscribe",
            "success": True,
            "message": f"Successfully disconnected from events: '{subject}'",
            "subjects": [subject],
        }
        await publisher.send(subject, b"1")
        await publisher.send(end, b"2")
        assert await client.data(1) == [2]
        assert await other.data(2) == [1, 2]


async def close_normally(connection: ClientConnection) -> None:
    await connection.close()


async def close_without_handshake(connection: ClientConnection) -> None:
    connection.transport.close()


async def reset_connection(connection: ClientConnection) -> None:
    reset(connection.transport)


@pytest.mark.parametrize("leave", [close_normally, close_without_handshake, reset_connection])
async def test_session_and_subscription_end_when_client_disconnects(
    bridge: Bridge, publisher: Publisher, shared_nats: NatsServer, leave: Callable[[ClientConnection], Any]
) -> None:
    subject = publisher.subject("a")
    async with bridge.websocket() as client:
        await client.follow(subject)
        assert subject in shared_nats.subscriptions()
        await leave(client.connection)
        await until(lambda: not len(sessions(bridge)))
        await until(lambda: subject not in shared_nats.subscriptions())


async def test_full_worker_closes_websocket_with_1013_and_retry(shared_nats: NatsServer, server: ServerName) -> None:
    async with running(server=server, servers=shared_nats.url, max_sessions=1, retry=1) as bridge:
        async with bridge.websocket():
            url = f"ws://127.0.0.1:{bridge.port}/nats/stream"
            async with connect(url) as connection:
                frame, code = await close_frame_and_code(WebSocketClient(connection))
            assert (frame["type"], frame["code"], frame["reconnect"], code) == ("close", 1013, True, 1013)
            assert frame["reason"]
            assert frame["retry"] > 1000
            assert len(sessions(bridge)) == 1
        await until(lambda: not len(sessions(bridge)))
        async with bridge.websocket() as client:
            assert client.welcome["type"] == "welcome"


@sanic_only
async def test_websocket_closes_with_1001_when_server_stops(shared_nats: NatsServer, server: ServerName) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with running(server=server, servers=shared_nats.url, reconnect_spread=1) as bridge:
            client = await stack.enter_async_context(bridge.websocket())
        frame, code = await close_frame_and_code(client)
    assert (frame["type"], frame["code"], frame["reconnect"], code) == ("close", 1001, True, 1001)
    assert 0 <= frame["retry"] <= 1000


@sanic_only
async def test_compression_is_not_negotiated(bridge: Bridge) -> None:
    url = f"ws://127.0.0.1:{bridge.port}/nats/stream"
    async with connect(url, compression="deflate") as connection:
        assert connection.request is not None
        assert connection.response is not None
        assert "permessage-deflate" in connection.request.headers["Sec-WebSocket-Extensions"]
        assert "Sec-WebSocket-Extensions" not in connection.response.headers
        client = WebSocketClient(connection)
        assert (await client.frame())["type"] == "welcome"
        assert (await client.ask({"action": "ping"}))["message"] == "pong"


async def test_aiohttp_client_receives_messages(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with bridge.http.ws_connect(f"{bridge.url}/stream", autoping=True) as client:
        assert (await client.receive_json(timeout=WAIT_SECONDS))["type"] == "welcome"
        await client.send_json(subscribe(subject))
        assert (await client.receive_json(timeout=WAIT_SECONDS))["active"] is True
        await publisher.send(subject, b"x" * 100_000)
        received = await client.receive(timeout=WAIT_SECONDS)
        assert received.type is aiohttp.WSMsgType.TEXT
        assert json.loads(received.data)["data"] == "x" * 100_000
