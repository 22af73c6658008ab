"""Malicious clients on bare sockets: they don't affect the service for other clients."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import (
    SERVERS,
    WAIT_SECONDS,
    Bridge,
    Publisher,
    ServerName,
    running,
    sanic_only,
    until,
)
from tests.support.clock import held, limit
from tests.support.raw import UPGRADE, sessions

uvicorn_only = pytest.mark.parametrize("server", ["uvicorn"])

OFFER = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


@pytest.fixture(autouse=True)
async def bystander(bridge: Bridge, publisher: Publisher, caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Check that an earlier and a later client are served, and that the log has no error of the bridge."""
    subject = publisher.subject("a")
    async with bridge.websocket(ping_interval=None) as client:
        await client.follow(subject)
        yield
        await until(lambda: len(sessions(bridge)) == 1)
        async with bridge.events(subject) as late:
            await publisher.send(subject, b"1")
            assert [*await client.data(1), *await late.data(1)] == [1, 1]
    own = [r for r in caplog.get_records("call") if r.name == "sanic.root.nats_bridge" and r.levelno >= logging.ERROR]
    assert own == []


@contextlib.asynccontextmanager
async def connection(bridge: Bridge) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def head(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_SECONDS)


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return everything up to the end of the connection, which must come."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        data = await asyncio.wait_for(reader.read(), limit(WAIT_SECONDS))
    return data


async def handshake(bridge: Bridge, more: bytes, method: bytes = b"GET", path: str = "/stream") -> bytes:
    """Send a handshake with these additional header lines and return the head of the response."""
    async with connection(bridge) as (reader, writer):
        writer.write(b"%b %b HTTP/1.1\r\n" % (method, (bridge.prefix + path).encode()))
        writer.write(UPGRADE.encode() + more + b"\r\n")
        return await head(reader)


def close_code(answer: bytes) -> int:
    """Return the code of the close frame at the end, which has a short reason."""
    before, _, body = answer.rpartition(b"\x88")
    assert before, answer
    return int.from_bytes(body[1:3])


HEADERS: dict[str, bytes] = {
    "a subprotocol that is not ASCII": "Sec-WebSocket-Protocol: caf\u00e9\r\n".encode(),
    "a subprotocol of bytes": b"Sec-WebSocket-Protocol: \xff\xfe\r\n",
    "an empty subprotocol": b"Sec-WebSocket-Protocol:\r\n",
    "a subprotocol with NUL": b"Sec-WebSocket-Protocol: a\0b\r\n",
    "extensions of bytes": b"Sec-WebSocket-Extensions: \xff;;=,\r\n",
    "two keys": KEY.encode(),
    "a version of long ago": b"Sec-WebSocket-Version: 7\r\n",
    "a line without a colon": b"nonsense\r\n",
}


@sanic_only
async def test_handshake_with_invalid_header_is_rejected(bridge: Bridge) -> None:
    for what, more in HEADERS.items():
        assert (await handshake(bridge, more)).startswith(b"HTTP/1.1 400"), what


@uvicorn_only  # with websockets before 17, it closes the connection without an answer
async def test_handshake_with_invalid_header_ends_connection(bridge: Bridge) -> None:
    # Those versions also log other bytes as surrogates, which pytest-xdist can't pass on.
    for what, more in ((what, more) for what, more in HEADERS.items() if more.isascii()):
        async with connection(bridge) as (reader, writer):
            writer.write(b"GET /nats/stream HTTP/1.1\r\n" + UPGRADE.encode() + more + b"\r\n")
            assert not (await rest(reader)).startswith(b"HTTP/1.1 101"), what


BAD_OPENINGS: dict[str, str] = {
    "a plain GET": "Host: x\r\n",
    "one that keeps the connection": UPGRADE.replace("Connection: Upgrade", "Connection: keep-alive"),
    "another upgrade": UPGRADE.replace("Upgrade: websocket", "Upgrade: h2c"),
    "no key": UPGRADE.replace(KEY, ""),
    "a version of long ago": UPGRADE.replace("Version: 13", "Version: 7"),
}


async def test_invalid_handshake_is_rejected_without_error_log(
    bridge: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    for what, lines in BAD_OPENINGS.items():
        async with connection(bridge) as (reader, writer):
            writer.write(b"GET /nats/stream HTTP/1.1\r\n%b\r\n" % lines.encode())
            assert (await head(reader)).startswith(b"HTTP/1.1 400"), what
    async with bridge.http.get(f"{bridge.url}/stream") as response:
        assert (await response.json())["code"] == "command.invalid"
    async with bridge.http.head(f"{bridge.url}/stream") as response:
        assert response.status == 400
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@sanic_only
async def test_handshake_is_rejected_without_waiting_for_body(bridge: Bridge) -> None:
    for method, path in ((b"GET", "/stream"), (b"GET", "/events"), (b"POST", "/subscribe")):
        for more in (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"):
            assert (await handshake(bridge, more, method, path)).startswith(b"HTTP/1.1 400"), path


@sanic_only
async def test_malformed_cookie_is_rejected_and_not_logged(bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    assert (await handshake(bridge, "Cookie: id=SECRET; name=\u0416\r\n".encode())).startswith(b"HTTP/1.1 400")
    assert "SECRET" not in caplog.text


@sanic_only
async def test_websocket_compression_is_not_negotiated(bridge: Bridge) -> None:
    answer = await handshake(bridge, OFFER)
    assert answer.startswith(b"HTTP/1.1 101")
    assert b"extensions" not in answer.lower()


@sanic_only
async def test_uvicorn_options_disable_compression_and_large_frames(shared_nats: NatsServer) -> None:
    options = {"ws_per_message_deflate": False, "ws_max_size": 65_536}
    async with running(servers=shared_nats.url, server="uvicorn", server_options=options) as bridge:
        assert b"extensions" not in (await handshake(bridge, OFFER)).lower()
        async with connection(bridge) as (reader, writer):
            writer.write(b"GET /nats/stream HTTP/1.1\r\n" + UPGRADE.encode() + b"\r\n")
            await head(reader)
            writer.write(b"\x81\xff" + (65_537).to_bytes(8) + bytes(4))
            assert close_code(await rest(reader)) == 1009


async def test_handshake_with_method_other_than_get_opens_no_session(bridge: Bridge, server: ServerName) -> None:
    for method in (b"HEAD", b"OPTIONS", b"POST"):
        async with connection(bridge) as (reader, writer):
            writer.write(b"%b /nats/stream HTTP/1.1\r\n" % method + UPGRADE.encode() + b"Origin: https://evil\r\n\r\n")
            # With websockets before 17, uvicorn doesn't answer it.
            answer = await head(reader) if server == "sanic" else b""
            assert not answer.startswith(b"HTTP/1.1 101")
            assert b"welcome" not in answer
            async with bridge.websocket():
                await until(lambda: len(sessions(bridge)) == 2)


FRAMES: dict[str, tuple[bytes, int]] = {
    "2^63 bytes": (b"\x81\xff" + (2**63).to_bytes(8) + bytes(4), 1009),
    "2^64 - 1 bytes": (b"\x82\xff" + b"\xff" * 8 + bytes(4), 1009),
    "2^63 - 1 bytes": (b"\x81\xff" + (2**63 - 1).to_bytes(8) + bytes(4), 1009),
    "no mask": (b"\x81\x02hi", 1002),
    "compressed": (b"\xc1\x82" + bytes(4) + b"hi", 1002),
    "the third reserved bit": (b"\x91\x82" + bytes(4) + b"hi", 1002),
    "a reserved opcode": (b"\x83\x80" + bytes(4), 1002),
    "a reserved opcode of control": (b"\x8f\x80" + bytes(4), 1002),
    "a long ping": (b"\x89\xfe\x00\x7e" + bytes(4) + b"a" * 126, 1002),
    "a ping in pieces": (b"\x09\x80" + bytes(4), 1002),
    "the continuation of nothing": (b"\x80\x80" + bytes(4), 1002),
    "a text in a text": (b"\x01\x81" + bytes(4) + b"a\x81\x81" + bytes(4) + b"a", 1002),
    "half a close code": (b"\x88\x81" + bytes(4) + b"a", 1002),
    "a close code that must not be sent": (b"\x88\x82" + bytes(4) + b"\x03\xee", 1002),
    "a close reason that is not UTF-8": (b"\x88\x83" + bytes(4) + b"\x03\xe8\xff", 1007),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", 1002),
}


async def test_invalid_frame_closes_only_its_own_connection(bridge: Bridge) -> None:
    for what, (frame, code) in FRAMES.items():
        async with connection(bridge) as (reader, writer):
            writer.write(b"GET /nats/stream HTTP/1.1\r\n" + UPGRADE.encode() + b"\r\n")
            await head(reader)
            writer.write(frame)
            assert (what, close_code(await rest(reader))) == (what, code)


# What never ends

POST = b"POST /nats/subscribe HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

HALVES: dict[str, tuple[bytes, bytes]] = {
    "half a handshake": (b"GET /nats/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: webso", b"408"),
    "half a request line": (b"GET /nats/ev", b"408"),
    "half a body": (POST + b'Content-Length: 50\r\n\r\n{"session":', b"400"),
    "half a chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b"400"),
    "half a body of a foreign page": (POST + b"Origin: https://evil\r\nContent-Length: 5\r\n\r\n", b"403"),
    "half a body of a handshake": (POST + b"Upgrade: websocket\r\nContent-Length: 5\r\n\r\n", b"400"),
}


@sanic_only
async def test_incomplete_request_is_closed_with_error_status(bridge: Bridge) -> None:
    async def outcome(half: bytes) -> bytes:
        async with connection(bridge) as (reader, writer):
            writer.write(half)
            return (await rest(reader))[:12]

    async with held() as clock:
        answering = asyncio.gather(*(outcome(half) for half, _ in HALVES.values()))
        await clock.forward_until(answering.done, step=1)
    assert dict(zip(HALVES, answering.result(), strict=True)) == {
        what: b"HTTP/1.1 " + status for what, (_, status) in HALVES.items()
    }
