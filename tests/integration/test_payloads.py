import asyncio
import base64
import json
from typing import Any

import pytest

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
)

DEEP = b"[" * 20_000 + b"]" * 20_000  # deeper than the decoder follows on any Python
MEGABYTE = 1_048_576


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


def embedded(*payloads: str) -> dict[str, tuple[bytes, str]]:
    return {payload or "empty": (payload.encode(), payload) for payload in payloads}


def as_text(payload: bytes) -> tuple[bytes, str]:
    return payload, json.dumps(payload.decode(), ensure_ascii=False) + ',"encoding":"text"'


def as_base64(payload: bytes) -> tuple[bytes, str]:
    return payload, f'"{base64.b64encode(payload).decode()}","encoding":"base64"'


PAYLOADS: dict[str, tuple[bytes, str]] = {
    **embedded("null", "true", "false", "0", "-0", "-1.50", "1e5", "1E+05", '""', '"ä\\u00e4\\n"', "[]", "{}", " 1 "),
    **embedded('{"a":1,"a":2}', '{"a": [1, {"b": null}]}', '"\\ud83d"', '"\u2028"', "1e999"),
    "big integer": (b"123456789012345678901234567890", "123456789012345678901234567890"),
    "long decimal": (b"0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
    "2^53 + 1": (b'{"id":9007199254740993}', '{"id":9007199254740993}'),
    "pretty-printed": (b'{\n  "a": 1,\r\n  "b": "\\n"\n}\n', '{   "a": 1,    "b": "\\n" } '),
    "empty": (b"", "null"),
    "text": as_text(b"hello"),
    "text with CR and LF": as_text(b"one\r\ntwo\n\ndata: three\r"),
    "text with U+2028": as_text("a\u2028b\u2029c\x85d".encode()),
    "text of an event": as_text(b"x\n\nevent: close\ndata: {}\n\n"),
    "emoji": as_text("😀".encode()),
    "broken JSON": as_text(b'{"a": 1'),
    "two documents": as_text(b"1 2"),
    "NaN": as_text(b"NaN"),
    "leading zero": as_text(b"01"),
    "20,000 levels": as_text(DEEP),
    "byte order mark": as_text("\ufeff1".encode()),
    "all bytes": as_base64(bytes(range(256))),
    "JSON with invalid UTF-8 in a string": as_base64(b'{"a": "\xff"}'),
    "encoded surrogate": as_base64(b'"\xed\xa0\x80"'),
    "overlong": as_base64(b"\xc0\xaf"),
}


async def raw_websocket(client: WebSocketClient) -> str:
    async with asyncio.timeout(WAIT_SECONDS):
        text = await client.connection.recv()
    assert isinstance(text, str)
    return text


async def raw_event(client: EventClient) -> str:
    """Return the data of the next event, which must be a message on a single line."""
    block = b""
    async with asyncio.timeout(WAIT_SECONDS):
        while not block.endswith(b"\n\n"):
            block += await client.response.content.readany()
    assert block.startswith(b"data: ")
    assert block.count(b"\n") == 2
    assert b"\r" not in block
    return block[6:-2].decode()


@pytest.mark.parametrize(("payload", "data"), PAYLOADS.values(), ids=map(ascii, PAYLOADS))
async def test_payload_produces_expected_frame_on_both_transports(
    bridge: Bridge, publisher: Publisher, payload: bytes, data: str
) -> None:
    subject = publisher.subject("a")
    async with bridge.websocket() as websocket, bridge.events(subject) as events:
        await websocket.follow(subject)
        await publisher.send(subject, payload)
        frame = f'{{"type":"message","subject":"{subject}","data":{data}}}'
        assert await raw_websocket(websocket) == frame
        assert await raw_event(events) == frame
        assert json.loads(frame)["type"] == "message"


@pytest.mark.parametrize("fill", [b"x", b"\xff"], ids=["text", "bytes"])
async def test_largest_nats_payload_is_delivered(bridge: Bridge, publisher: Publisher, fill: bytes) -> None:
    subject, payload = publisher.subject("a"), fill * MEGABYTE
    async with bridge.websocket() as websocket, bridge.events(subject) as events:
        await websocket.follow(subject)
        await publisher.send(subject, payload)
        for text in (await raw_websocket(websocket), await raw_event(events)):
            frame = json.loads(text)
            decode = base64.b64decode if frame["encoding"] == "base64" else str.encode
            assert decode(frame["data"]) == payload


async def test_only_exposed_headers_are_delivered(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    subject = publisher.subject("a")
    async with (
        running(server=server, servers=shared_nats.url, subscribe=[">"], expose_headers=["Shown", "Absent"]) as bridge,
        bridge.websocket() as websocket,
        bridge.events(subject) as events,
    ):
        await websocket.follow(subject)
        await publisher.send(subject, b"1", headers={"Shown": 'a "b"', "Hidden": "c"})
        await publisher.send(subject, b"2", headers={"Hidden": "c"})
        await publisher.send(subject, b"", headers={"Shown": "d"})
        message = {"type": "message", "subject": subject}
        expected: list[dict[str, Any]] = [
            message | {"headers": {"Shown": ['a "b"']}, "data": 1},
            message | {"data": 2},
            message | {"headers": {"Shown": ["d"]}, "data": None},
        ]
        assert await websocket.frames(3) == expected
        assert await events.frames(3) == expected


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n",
        b"NATS/1.0 100 FlowControl Request\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0  409 Consumer Deleted\r\n\r\n",
    ],
)
async def test_status_message_of_nats_is_counted_and_not_delivered(
    shared_nats: NatsServer, publisher: Publisher, block: bytes
) -> None:
    subject = publisher.subject("a")
    async with running(servers=shared_nats.url, subscribe=[">"]) as bridge, bridge.websocket() as client:
        await client.follow(subject, f"{publisher.base}.*")
        reader, writer = await asyncio.open_connection("127.0.0.1", shared_nats.port)
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
        for headers, payload in (
            (block, b""),
            (b"NATS/1.0\r\nStatus: 100\r\n\r\n", b"1"),
            (b"NATS/1.0 \r\n\r\n", b"2"),
        ):
            sizes = len(headers), len(headers) + len(payload)
            writer.write(b"HPUB %b %d %d\r\n%b%b\r\n" % (subject.encode(), *sizes, headers, payload))
        writer.write(b"PING\r\n")
        await reader.readuntil(b"PONG\r\n")
        writer.close()
        assert await client.data(4) == [1, 1, 2, 2]
        assert bridge.extension.stats().status_messages == 2


async def test_no_header_is_delivered_by_default(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with bridge.websocket() as client:
        await client.follow(subject)
        await publisher.send(subject, b"1", headers={"Shown": "a"})
        assert await client.frame() == {"type": "message", "subject": subject, "data": 1}


async def test_request_is_delivered_without_reply_subject_and_not_answered(
    bridge: Bridge, publisher: Publisher
) -> None:
    subject, assembler = publisher.subject("a"), publisher.client.new_inbox()
    answers = await publisher.client.subscribe(assembler)
    async with bridge.websocket() as websocket, bridge.events(subject) as events:
        await websocket.follow(subject)
        await publisher.client.publish(subject, b"1", reply=assembler)
        for client in (websocket, events):
            assert await client.frame() == {"type": "message", "subject": subject, "data": 1}
        # Everything that the bridge would have sent precedes the reply to the next command.
        await websocket.follow(publisher.subject("b"))
        await publisher.send(assembler, b"marker")
        assert (await answers.next_msg(timeout=WAIT_SECONDS)).data == b"marker"
