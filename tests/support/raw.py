"""Bare HTTP connections and WebSocket frames, for data that client libraries don't send or show."""

import asyncio
import contextlib
import http.client
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest
from sanic.http import Http

from sanic_nats_bridge import Session
from sanic_nats_bridge.protocol.session_ids import digest
from sanic_nats_bridge.sessions.registry import SessionRegistry
from tests.support.bridge import WAIT_SECONDS, Bridge
from tools.harness.tcp_proxy import reset as reset

UPGRADE = (
    "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def parts_per_turn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the parts of bodies that Sanic reads in each turn of the event loop from now on."""
    counts = [0]
    read = Http.read

    async def count(connection: Http) -> bytes | None:
        part = await read(connection)
        if part:
            if not any(counts[-1:]):
                asyncio.get_running_loop().call_soon(counts.append, 0)
            counts[-1] += 1
        return part

    monkeypatch.setattr(Http, "read", count)
    return counts


def client_frame(payload: bytes, opcode: int = 1) -> bytes:
    """Return a WebSocket frame from a client, masked with zeros (RFC 6455, section 5.2)."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


def sessions(bridge: Bridge) -> SessionRegistry:
    return bridge.runtime.sessions


def session_of(bridge: Bridge, session_id: str) -> Session:
    return sessions(bridge).get(digest(session_id), None)


def session_id(welcome: bytes) -> str:
    """Return the session id of a welcome in either wire format."""
    found = re.search(rb'"session":"([^"]+)"', welcome)
    assert found is not None
    return found[1].decode()


@contextlib.asynccontextmanager
async def raw_connection(
    port: int, request: str, limit: int = 2**26
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a TCP connection and send this request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        writer.write(request.encode())
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class KeptConnection:
    """One HTTP/1.1 connection of `http.client` that never opens a second socket."""

    def __init__(self, bridge: Bridge) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=WAIT_SECONDS)
        self._connection.connect()
        self._connection.auto_open = 0
        self._prefix = bridge.prefix

    async def request(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Return the response and its whole body."""
        return await asyncio.to_thread(self._request, method, path, body, headers)

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """Send a POST and return its status and reply.

        Bytes are sent unchanged, and an iterable of bytes without a length.
        """
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        response, text = await self.request("POST", path, data, **({"content_type": "application/json"} | headers))
        reply: dict[str, Any] = json.loads(text)
        return response.status, reply

    def _request(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items() if value}
        chunked = body is not None and not isinstance(body, bytes)
        if chunked:
            named["Transfer-Encoding"] = "chunked"
        self._connection.request(method, self._prefix + path, body, named, encode_chunked=chunked)
        response = self._connection.getresponse()
        return response, response.read()

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def kept_connection(bridge: Bridge) -> Iterator[KeptConnection]:
    connection = KeptConnection(bridge)
    try:
        yield connection
    finally:
        connection.close()
