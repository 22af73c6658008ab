"""The reading side of the NATS protocol (https://docs.nats.io/reference/reference-protocols/nats-protocol).

It stands in for nats-py's parser, which takes some bytes that any publisher may put into a subject
(vertical tab, form feed) for white space, calls the line malformed, and gives the connection up.
Here only what the server itself could not have sent ends the connection.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

__all__ = ["MalformedLineError", "Operations", "Parser"]

_MAX_DIGITS: Final = 19  # of 64 bits
_MAX_LINE_BYTES: Final = 1024 * 1024  # INFO names every server of a cluster


class MalformedLineError(ValueError):
    """The bytes are not the NATS protocol; nothing after them can be understood."""


class Operations(Protocol):
    """Who acts on what was read."""

    @property
    def sinks(self) -> Mapping[bytes, Any]:
        """The bridge's own subscriptions, by their numbers as the server writes them."""

    @property
    def on_message(self) -> Callable[[Any, bytes, bytes, bytes], None]:
        """Called with each message for one of them: sink, subject, headers, payload."""

    def delivery_failed(self, sink: Any, error: Exception) -> None:
        """Hear that `on_message` has raised."""

    async def foreign_message(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Take a message of another subscription on the same connection."""

    async def control(self, line: bytes) -> None:
        """Act on a line without a payload: PING, PONG, +OK, -ERR, INFO."""

    def received(self, messages: int, size: int) -> None:
        """Hear how many messages came for `sinks`, and of how many bytes."""


class Parser:
    """Cuts what is read from a NATS server into operations."""

    def __init__(self, operations: Operations) -> None:
        self.reads = 0
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
        self.reads += bool(data)
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
        # One frame and no function of ours for each message: this loop is most of what one costs before its write.
        operations, on_message = self._operations, self._operations.on_message
        position = messages = taken = 0
        while (end := data.find(b"\r\n", position)) >= 0:
            words = data[position:end].split(b" ")
            if words[0] != b"MSG" and words[0] != b"HMSG":
                await operations.control(data[position:end])
                position = end + 2
                continue
            header_size = _header_size(words) if words[0] == b"HMSG" else 0
            size = words[-1]
            if not 4 <= len(words) <= 5 or not words[1] or not size.isdigit() or len(size) > _MAX_DIGITS:
                raise MalformedLineError("not a message line")
            start = end + 2
            stop = start + int(size)
            if stop + 2 > len(data):
                self._missing = stop + 2 - len(data)
                break
            if data[stop : stop + 2] != b"\r\n" or start + header_size > stop:
                raise MalformedLineError("a payload of another size than announced")
            sink = operations.sinks.get(words[2])
            position = stop + 2
            headers = data[start : start + header_size] if header_size else b""
            payload = data[start + header_size : stop]
            if sink is None:
                await self._pass_on(words, headers, payload)
                continue
            try:
                on_message(sink, words[1], headers, payload)
            except Exception as error:
                operations.delivery_failed(sink, error)
            messages += 1
            taken += len(payload)
        else:
            if len(data) - position > _MAX_LINE_BYTES:
                raise MalformedLineError("a line without an end")
            self._missing = 1
        if messages:
            operations.received(messages, taken)
        return position

    async def _pass_on(self, words: list[bytes], headers: bytes, payload: bytes) -> None:
        reply = words[3] if len(words) == 5 else b""
        await self._operations.foreign_message(_count(words[2]), words[1], reply, headers, payload)


def _header_size(words: list[bytes]) -> int:
    """Take the size of the headers out of the words of a line, which are then as those of a plain message."""
    return _count(words.pop(-2) if len(words) > 4 else b"")


def _count(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise MalformedLineError("not a message line")
    return int(digits)
