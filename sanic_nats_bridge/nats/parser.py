"""Parser for the output of a NATS server (https://docs.nats.io/reference/reference-protocols/nats-protocol).

It replaces nats-py's parser, which treats a vertical tab or a form feed in a subject as white space. Any publisher may
send such a subject, and nats-py would close the connection because of a malformed line. This parser ends the connection
only for input that no server sends.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

__all__ = ["MalformedLineError", "Operations", "Parser"]

_MAX_DIGITS = 19  # of a 64-bit integer
_MAX_LINE_BYTES = 1024 * 1024  # INFO lists every server of a cluster


class MalformedLineError(ValueError):
    """Input that isn't the NATS protocol. The bytes after it can't be parsed."""


class Operations(Protocol):
    """Callbacks for the parsed operations, implemented by Connection."""

    @property
    def sinks(self) -> Mapping[bytes, Any]:
        """The bridge's own subscriptions. The keys are their numbers as the server writes them."""

    @property
    def on_message(self) -> Callable[[Any, bytes, bytes, bytes], None]:
        """Callback for each message of `sinks`: sink, subject, headers, payload."""

    def delivery_failed(self, sink: Any, error: Exception) -> None:
        """Process an exception of `on_message`. Must not raise."""

    async def foreign_message(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Process a message of a subscription that isn't in `sinks`. Must not raise."""

    async def control(self, line: bytes) -> None:
        """Process a line without a payload: PING, PONG, +OK, -ERR or INFO."""

    def received(self, messages: int, size: int) -> None:
        """Count messages of `sinks`. ``size`` is the number of their payload bytes."""


class Parser:
    """Incremental parser for the byte stream of one NATS server."""

    def __init__(self, operations: Operations) -> None:
        self.reads = 0
        self._operations = operations
        self.reset()

    def reset(self) -> None:
        """Drop an incomplete operation."""
        self._parts: list[bytes] = []
        self._missing = 0

    async def parse(self, data: bytes = b"") -> None:
        """Process each complete operation; keep the rest until more data arrives.

        Raises:
            MalformedLineError: The data isn't the NATS protocol.
        """
        self.reads += bool(data)
        if self._parts:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._parts)
            self._parts = []
        position = await self._process(data)
        if position < len(data):
            self._parts.append(data[position:])

    async def _process(self, data: bytes) -> int:
        """Process the complete operations, and set the number of bytes that the rest lacks at least.

        Returns:
            The position of the rest.
        """
        # No function call per message except `on_message`: this loop is most of the cost of a message before its write.
        operations, on_message = self._operations, self._operations.on_message
        position = messages = payload_bytes = 0
        while (end := data.find(b"\r\n", position)) >= 0:
            words = data[position:end].split(b" ")
            if words[0] != b"MSG" and words[0] != b"HMSG":
                await operations.control(data[position:end])
                position = end + 2
                continue
            header_size = _pop_header_size(words) if words[0] == b"HMSG" else 0
            size = words[-1]
            if not 4 <= len(words) <= 5 or not words[1] or not size.isdigit() or len(size) > _MAX_DIGITS:
                raise MalformedLineError("invalid message line")
            start = end + 2
            stop = start + int(size)
            if stop + 2 > len(data):
                self._missing = stop + 2 - len(data)
                break
            if data[stop : stop + 2] != b"\r\n" or start + header_size > stop:
                raise MalformedLineError("payload size differs from its message line")
            sink = operations.sinks.get(words[2])
            position = stop + 2
            headers = data[start : start + header_size] if header_size else b""
            payload = data[start + header_size : stop]
            if sink is None:
                await self._process_foreign(words, headers, payload)
                continue
            try:
                on_message(sink, words[1], headers, payload)
            except Exception as error:
                operations.delivery_failed(sink, error)
            messages += 1
            payload_bytes += len(payload)
        else:
            if len(data) - position > _MAX_LINE_BYTES:
                raise MalformedLineError("line too long")
            self._missing = 1
        if messages:
            operations.received(messages, payload_bytes)
        return position

    async def _process_foreign(self, words: list[bytes], headers: bytes, payload: bytes) -> None:
        reply = words[3] if len(words) == 5 else b""
        await self._operations.foreign_message(_parse_number(words[2]), words[1], reply, headers, payload)


def _pop_header_size(words: list[bytes]) -> int:
    """Remove the header size from the words of an HMSG line and return it. The words are then those of a MSG line."""
    return _parse_number(words.pop(-2) if len(words) > 4 else b"")


def _parse_number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise MalformedLineError("invalid message line")
    return int(digits)
