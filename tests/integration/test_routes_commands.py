import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any
from uuid import uuid4

import pytest
from sanic import Sanic
from sanic_testing.reusable import ReusableClient  # type: ignore[import-untyped]

from sanic_nats_bridge import NatsBridge
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import (
    SERVERS,
    WAIT_SECONDS,
    Bridge,
    EventClient,
    Publisher,
    ServerName,
    WebSocketClient,
    free_port,
    running,
    sanic_only,
    subscribed,
    until,
)
from tests.support.clock import held
from tests.support.raw import kept_connection, parts_per_turn, raw_connection, reset, session_of, sessions

SIZE = 70_000


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


@pytest.fixture(params=["websocket", "events"])
async def client(bridge: Bridge, request: pytest.FixtureRequest) -> AsyncIterator[WebSocketClient | EventClient]:
    """Connect a client on either transport."""
    async with getattr(bridge, request.param)() as client:
        yield client


async def test_post_subscribes_and_unsubscribes_session(
    bridge: Bridge, publisher: Publisher, client: WebSocketClient | EventClient
) -> None:
    subject, end = publisher.subject("a"), publisher.subject("end")
    command = {"session": client.session, "subjects": [subject], "id": "4"}
    assert await bridge.post("/subscribe", command) == (200, subscribed(subject) | {"id": "4"})
    await publisher.send(subject, b"1")
    assert await client.data(1) == [1]
    assert await bridge.post("/unsubscribe", command | {"action": "unsubscribe"}) == (
        200,
        {
            "type": "reply",
            "id": "4",
            "action": "unsubscribe",
            "success": True,
            "message": f"Successfully disconnected from events: '{subject}'",
            "subjects": [subject],
        },
    )
    assert (await bridge.post("/subscribe", {"session": client.session, "subjects": [end]}))[0] == 200
    await publisher.send(subject, b"2")
    await publisher.send(end, b"3")
    assert await client.data(1) == [3]


REFUSALS: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "no subjects": ("/subscribe", {"subjects": None}, 400, "command.invalid"),
    "empty subjects": ("/subscribe", {"subjects": []}, 400, "command.invalid"),
    "session is a number": ("/subscribe", {"session": 1}, 400, "command.invalid"),
    "contradicting action": ("/subscribe", {"action": "unsubscribe"}, 400, "command.invalid"),
    "contradicting action on unsubscribe": ("/unsubscribe", {"action": "subscribe"}, 400, "command.invalid"),
    "ping": ("/subscribe", {"action": "ping"}, 400, "command.invalid"),
    "unknown action": ("/subscribe", {"action": "x"}, 400, "command.invalid"),
    "reserved action": ("/subscribe", {"action": "publish"}, 400, "command.invalid"),
    "reserved field": ("/subscribe", {"from": 1}, 400, "command.unsupported"),
    "invalid subject": ("/subscribe", {"subjects": ["a..b"]}, 400, "subject.invalid"),
    "invalid subject on unsubscribe": ("/unsubscribe", {"subjects": ["a b"]}, 400, "subject.invalid"),
    "forbidden subject": ("/subscribe", {"subjects": ["a", "$SYS.>"]}, 403, "subject.forbidden"),
    "unknown session": ("/subscribe", {"session": "x"}, 404, "session.unknown"),
    "unknown session on unsubscribe": ("/unsubscribe", {"session": ""}, 404, "session.unknown"),
    "not subscribed": ("/unsubscribe", {}, 409, "subject.not_subscribed"),
    "too many": ("/subscribe", {"subjects": [f"a.{n}" for n in range(129)]}, 429, "limit.subscriptions"),
}


@pytest.mark.parametrize(("path", "fields", "status", "code"), REFUSALS.values(), ids=REFUSALS)
async def test_rejected_post_returns_status_and_error_code(
    bridge: Bridge, path: str, fields: dict[str, Any], status: int, code: str
) -> None:
    async with bridge.events() as client:
        good = {"session": client.session, "subjects": ["a"], "id": 5}
        with kept_connection(bridge) as connection:
            answered, reply = await connection.post(path, good | fields)
            assert (answered, reply["type"], reply["success"], reply["code"]) == (status, "reply", False, code)
            assert reply["id"] == 5
            assert reply["message"]
            assert session_of(bridge, client.session).subscriptions == ()
            assert await connection.post("/subscribe", good) == (200, reply_to("subscribe", 5))


def reply_to(action: str, command_id: int) -> dict[str, Any]:
    return {
        "type": "reply",
        "id": command_id,
        "action": action,
        "success": True,
        "message": "Successfully connected to events: 'a'",
        "subjects": ["a"],
        "active": True,
    }


async def test_command_reply_is_not_cacheable(bridge: Bridge) -> None:
    with kept_connection(bridge) as connection:
        response, _ = await connection.request("POST", "/subscribe", b"{}", content_type="application/json")
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Retry-After" not in response.headers


BODIES: dict[str, tuple[bytes | Iterable[bytes], str, int, str]] = {
    "broken JSON": (b"{", "application/json", 400, "command.invalid"),
    "no body": (b"", "application/json", 400, "command.invalid"),
    "a list": (b"[]", "application/json", 400, "command.invalid"),
    "not UTF-8": (b'{"session": "\xff"}', "application/json", 400, "command.invalid"),
    "20,000 levels": (b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "application/json", 400, "command.invalid"),
    "too long": (b" " * SIZE, "application/json", 413, "limit.size"),
    "2 MiB": (b" " * 2**21, "application/json", 413, "limit.size"),
    "too long without a length": ([b" " * 10_000] * 7, "application/json", 413, "limit.size"),
    "text": (b"{}", "text/plain", 415, "command.invalid"),
    "text type with JSON as parameter": (b"{}", "text/plain; application/json", 415, "command.invalid"),
    "URL-encoded form": (b"subjects=a", "application/x-www-form-urlencoded", 415, "command.invalid"),
    "no content type": (b"{}", "", 415, "command.invalid"),
}


@pytest.mark.parametrize("path", ["/subscribe", "/unsubscribe"])
@pytest.mark.parametrize(("body", "content_type", "status", "code"), BODIES.values(), ids=BODIES)
async def test_body_that_is_not_a_command_is_rejected(
    bridge: Bridge, path: str, body: bytes | Iterable[bytes], content_type: str, status: int, code: str
) -> None:
    async with bridge.events() as client:
        with kept_connection(bridge) as connection:
            answered, reply = await connection.post(path, body, content_type=content_type)
            assert (answered, reply["type"], reply["success"], reply["code"]) == (status, "reply", False, code)
            assert reply["action"] == path[1:]
            good = {"session": client.session, "subjects": ["a"], "id": 1}
            assert await connection.post("/subscribe", good) == (200, reply_to("subscribe", 1))


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_content_type_allows_parameters_and_any_case(bridge: Bridge, content_type: str) -> None:
    async with bridge.events() as client:
        with kept_connection(bridge) as connection:
            body = {"session": client.session, "subjects": ["a"]}
            assert (await connection.post("/subscribe", body, content_type=content_type))[0] == 200


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        ("gzip", 415),
        ("br", 415),
        ("identity, deflate", 415),
        ("x", 415),
        ("identity", 404),
        ("Identity", 404),
        ("", 404),
    ],
)
async def test_compressed_body_is_rejected(bridge: Bridge, coding: str, status: int) -> None:
    command = json.dumps({"session": "x", "subjects": ["a"]}).encode()
    body = command if status == 404 else gzip.compress(command)
    answered, reply = await bridge.post("/subscribe", body, **{"Content-Encoding": coding})
    assert answered == status
    assert reply["code"] == ("session.unknown" if status == 404 else "command.invalid")


async def test_chunked_body_is_accepted(bridge: Bridge) -> None:
    async with bridge.events() as client:
        body = json.dumps({"session": client.session, "subjects": ["a"], "id": 1}).encode()
        with kept_connection(bridge) as connection:
            assert await connection.post("/subscribe", [body[:9], body[9:]]) == (200, reply_to("subscribe", 1))


async def test_session_of_closed_stream_is_unknown(bridge: Bridge) -> None:
    async with bridge.events() as client:
        pass
    await until(lambda: not len(sessions(bridge)))
    status, reply = await bridge.post("/subscribe", {"session": client.session, "subjects": ["a"], "id": 1})
    assert (status, reply["code"], reply["id"]) == (404, "session.unknown", 1)


async def test_posts_to_one_session_are_executed_in_order(nats_server: NatsServer, server: ServerName) -> None:
    async with running(server=server, servers=nats_server.url, subscribe=["a"]) as bridge, bridge.events() as client:
        nats_server.pause()
        command = {"session": client.session, "subjects": ["a"]}
        first = asyncio.create_task(bridge.post("/subscribe", command))
        await until(lambda: bridge.runtime.sessions.hub.patterns)
        second = asyncio.create_task(bridge.post("/unsubscribe", command))
        # The answer to a request that came later: the second has been read by then, and waits.
        assert (await bridge.post("/unsubscribe", {"session": "x", "subjects": ["a"]}))[0] == 404
        assert not second.done()
        nats_server.resume()
        assert [status for status, _ in (await first, await second)] == [200, 200]
        assert session_of(bridge, client.session).subscriptions == ()


@sanic_only
async def test_subscribe_is_undone_when_client_cancels_request(nats_server: NatsServer, server: ServerName) -> None:
    async with (
        running(server=server, servers=nats_server.url, subscribe=[">"], unsubscribe_delay=0.1) as bridge,
        bridge.events() as client,
    ):
        nats_server.pause()
        post = asyncio.create_task(bridge.post("/subscribe", {"session": client.session, "subjects": ["a", "b"]}))
        await until(lambda: bridge.runtime.sessions.hub.patterns == ("a", "b"))
        post.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await post
        await until(lambda: not bridge.runtime.sessions.hub.patterns)
        nats_server.resume()
        status, reply = await bridge.post("/subscribe", {"session": client.session, "subjects": ["c"]})
        assert (status, reply["active"]) == (200, True)
        assert session_of(bridge, client.session).subscriptions == ("c",)
        assert nats_server.subscriptions() == ["c"]


@pytest.fixture
def app(shared_nats: NatsServer) -> Sanic[Any, Any]:
    app: Sanic[Any, Any] = Sanic(f"test_{uuid4().hex}", configure_logging=False)
    NatsBridge(app, servers=shared_nats.url, subscribe=["a"])
    return app


UNKNOWN = {"session": "x", "subjects": ["a"], "id": 1}


@pytest.mark.filterwarnings("ignore:.*Passing the loop argument to listeners:DeprecationWarning")
def test_sanic_test_client_reaches_bridge(app: Sanic[Any, Any]) -> None:
    _, response = app.test_client.post("/nats/subscribe", json=UNKNOWN)
    assert (response.status, response.json["code"], response.json["id"]) == (404, "session.unknown", 1)


def test_sanic_reusable_client_reaches_bridge(app: Sanic[Any, Any]) -> None:
    client = ReusableClient(app, port=free_port())  # its own choice may be taken
    with client:
        for _ in range(2):
            _, response = client.post("/nats/unsubscribe", json=UNKNOWN)
            assert (response.status, response.json["code"]) == (404, "session.unknown")


async def test_sanic_asgi_client_reaches_bridge(app: Sanic[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sanic, "__call__", Sanic.__call__)  # which that client puts its own in the place of
    for _ in range(2):
        _, response = await app.asgi_client.post("/nats/subscribe", json=UNKNOWN)
        assert (response.status, response.json["code"], response.json["id"]) == (404, "session.unknown", 1)


POST = (
    "POST /nats/subscribe HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def in_chunks(body: bytes, size: int, extension: bytes = b"") -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n\r\n"


SMALL_CHUNKS = {
    "of one byte": in_chunks(b" " * 20_000, 1),
    "of 511 bytes": in_chunks(b" " * 20_000, 511),
    "with extensions": in_chunks(b" " * 5_000, 1, b";x=" + b"y" * 50),
}


@sanic_only
@pytest.mark.parametrize("chunks", SMALL_CHUNKS.values(), ids=SMALL_CHUNKS)
async def test_body_in_too_many_small_chunks_is_rejected_and_connection_ends(
    shared_nats: NatsServer, server: ServerName, chunks: bytes
) -> None:
    async with running(server=server, servers=shared_nats.url, max_body_parts=20) as bridge:
        async with raw_connection(bridge.port, POST) as (reader, writer):
            writer.write(chunks + b"GET /nats/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await asyncio.wait_for(reader.readuntil(b"}"), WAIT_SECONDS)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert b"\r\nconnection: close\r\n" in answer
            assert b'"code":"limit.size","message":"A body must have at most 20 parts of less than 512 bytes"' in answer
            writer.write_eof()
            assert b"HTTP/1.1" not in await asyncio.wait_for(reader.read(), WAIT_SECONDS)
        assert sessions(bridge).counters.refused["limit.size"] == 1


@sanic_only
@pytest.mark.parametrize(("size", "max_parts"), [(100, 20), (512, 1)])
async def test_body_within_limit_of_parts_is_accepted(
    shared_nats: NatsServer, server: ServerName, size: int, max_parts: int
) -> None:
    async with running(server=server, servers=shared_nats.url, max_body_parts=max_parts) as bridge:
        body = b'{"session":"x","subjects":["a"]}'.ljust(20 * size)
        async with raw_connection(bridge.port, POST) as (reader, writer):
            writer.write(in_chunks(body, size))
            assert (await asyncio.wait_for(reader.readline(), WAIT_SECONDS)).startswith(b"HTTP/1.1 404 ")


@sanic_only
async def test_trailers_of_chunked_body_are_rejected(bridge: Bridge) -> None:
    async with raw_connection(bridge.port, POST) as (reader, writer):
        writer.write(b"2\r\n{}\r\n0\r\nX: y\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), WAIT_SECONDS)).startswith(b"HTTP/1.1 400 ")


@sanic_only
async def test_loop_turn_reads_few_chunks(
    monkeypatch: pytest.MonkeyPatch, shared_nats: NatsServer, server: ServerName
) -> None:
    async with running(server=server, servers=shared_nats.url, max_body_parts=10_000) as bridge:
        per_turn = parts_per_turn(monkeypatch)
        async with raw_connection(bridge.port, POST) as (reader, writer):
            writer.write(in_chunks(b" " * 5_000, 1))
            await asyncio.wait_for(reader.readuntil(b"}"), WAIT_SECONDS)
    assert sum(per_turn) == 5_000
    assert max(per_turn) <= 16


@sanic_only
async def test_body_must_be_complete_within_read_timeout(shared_nats: NatsServer, server: ServerName) -> None:
    async with (
        running(server=server, servers=shared_nats.url, read_timeout=3) as bridge,
        held() as clock,
        raw_connection(bridge.port, POST + "2\r\n{") as (reader, _),
    ):
        reading = asyncio.create_task(reader.readuntil(b"}"))
        await until(lambda: sessions(bridge).deadlines._timeouts)
        await clock.forward(2.9)
        assert not reading.done()
        await clock.forward_until(reading.done)
        assert reading.result().startswith(b"HTTP/1.1 400 ")


@sanic_only
async def test_malformed_chunked_body_is_rejected_and_not_logged(
    bridge: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    head = "POST /nats/subscribe HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    async with raw_connection(bridge.port, f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n") as (reader, _):
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        assert b'"code":"command.invalid"' in await reader.readuntil(b"}")
    assert [record for record in caplog.records if "nats_bridge" in record.name] == []


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
async def test_connection_reset_within_body_leaves_session_unchanged(bridge: Bridge) -> None:
    # No client reads the answer; the session is unchanged.
    head = "POST /nats/subscribe HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    async with bridge.events() as client:
        async with raw_connection(bridge.port, f'{head}{{"session":"{client.session}",') as (_, writer):
            await until(lambda: sessions(bridge).deadlines._timeouts)
            reset(writer.transport)
        await until(lambda: bridge.extension.stats().refused == {"command.invalid": 1})
        assert session_of(bridge, client.session).subscriptions == ()


@sanic_only
async def test_incomplete_command_is_rejected_with_503_when_server_stops(bridge: Bridge) -> None:
    head = "POST /nats/subscribe HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    async with raw_connection(bridge.port, head + '{"session"') as (reader, _):
        await until(lambda: sessions(bridge).deadlines._timeouts)
        sessions(bridge).close_all("The server is going away")
        answer = await asyncio.wait_for(reader.readuntil(b"}"), WAIT_SECONDS)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"session.unreachable" in answer
