"""Heads and bodies of HTTP/1 messages, as the middlebox reads and writes them (RFC 9112)."""

import asyncio
from typing import NamedTuple, Self

from .rules import Kind

__all__ = ["READ_BYTES", "Head", "kind_of", "read_chunk"]

READ_BYTES = 65_536

_PREFIX = "/nats/"
_END = b"\r\n\r\n"


class Head(NamedTuple):
    """The first line and the headers of a message. ``size`` is the number of bytes that were read."""

    line: str
    headers: tuple[tuple[str, str], ...]
    size: int = 0

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Self:
        """Read a head.

        Raises:
            IncompleteReadError: The connection ended before.
        """
        data = await reader.readuntil(_END)
        line, *fields = data.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        headers = (field.partition(":") for field in fields)
        return cls(line, tuple((name, value.strip()) for name, _, value in headers), len(data))

    def get(self, name: str) -> str:
        """Return the value of the first header of this name in lower case, or an empty string."""
        return next((value for each, value in self.headers if each.lower() == name), "")

    def without(self, *names: str) -> "Head":
        """Return the head without the headers of these names in lower case."""
        return self._replace(headers=tuple(each for each in self.headers if each[0].lower() not in names))

    def extended(self, *headers: tuple[str, str]) -> "Head":
        """Return the head with further headers."""
        return self._replace(headers=(*self.headers, *headers))

    def lower_case(self) -> "Head":
        """Return the head with the names of its headers in lower case."""
        return self._replace(headers=tuple((name.lower(), value) for name, value in self.headers))

    def __bytes__(self) -> bytes:
        """Return the head as it is sent."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        return f"{self.line}\r\n{fields}\r\n".encode("latin-1")

    @property
    def is_upgrade(self) -> bool:
        """True if the message is a part of a WebSocket's handshake."""
        return self.get("upgrade").lower() == "websocket"

    @property
    def is_chunked_event_stream(self) -> bool:
        """True if the body is an event stream in chunks."""
        is_chunked = self.get("transfer-encoding").lower() == "chunked"
        return is_chunked and self.get("content-type").startswith("text/event-stream")


def kind_of(request: Head) -> Kind:
    """Return the kind of a request."""
    method, path, _ = request.line.split(" ")
    if request.is_upgrade:
        return "websocket"
    if path.startswith(_PREFIX):
        if method == "POST":
            return "post"
        if method == "HEAD":
            return "head"
        if path.startswith(f"{_PREFIX}events"):
            return "events"
    return "other"


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    """Read the content of the next chunk; that of the last one is empty.

    Raises:
        IncompleteReadError: The connection ended before.
    """
    size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
    content = await reader.readexactly(size)
    await reader.readexactly(2)
    return content
