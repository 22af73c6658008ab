"""The limits on the input of one client: the sizes of its messages, and the number of their parts.

These classes get bytes, or sizes, and return verdicts. They know no connection and no parser.
"""

from typing import Final

from ..errors import CloseCode

__all__ = ["PROTOCOL_ERROR", "SMALL_BYTES", "FrameLimits", "PartLimit"]

SMALL_BYTES: Final = 512
"""The size below which a part costs more than its bytes. TCP segments of a longer message are larger."""
PROTOCOL_ERROR: Final = 1002  # RFC 6455, section 7.4.1

_PARTS_PER_TURN = 16
_MAX_CONTROL_BYTES = 125  # RFC 6455, section 5.5
_CONTINUATION, _BINARY, _CLOSE = 0, 2, 8
_MASK_BYTES = 4
_WHOLE_TEXT = 0x81
_SHORT_HEADER_BYTES = 2 + _MASK_BYTES
"""The size of the header of a masked frame whose length has one byte."""
_SHORT_LENGTH = 0x80 - _SHORT_HEADER_BYTES
"""The difference between the second byte and the size of such a frame."""
_LONG = 0x80 | (_MAX_CONTROL_BYTES + 1)
"""The second byte of a masked frame whose length has two more bytes."""
_LONG_HEADER_BYTES = _SHORT_HEADER_BYTES + 2


class FrameLimits:
    """The limit on the size of a WebSocket message, applied to the header of each frame, before its payload.

    The size of a message is the sum of the lengths in the headers of its frames. All other rules of RFC 6455 are left
    to the parser of the frames. After a message that is too large only a Close frame is passed on, so that the closing
    handshake can complete.

    Args:
        max_bytes: The largest size of a message.
    """

    __slots__ = ("_held", "_in_message", "_left", "_max_bytes", "_max_long", "_max_short", "_passes", "_size",
                 "begun", "code", "is_idle")  # fmt: skip

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_short = min(_MAX_CONTROL_BYTES, max_bytes) + _SHORT_HEADER_BYTES
        """The size of the largest masked frame within the limit whose length has one byte."""
        self._max_long = max_bytes + _LONG_HEADER_BYTES
        self._held = b""
        """An incomplete header."""
        self._left = 0
        """The number of bytes of the current frame that haven't arrived."""
        self._passes = True
        """False if the current frame is dropped."""
        self._in_message = False
        self._size = 0
        """The size of the current message, by the headers received so far."""
        self.begun = 0
        """The number of messages, and of control frames outside of them, that have begun."""
        self.code: int | None = None
        """The close code for a client that has exceeded a limit."""
        self.is_idle = True
        """True if all that has begun is complete, and no limit was exceeded."""

    @property
    def incomplete(self) -> bool:
        """True if a message or a control frame has begun, and isn't complete."""
        return self.code is None and not self.is_idle

    def check(self, data: bytes) -> bytes:
        """Return the part of the data that may be parsed, without an incomplete header at its end."""
        size = len(data)
        if self.is_idle and size >= _SHORT_HEADER_BYTES and data[0] == _WHOLE_TEXT:
            # The usual command: one text frame, masked, and nothing else.
            if size <= self._max_short:
                is_whole = data[1] == size + _SHORT_LENGTH
            else:
                is_whole = data[1] == _LONG and size == int.from_bytes(data[2:4]) + _LONG_HEADER_BYTES <= self._max_long
            if is_whole:
                self.begun += 1
                return data
        passed = self._follow(data)
        self.is_idle = self.code is None and not (self._left or self._in_message or self._held)
        return passed

    def _follow(self, data: bytes) -> bytes:
        """Return the part of the data that may be parsed, by the header of each frame."""
        size = len(data)
        if size <= self._left:
            self._left -= size
            return data if self._passes else b""
        is_counted = bool(self._held)
        if is_counted:
            data, self._held = self._held + data, b""
            size = len(data)
        passed = []
        start, position = 0, self._left
        while position < size:
            if not is_counted and not self._in_message:
                self.begun += 1
            is_counted = False
            payload_at, length = _lengths(data, position)
            if payload_at > size:
                self._held = data[position:]
                size = position
                break
            passes = self._allows(data[position], length)
            if passes is not self._passes:
                if self._passes:
                    passed.append(data[start:position])
                start, self._passes = position, passes
            position = payload_at + length + (_MASK_BYTES if data[position + 1] & 0x80 else 0)
        self._left = position - size
        if self._passes:
            passed.append(data[start:size])
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def _allows(self, first: int, length: int) -> bool:
        """Return whether a frame is within the limits, by the first byte of its header and its length."""
        opcode = first & 0x0F
        if opcode >= _CLOSE:
            if length > _MAX_CONTROL_BYTES:
                # `websockets` would buffer the payload first.
                self.code = PROTOCOL_ERROR
            return self.code is None or (opcode == _CLOSE and self.code != PROTOCOL_ERROR)
        if self.code is not None:
            return False
        if opcode > _BINARY:
            return True  # The parser rejects a reserved opcode.
        self._size = length + (self._size if opcode == _CONTINUATION else 0)
        if self._size > self._max_bytes:
            self.code = CloseCode.TOO_BIG
            return False
        self._in_message = not first & 0x80
        return True


class PartLimit:
    """The limit on the number of parts in which the body of a request arrives: its chunks, or segments of it.

    Args:
        max_parts: The largest number of parts of less than `SMALL_BYTES`. Larger ones aren't counted.
    """

    __slots__ = ("_left", "_parts")

    def __init__(self, max_parts: int) -> None:
        self._left = max_parts
        self._parts = 0

    @property
    def turn_ends(self) -> bool:
        """True if further parts belong to another turn of the event loop."""
        return self._parts % _PARTS_PER_TURN == 0

    def add(self, size: int) -> bool:
        """Count a part, and return False if the body has too many."""
        self._parts += 1
        if size < SMALL_BYTES:
            self._left -= 1
        return self._left >= 0


def _lengths(data: bytes, position: int) -> tuple[int, int]:
    """Return the end of the lengths in a frame's header, and the length of its payload (RFC 6455, section 5.2).

    The end is beyond the data if the lengths are incomplete.
    """
    end = position + 2
    if end > len(data):
        return end, 0
    length = data[position + 1] & 0x7F
    if length <= _MAX_CONTROL_BYTES:
        return end, length
    begin, end = end, end + (2 if length == _MAX_CONTROL_BYTES + 1 else 8)
    return end, int.from_bytes(data[begin:end])
