"""The reading side of the NATS protocol (https://docs.nats.io/reference/reference-protocols/nats-protocol).

It stands in for nats-py's parser, which takes some bytes that any publisher may put into a subject
(vertical tab, form feed) for white space, calls the line malformed, and gives the connection up.
Here only what the server itself could not have sent ends the connection.
"""

from typing import Final, Protocol

__all__ = ["MalformedLineError", "Operations", "Parser"]

_MAX_LINE_BYTES: Final = 1024 * 1024  # INFO names every server of a cluster


class MalformedLineError(ValueError):
    """The bytes are not the NATS protocol; nothing after them can be understood."""


class Operations(Protocol):
    """Who acts on what was read."""

    def message(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> bool:
        """Take a message; ``False`` where it is not one of the bridge's subscriptions."""

    async def foreign_message(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Take a message of another subscription on the same connection."""

    async def control(self, line: bytes) -> None:
        """Act on a line without a payload: PING, PONG, +OK, -ERR, INFO."""


class Parser:
    """Cuts what is read from a NATS server into operations."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self.reset()

    def reset(self) -> None:
        """Forget what was read in part."""
        self._parts: list[bytes] = []
        self._missing = 0

    async def parse(self, data: bytes = b"") -> None:
        """Act on each whole operation; keep what is not whole yet.

        Raises:
            MalformedLineError: A line has no meaning in the protocol.
        """
        if self._parts:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._parts)
            self._parts = []
        position = await self._operate(data)
        if position < len(data):
            self._parts.append(data[position:])

    async def _operate(self, data: bytes) -> int:
        """Act on what is whole; returns where the rest begins, and notes how much that lacks at least."""
        operations = self._operations
        position = 0
        while (end := data.find(b"\r\n", position)) >= 0:
            kind = data[position : position + 4]
            if kind != b"MSG " and kind != b"HMSG":
                await operations.control(data[position:end])
                position = end + 2
                continue
            sid, subject, reply, header_size, size = _arguments(data[position:end])
            start = end + 2
            stop = start + size
            if stop + 2 > len(data):
                self._missing = stop + 2 - len(data)
                return position
            if data[stop : stop + 2] != b"\r\n":
                raise MalformedLineError("a payload of another size than announced")
            headers = data[start : start + header_size]
            payload = data[start + header_size : stop]
            position = stop + 2
            if not operations.message(sid, subject, reply, headers, payload):
                await operations.foreign_message(sid, subject, reply, headers, payload)
        if len(data) - position > _MAX_LINE_BYTES:
            raise MalformedLineError("a line without an end")
        self._missing = 1
        return position


def _arguments(line: bytes) -> tuple[int, bytes, bytes, int, int]:
    """Number of the subscription, subject, reply subject, size of the headers, size of all, of one line."""
    verb, *words = line.split(b" ")
    try:
        header_size = _count(words.pop(-2)) if verb == b"HMSG" else 0
        size = _count(words.pop())
        subject, sid, *reply = words
        number = _count(sid)
    except (ValueError, IndexError):
        raise MalformedLineError("not a message line") from None
    if verb not in (b"MSG", b"HMSG") or not subject or header_size > size or len(reply) > 1:
        raise MalformedLineError("not a message line")
    return number, subject, reply[0] if reply else b"", header_size, size


def _count(digits: bytes) -> int:
    if not digits.isdigit():
        raise ValueError("not a number")
    return int(digits)
