"""Clients with little overhead, so that one process can run a thousand of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import urlencode

from .clients import Client, EventClient

__all__ = ["LightEventClient", "LightWebSocketClient", "client_frame"]

_LIMIT_BYTES = 2**20
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_MASK = bytes(4)  # RFC 6455 requires a mask; zeros leave the data unchanged


class LightWebSocketClient(Client):
    """A WebSocket client that implements the parts of the protocol that the bridge uses."""

    async def _frames(self, address: str) -> AsyncIterator[str | bytes]:
        reader, writer = await _connection(address)
        try:
            writer.write(
                f"GET /nats/stream?{urlencode(self.query)} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            if not (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 "):
                return
            writer.write(client_frame(json.dumps({"action": "subscribe", "subjects": self.patterns}).encode()))
            while True:
                opcode, data = await _read_frame(reader)
                if opcode == _TEXT:
                    yield data
                elif opcode == _PING:
                    writer.write(client_frame(data, _PONG))
                elif opcode == _CLOSE:
                    writer.write(client_frame(data[:2], _CLOSE))
                    return
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


class LightEventClient(EventClient):
    """An event stream client that implements the parts of the protocol that the bridge uses."""

    async def _frames(self, address: str) -> AsyncIterator[str | bytes]:
        query = [*self.query, *(("subjects", pattern) for pattern in self.patterns)]
        reader, writer = await _connection(address)
        try:
            writer.write(f"GET /nats/events?{urlencode(query)} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
            if not (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 "):
                return
            rest = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                *lines, rest = (rest + (await reader.readexactly(size + 2))[:-2]).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: "):
                        yield line[6:]
                    elif line.startswith(b"retry: "):
                        self.retry = int(line[7:]) / 1000
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


async def _connection(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=_LIMIT_BYTES)


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readexactly(2)
    size = head[1]
    if size >= 126:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
    return head[0] & 15, await reader.readexactly(size)


def client_frame(data: bytes, opcode: int = _TEXT) -> bytes:
    """Return a WebSocket frame of a client."""
    assert len(data) < 2**16
    size = bytes((128 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2)
    return bytes((128 | opcode,)) + size + _MASK + data
