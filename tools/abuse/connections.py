"""Bare connections to the app: WebSockets and HTTP requests, so cheap that an attacker has more of them than time."""

import asyncio
import json
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Self
from urllib.parse import quote

from ..harness.tcp_proxy import reset

__all__ = ["Http", "WebSocket", "connect", "frame", "post"]

_CONTINUATION, _TEXT, _CLOSE, _PING, _PONG = 0, 1, 8, 9, 10
_FINAL = 0x80
_MASK = bytes(4)  # RFC 6455 requires a mask; zeros leave the data unchanged
_LIMIT_BYTES = 2**22
_STALLED_BYTES = 4096
_UPGRADE = (
    "GET /nats/stream?{query} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def connect(
    port: int, address: str = "127.0.0.1", *, stalled: bool = False
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the app from an address of this machine.

    Args:
        port: The port of the app.
        address: The address of the client.
        stalled: Whether buffers are small, so that the connection soon takes no more data unless it is read.
    """
    connection = socket.socket()
    connection.setblocking(False)
    if stalled:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _STALLED_BYTES)
    # Ports may be shared by connections to different addresses.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        connection.bind((address, 0))
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    return await asyncio.open_connection(sock=connection, limit=_STALLED_BYTES if stalled else _LIMIT_BYTES)


def frame(data: bytes, opcode: int = _TEXT, *, final: bool = True, length: int | None = None) -> bytes:
    """Return a frame of a client (RFC 6455, section 5.2).

    Args:
        data: The payload.
        opcode: The opcode; 0 continues a message.
        final: Whether the message ends with this frame.
        length: The length in the header, if it isn't that of the payload.
    """
    size = len(data) if length is None else length
    first = bytes(((_FINAL if final else 0) | opcode,))
    if size < 126:
        return first + bytes((128 | size,)) + _MASK + data
    if size < 2**16:
        return first + b"\xfe" + size.to_bytes(2) + _MASK + data
    return first + b"\xff" + size.to_bytes(8) + _MASK + data


class WebSocket:
    """A WebSocket, with the parts of the protocol that the bridge uses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.session = ""
        """The id of the session."""
        self._draining: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, port: int, query: str = "profile=all", address: str = "127.0.0.1", *, stalled: bool = False
    ) -> Self:
        """Connect, and wait for the frame ``welcome``.

        Raises:
            ConnectionError: The app has rejected the client.
        """
        reader, writer = await connect(port, address, stalled=stalled)
        opened = cls(reader, writer)
        try:
            writer.write(_UPGRADE.format(query=query, host=f"127.0.0.1:{port}").encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101 "):
                raise ConnectionError(head.split(b"\r\n")[0].decode())
            welcome = await opened.receive()
            if welcome.get("type") != "welcome":
                raise ConnectionError(str(welcome))
            opened.session = welcome["session"]
        except asyncio.IncompleteReadError:
            writer.close()
            raise ConnectionError("the app has closed the connection") from None
        except BaseException:
            writer.close()
            raise
        return opened

    def send(self, action: str, patterns: Iterable[str]) -> None:
        """Send a command without waiting."""
        self.writer.write(frame(json.dumps({"action": action, "subjects": [*patterns]}).encode()))

    async def command(self, action: str, patterns: Iterable[str]) -> dict[str, Any]:
        """Send a command, and return its reply."""
        self.send(action, patterns)
        while True:
            received = await self.receive()
            if received["type"] in ("reply", "close"):
                return received

    async def receive(self) -> dict[str, Any]:
        """Return the next text frame, and answer pings.

        Raises:
            ConnectionError: The connection has ended.
        """
        return dict(json.loads(await self.receive_bytes()))

    async def receive_bytes(self) -> bytes:
        """Return the payload of the next text frame, as `receive` does."""
        try:
            while True:
                opcode, data = await self._read_frame()
                if opcode == _TEXT:
                    return data
                if opcode == _PING:
                    self.writer.write(frame(data, _PONG))
                elif opcode == _CLOSE:
                    raise ConnectionError(data[2:].decode())
        except asyncio.IncompleteReadError:
            raise ConnectionError("the connection has ended") from None

    def drain(self) -> None:
        """Read and discard everything from now on, while the event loop runs."""
        self._draining = asyncio.get_running_loop().create_task(self._discard())

    async def _discard(self) -> None:
        try:
            while await self._reader.read(_LIMIT_BYTES):
                pass
        except ConnectionError:
            pass

    def abort(self) -> None:
        """End the connection without a closing handshake."""
        reset(self.writer.transport)

    @property
    def is_closed(self) -> bool:
        """True if the app has ended the connection."""
        return self._reader.at_eof() or self.writer.is_closing()

    async def _read_frame(self) -> tuple[int, bytes]:
        head = await self._reader.readexactly(2)
        size = head[1]
        if size >= 126:
            size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8))
        return head[0] & 15, await self._reader.readexactly(size)


def post(path: str, body: bytes) -> bytes:
    """Return a POST with a JSON body."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: app\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


class Http:
    """An HTTP connection that is kept open from one request to the next."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self._port = port
        self._address = address
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, data: bytes) -> int:
        """Send a request, and return the status of its response, whose body is discarded.

        Raises:
            ConnectionError: The connection has ended. The next request opens another one.
        """
        if self._stream is None:
            self._stream = await connect(self._port, self._address)
        reader, writer = self._stream
        try:
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            fields = _fields(head)
            if not data.startswith(b"HEAD "):
                await reader.readexactly(int(fields.get("content-length", 0)))
        except (asyncio.IncompleteReadError, OSError) as error:
            self.close()
            raise ConnectionError(str(error)) from None
        if fields.get("connection", "").lower() == "close":
            self.close()
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    @staticmethod
    def query(fields: Mapping[str, str | Iterable[str]]) -> str:
        """Return a query string; a field with several values is repeated."""
        pairs = ((name, [value] if isinstance(value, str) else value) for name, value in fields.items())
        return "&".join(f"{name}={quote(value)}" for name, values in pairs for value in values)


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
