"""Parser for the output of a NATS server (https://docs.nats.io/reference/reference-protocols/nats-protocol).

It replaces nats-py's parser, which treats a vertical tab or a form feed in a subject as white space. Any publisher may
send such a subject, and nats-py would close the connection because of a malformed line. This parser ends the connection
only for input that no server sends.
"""

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, Protocol

__all__ = ["MAX_MESSAGE_BYTES", "Control", "MalformedLineError", "Operations", "Parser"]

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest ``max_payload`` that NATS supports."""

_MAX_DIGITS = 19  # of a 64-bit integer
_MAX_WORDS = 6  # of HMSG
_MAX_LINE_BYTES = 1024 * 1024  # INFO lists every server of a cluster
_ADDED_HEADER_BYTES = 64 * 1024
"""Space for the headers that a server adds to a message of the largest size, for instance when it republishes."""
_MAX_PARTS = 1024
_SMALL_BYTES = 512
"""The size below which a part takes much more memory than its bytes."""
_CR, _LF = 13, 10
_LENGTHS = {b"%d" % length: length for length in range(2048)}
"""The usual lengths of messages. To look one up takes a third of the time of checking and converting its digits."""
_COST_PER_TURN = 128
"""The number of messages for others that are processed in one turn of the event loop.

Those that are gathered for one flush aren't counted: the fewer flushes, the fewer writes to each client.
"""
_CONTROL_COST = 8
"""The number of messages that a control line counts as."""


class MalformedLineError(ValueError):
    """Input that isn't the NATS protocol. The bytes after it can't be parsed."""


class Control(Protocol):
    """A subscription whose messages are processed with their reply subjects."""

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, /) -> bool | None:
        """Process a message. Must not raise.

        Returns:
            True if the next one must wait for `Operations.next_turn`, and false if not. ``None`` lets it wait if there
            were many in this turn of the event loop.
        """


class Operations(Protocol):
    """Callbacks for the parsed operations, implemented by Connection."""

    @property
    def sinks(self) -> Mapping[bytes, Any]:
        """The bridge's own subscriptions, in one object. The keys are their numbers as the server writes them."""

    @property
    def on_message(self) -> Callable[[Any, bytes, bytes, bytes], bool]:
        """Callback for each message of `sinks`: sink, subject, headers, payload.

        The next message is processed after `next_turn` if it returns true.
        """

    @property
    def controls(self) -> Mapping[bytes, "Control"]:
        """The subscriptions, in one object, whose messages are processed with their reply subjects."""

    def delivery_failed(self, sink: Any, error: Exception) -> None:
        """Process an exception of `on_message`. Must not raise."""

    async def foreign_message(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Process a message of any other subscription. Must not raise."""

    async def control(self, line: bytes) -> None:
        """Process a line without a payload: PING, PONG, +OK, -ERR or INFO."""

    def received(self, messages: int, size: int) -> None:
        """Count messages of `sinks`. ``size`` is the number of their payload bytes."""

    def message_too_large(self, size: int) -> None:
        """Note the length of a message above the limit, before the error is raised."""

    async def next_turn(self) -> None:
        """Let the other tasks of the event loop run, and return when more messages can be processed."""


_ENDED: Any = iter(())


class _Done:
    """An awaitable that is done, for reads that complete nothing."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, None]:
        return _ENDED  # type: ignore[no-any-return]


_DONE = _Done()


class Parser:
    """Incremental parser for the byte stream of one NATS server."""

    def __init__(self, operations: Operations) -> None:
        self.reads = 0
        self._operations = operations
        self.max_payload = MAX_MESSAGE_BYTES
        """The largest length of a message, to which a server may have added headers."""
        self._cost = 0
        self.reset()

    def reset(self) -> None:
        """Drop an incomplete operation."""
        self._parts: list[bytes] = []
        self._max_parts = _MAX_PARTS
        """The number of parts above which small ones are joined. So input in tiny reads takes little more memory."""
        self._line_bytes = 0
        self._missing = 0
        """The number of bytes that the message lacks; 0 if the end of its line is missing."""

    def parse(self, data: bytes = b"") -> Awaitable[None]:
        """Process each complete operation; keep the rest until more data arrives.

        Raises:
            MalformedLineError: The data isn't the NATS protocol.
        """
        # Not a coroutine, so that a read that completes nothing costs less.
        size = len(data)
        if 0 < size < self._missing:
            self.reads += 1
            self._missing -= size
            self._parts.append(data)
            if size < _SMALL_BYTES:
                self._join_small_parts()
            return _DONE
        if not size:
            return _DONE
        self.reads += 1
        if self._parts:
            self._parts.append(data)
            if not self._missing and not self._has_line_end(data):
                self._join_small_parts()
                return _DONE
            data = b"".join(self._parts)
            self._parts = []
            self._max_parts = _MAX_PARTS
        return self._process(data)

    def _has_line_end(self, data: bytes) -> bool:
        """Return whether the incomplete line may end in the last part, without a look at the others."""
        if b"\r\n" in data or (data[:1] == b"\n" and self._parts[-2].endswith(b"\r")):
            return True
        self._line_bytes += len(data)
        self._check_line()
        return False

    def _check_line(self) -> None:
        if not self._missing and self._line_bytes > _MAX_LINE_BYTES:
            raise MalformedLineError("line too long")

    def _join_small_parts(self) -> None:
        if len(self._parts) > self._max_parts:
            joined = self._max_parts - _MAX_PARTS
            self._parts[joined:] = [b"".join(self._parts[joined:])]
            self._max_parts += 1

    async def _process(self, data: bytes) -> None:  # noqa: C901 - one function, because each call takes 0.1 µs
        """Process the complete operations, and keep the rest."""
        # No function call per message except `on_message`: this loop is most of the cost of a message before its write.
        operations, on_message = self._operations, self._operations.on_message
        find, get_length = data.find, _LENGTHS.get
        get_sink, get_control = operations.sinks.get, operations.controls.get
        position = messages = payload_bytes = self._missing = 0
        max_payload, size = self.max_payload, len(data)
        while (end := find(b"\r\n", position)) >= 0:
            words = data[position:end].split(b" ", _MAX_WORDS)
            header_size = 0 if words[0] == b"MSG" else _pop_header_size(words)
            if header_size < 0:
                await self._process_control(data[position:end])
                position = end + 2
                max_payload = self.max_payload
                continue
            if len(words) == 4:
                _, subject, sid, digits = words
            elif len(words) == 5:
                _, subject, sid, _, digits = words
            else:
                raise MalformedLineError("invalid message line")
            length = get_length(digits) or _parse_number(digits)
            if length > max_payload or header_size > length or not subject:
                self._check_message(subject, length, header_size)
            start = end + 2
            stop = start + length
            if stop + 2 > size:
                self._missing = stop + 2 - size
                break
            if data[stop] != _CR or data[stop + 1] != _LF:
                raise MalformedLineError("payload size differs from its message line")
            position = stop + 2
            headers = data[start : start + header_size] if header_size else b""
            payload = data[start + header_size : stop]
            sink = get_sink(sid)
            if sink is None:
                control = get_control(sid)
                if control is None:
                    await self._process_foreign(words, headers, payload)
                    continue
                must_wait = control.on_message(subject, words[3] if len(words) == 5 else b"", headers, payload)
                if must_wait is None:
                    self._cost += 1
                    must_wait = self._cost >= _COST_PER_TURN
                if must_wait:
                    await self._next_turn()
                continue
            try:
                is_full = on_message(sink, subject, headers, payload)
            except Exception as error:
                operations.delivery_failed(sink, error)
                is_full = False
            messages += 1
            payload_bytes += length - header_size
            if is_full:
                await operations.next_turn()
        operations.received(messages, payload_bytes)
        if position < size:
            self._parts.append(data[position:])
            self._line_bytes = size - position
            self._check_line()

    def _check_message(self, subject: bytes, length: int, header_size: int) -> None:
        if not subject or header_size > length:
            raise MalformedLineError("invalid message line")
        if length > self.max_payload + (_ADDED_HEADER_BYTES if header_size else 0):
            self._operations.message_too_large(length)
            raise MalformedLineError(f"a message of {length} bytes, although max_payload is {self.max_payload}")

    async def _process_control(self, line: bytes) -> None:
        await self._operations.control(line)
        self._cost += _CONTROL_COST
        if self._cost >= _COST_PER_TURN:
            await self._next_turn()

    async def _process_foreign(self, words: list[bytes], headers: bytes, payload: bytes) -> None:
        reply = words[3] if len(words) == 5 else b""
        await self._operations.foreign_message(_parse_number(words[2]), words[1], reply, headers, payload)
        self._cost += 1
        if self._cost >= _COST_PER_TURN:
            await self._next_turn()

    async def _next_turn(self) -> None:
        # The next read may return at once too, so the count goes on after this one.
        self._cost = 0
        await self._operations.next_turn()


def _pop_header_size(words: list[bytes]) -> int:
    """Remove the header size from the words of an HMSG line and return it; -1 if the line isn't one.

    The words are then those of a MSG line.
    """
    if words[0] != b"HMSG":
        return -1
    return _parse_number(words.pop(-2) if len(words) > 4 else b"")


def _parse_number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise MalformedLineError("invalid message line")
    return int(digits)
