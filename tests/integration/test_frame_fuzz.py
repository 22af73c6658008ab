"""Frames of any kind on ``/stream``, against RFC 6455, while others follow messages undisturbed.

``FUZZED_CONNECTIONS=5000 python -m pytest tests/integration/test_frame_fuzz.py`` makes so many connections.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, EventClient, Publisher, WebSocketClient, running, until
from tests.support.frames import (
    BINARY,
    CLOSE,
    CONT,
    NO_CODE,
    PING,
    PONG,
    TEXT,
    Verdict,
    frame,
    judge,
    read_frame,
)
from tests.support.raw import UPGRADE, sessions

CONNECTIONS: Final = int(os.environ.get("FUZZED_CONNECTIONS", "300"))
MAX_COMMAND_BYTES: Final = 256

# What clients send

LATE: Final = "late"
"""The id of commands whose replies wait for NATS."""

COMMANDS: st.SearchStrategy[Any] = st.sampled_from([
    {"subjects": ["fuzz.a"], "id": "s"},
    {"action": "subscribe", "subjects": ["fuzz.*", "fuzz.>"], "id": 7},
    {"action": "unsubscribe", "subjects": ["fuzz.a"], "id": "ü€🙂"},
    {"action": "ping", "id": "p"},
    {"action": "publish", "id": "no"},
    {"action": "publish", "subject": "pub.a", "data": {"a": [1, "ü€🙂"]}, "id": "p1"},
    {"action": "publish", "subject": "pub.a", "data": "\r\nPUB b 0\r\n", "encoding": "text"},
    {"action": "publish", "subject": "pub.a", "headers": {"Trace": ["ü\u2028"]}, "id": 2},
    {"action": "publish", "subject": "pub.*", "id": "p3"},
    {"action": "publish", "subject": "secret", "data": None, "id": "p4"},
    {"action": "request", "subject": "pub.none", "data": 1, "id": LATE},
    {"action": "publish", "subject": "pub.a", "ack": True, "msg_id": "0" * 22, "id": LATE},
    {"action": "request", "subject": "pub.none"},
    {"action": "subscribe", "subjects": []},
    {"action": 1},
    [],
    None,
])  # fmt: skip
MASKS = st.binary(min_size=4, max_size=4)
SHORT = st.binary(max_size=125)
TEXTS = COMMANDS.map(lambda command: json.dumps(command, ensure_ascii=False).encode()) | st.text(max_size=40).map(
    str.encode
)
CONTROLS = st.builds(frame, st.sampled_from([PING, PONG]), SHORT, mask=MASKS)
WHOLE = st.builds(frame, st.just(TEXT), TEXTS, mask=MASKS, width=st.sampled_from([0, 0, 2, 8])) | st.builds(
    frame, st.just(BINARY), SHORT, mask=MASKS
)


@st.composite
def in_fragments(draw: st.DrawFn, payloads: st.SearchStrategy[bytes] = TEXTS) -> bytes:
    """Draw a text message that is cut anywhere, with pings and pongs between its fragments."""
    payload = draw(payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), min_size=1, max_size=4)))
    ends = [*cuts, len(payload)]
    sent = b""
    for start, end in zip([0, *cuts], ends, strict=True):
        sent += frame(CONT if sent else TEXT, payload[start:end], fin=False, mask=draw(MASKS))
        sent += draw(st.just(b"") | CONTROLS)
    return sent + frame(CONT, b"")


GOOD = WHOLE | in_fragments() | CONTROLS

CLOSES = st.builds(
    lambda code, reason: frame(CLOSE, code.to_bytes(2) + reason),
    st.sampled_from([1000, 1001, 1003, 1011, 3000, 4999, 0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535]),
    st.sampled_from([b"", b"bye", "tschüß".encode(), b"\xff"]),
)
BAD = st.one_of(
    st.builds(frame, st.sampled_from([3, 4, 5, 6, 7, 11, 12, 13, 14, 15]), SHORT),
    st.builds(frame, st.sampled_from([TEXT, BINARY, CONT, CLOSE, PING, PONG]), SHORT, rsv=st.integers(1, 7)),
    st.builds(frame, st.sampled_from([TEXT, BINARY, PING, CLOSE]), SHORT, mask=st.none()),
    st.builds(frame, st.sampled_from([PING, PONG, CLOSE]), SHORT, fin=st.just(False)),
    st.builds(frame, st.sampled_from([PING, PONG, CLOSE]), st.binary(min_size=126, max_size=140)),
    st.builds(frame, st.just(CONT), SHORT, fin=st.booleans()),
    st.builds(frame, st.just(TEXT), SHORT, fin=st.just(False)),
    st.builds(frame, st.sampled_from([TEXT, PING]), SHORT, length=st.integers(0, 200)),
    st.builds(frame, st.sampled_from([TEXT, PING]), length=st.sampled_from([2**20 + 1, 2**31, 2**63, 2**64 - 1])),
    st.builds(frame, st.just(TEXT), st.binary(min_size=1, max_size=40)),
    st.builds(frame, st.just(TEXT), st.just(b" " * (MAX_COMMAND_BYTES + 1))),
    in_fragments(st.sampled_from([b"\xff", b"ok\xc3", b"\xed\xa0\x80", b" " * 1000])),
    st.builds(lambda sent, left: sent[:left], WHOLE, st.integers(1, 12)),
    st.just(frame(CLOSE)) | st.just(frame(CLOSE, b"\x03")) | CLOSES,
    st.binary(min_size=1, max_size=60),
)
SENT = st.builds(
    lambda before, bad, after: b"".join([*before, bad, *after]),
    st.lists(GOOD, max_size=6),
    st.just(b"") | BAD | BAD,
    st.lists(GOOD, max_size=2),
)
PIECES = st.lists(st.integers(1, 30), max_size=8)


# What becomes of them


class Received:
    """Data that one fuzzed connection has received from the server."""

    def __init__(self) -> None:
        self.replies: list[dict[str, Any]] = []
        self.late: list[dict[str, Any]] = []
        """Replies that wait for NATS, and may come after those to later commands."""
        self.pongs: list[bytes] = []
        self.told_code: int | None = None
        self.code: int | None = None
        self.close = b""

    def take(self, opcode: int, payload: bytes) -> None:
        assert self.code is None, "a frame behind the Close"
        if opcode == PONG:
            self.pongs.append(payload)
        elif opcode == CLOSE:
            self.close = payload
            self.code = int.from_bytes(payload[:2]) if payload else NO_CODE
        else:
            assert opcode == TEXT
            self._take_text(json.loads(payload))

    def _take_text(self, document: dict[str, Any]) -> None:
        assert self.told_code is None, "a frame of the session behind its last"
        if document["type"] == "close":
            self.told_code = document["code"]
        elif document["type"] != "welcome":
            assert document["type"] in ("reply", "heartbeat"), document
            if document["type"] == "reply":
                (self.late if document.get("id") == LATE else self.replies).append(document)


class Fuzzed:
    """One connection on which anything is sent.

    It is a bare socket, as one of asyncio is not read any more once it cannot be written to: Sanic closes a
    WebSocket with what the client still sends unread, which resets the connection behind the Close.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.received = Received()
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._reader = asyncio.StreamReader()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, bridge: Bridge) -> AsyncIterator["Fuzzed"]:
        """Connect, and see the handshake through."""
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            fuzzed = cls(connection)
            await fuzzed._loop.sock_connect(connection, ("127.0.0.1", bridge.port))
            reading = asyncio.create_task(fuzzed._read())
            try:
                await fuzzed.send(f"GET {bridge.prefix}/stream HTTP/1.1\r\n{UPGRADE}\r\n".encode())
                head = await fuzzed._reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 101 "), head
                yield fuzzed
            finally:
                reading.cancel()
                await asyncio.wait({reading})

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._loop.sock_recv(self._socket, 65_536):
                self._reader.feed_data(data)
        self._reader.feed_eof()

    async def send(self, data: bytes, pieces: Sequence[int] = ()) -> None:
        """Send the data, each of the pieces in a turn of the event loop of its own."""
        with contextlib.suppress(ConnectionError):
            for size in pieces:
                await self._loop.sock_sendall(self._socket, data[:size])
                data = data[size:]
                await asyncio.sleep(0)
            await self._loop.sock_sendall(self._socket, data)

    async def is_served(self) -> None:
        """Have a last command answered, and close."""
        await self.send(frame(TEXT, b'{"action":"ping","id":"the end"}'))
        while not self.received.replies or self.received.replies[-1].get("id") != "the end":
            self.received.take(*await read_frame(self._reader))
        await self.send(frame(CLOSE, b"\x03\xe8"))
        await self.is_ended()
        assert self.received.close == b"\x03\xe8"

    async def is_ended(self) -> None:
        """Read to the end of the connection, which comes behind a Close."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                self.received.take(*await read_frame(self._reader))
                if self.received.code is not None:
                    await self.send(frame(CLOSE, self.received.close))
                    with contextlib.suppress(OSError):
                        self._socket.shutdown(socket.SHUT_WR)
        assert self.received.code is not None, "no Close"

    def vanish(self, *, by_reset: bool) -> None:
        """End without a Close."""
        if by_reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def check(received: Received, verdict: Verdict) -> None:
    """Check that the client got what the verdict requires."""
    in_order = [message for message in verdict.messages if isinstance(message, bytes) or sent_id(message) != LATE]
    assert len(received.late) <= len(verdict.messages) - len(in_order)
    assert {reply["code"] for reply in received.late} <= {"request.no_responders", "publish.unstored"}
    if verdict.codes:
        assert received.code in verdict.codes, (received.code, verdict)
        assert received.told_code in (received.code, None)
    elif verdict.close is not None:
        assert (received.close, received.told_code) == (verdict.close, None), verdict
    else:
        assert received.replies.pop()["message"] == "pong"
        assert len(received.replies) == len(in_order)
        assert received.pongs == verdict.pings
    assert received.pongs == verdict.pings[: len(received.pongs)]
    assert len(received.replies) <= len(in_order)
    for message, reply in zip(in_order, received.replies, strict=False):
        if isinstance(message, bytes):
            assert reply["code"] == "command.unsupported"
        else:
            assert reply.get("id") == sent_id(message)


def sent_id(message: str) -> Any:
    try:
        document = json.loads(message)
    except ValueError:
        return None
    return document.get("id") if isinstance(document, dict) else None


class Scene:
    """A bridge whose followers are not to be disturbed."""

    def __init__(self, bridge: Bridge, publisher: Publisher, followers: list[WebSocketClient | EventClient]) -> None:
        self.bridge = bridge
        self.faults: list[dict[str, Any]] = []
        self._publisher = publisher
        self._followers = followers
        self._number = self._followed = 0
        self._before = self._held()

    @classmethod
    @contextlib.asynccontextmanager
    async def made(cls, server: NatsServer) -> AsyncIterator["Scene"]:
        async with (
            Publisher.connected(server) as publisher,
            running(
                servers=server.url,
                subscribe=["fuzz.>", f"{publisher.base}.>"],
                publish=["pub.>"],
                request=["pub.>"],
                publish_headers=["Trace"],
                max_command_bytes=MAX_COMMAND_BYTES,
                command_burst=1000,
                unsubscribe_delay=0.02,
            ) as bridge,
            bridge.websocket() as websocket,
            bridge.events(publisher.subject("followed")) as events,
        ):
            await websocket.follow(publisher.subject("followed"))
            scene = cls(bridge, publisher, [websocket, events])
            asyncio.get_running_loop().set_exception_handler(lambda _, context: scene.faults.append(context))
            yield scene
            await until(lambda: len(sessions(bridge)) == 2)
            await until(lambda: scene._held() == scene._before)
            await until(lambda: not [name for name in server.subscriptions() if name.startswith("fuzz")])

    def _held(self) -> tuple[int, int]:
        return len(asyncio.all_tasks()), sum(1 for _ in Path("/proc/self/fd").iterdir())

    async def publish(self) -> None:
        """Have every follower get the next message."""
        self._number += 1
        await self._publisher.send(self._publisher.subject("followed"), b"%d" % self._number)

    async def followed(self) -> None:
        """Check that every follower has received all messages in order."""
        expected = list(range(self._followed + 1, self._number + 1))
        self._followed = self._number
        assert [await follower.data(len(expected)) for follower in self._followers] == [expected] * 2

    async def fuzz(self, sent: bytes, pieces: Sequence[int], by_reset: bool) -> None:
        """Send these bytes on a new connection, publish to the followers meanwhile, and check the result."""
        verdict = judge(sent, MAX_COMMAND_BYTES)
        if verdict.unfinished and not verdict.cut_off and not verdict.codes:
            sent += frame(CONT)
            verdict = judge(sent, MAX_COMMAND_BYTES)
        async with asyncio.timeout(WAIT_SECONDS), Fuzzed.open(self.bridge) as connection:
            await self.publish()
            await connection.send(sent, pieces)
            await self.publish()
            if verdict.codes or verdict.close is not None:
                await connection.is_ended()
            elif verdict.cut_off:
                return connection.vanish(by_reset=by_reset)
            else:
                await connection.is_served()
        check(connection.received, verdict)
        return None


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture
def scene(loop: asyncio.AbstractEventLoop, shared_nats: NatsServer) -> Iterator[Scene]:
    made = Scene.made(shared_nats)
    scene = loop.run_until_complete(made.__aenter__())
    yield scene
    loop.run_until_complete(made.__aexit__(None, None, None))
    assert scene.faults == []


@pytest.mark.timeout(300 + CONNECTIONS)
def test_fuzzed_frames_are_answered_per_rfc_and_disturb_no_client(
    loop: asyncio.AbstractEventLoop, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    @settings(
        max_examples=CONNECTIONS,
        derandomize=True,
        database=None,
        # Shrinking runs an example hundreds of times, which takes long if a connection hangs.
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(sent=SENT, pieces=PIECES, by_reset=st.booleans())
    def connect(sent: bytes, pieces: list[int], by_reset: bool) -> None:
        note(f"{sent!r} in pieces of {pieces}, by_reset={by_reset}")

        async def one() -> None:
            try:
                await scene.fuzz(sent, pieces, by_reset)
            finally:
                await scene.followed()
            assert scene.faults == []

        loop.run_until_complete(one())

    connect()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
