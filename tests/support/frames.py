"""WebSocket frames of any kind as a client may send them, and what RFC 6455 has a server do with them."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
PROTOCOL_ERROR, NO_CODE, INVALID_DATA, TOO_BIG = 1002, 1005, 1007, 1009

_REGISTERED: Final = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x00\x00\x00\x00",
    length: int | None = None,
    width: int = 0,
) -> bytes:
    """Return a frame (section 5.2), if requested with a wrong length or a longer length field than needed."""
    length = len(payload) if length is None else length
    width = max(width, 0 if length < 126 else 2 if length < 2**16 else 8)
    short = {0: length, 2: 126, 8: 127}[width]
    head = bytes([fin << 7 | rsv << 4 | opcode, (mask is not None) << 7 | short]) + length.to_bytes(width or 1)[:width]
    return head + (payload if mask is None else mask + masked(payload, mask))


def masked(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


@dataclass
class Verdict:
    """The required reaction of a server to the data of a client."""

    messages: list[str | bytes] = field(default_factory=list)
    """The messages to answer, in their order; those before the end of the connection."""

    pings: list[bytes] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)
    """It must fail the connection, with one of these."""

    close: bytes | None = None
    """The payload of the client's valid Close."""

    unfinished: bool = False
    """The last message lacks its last fragment."""

    cut_off: bool = False
    """The last frame is not there wholly."""


def judge(data: bytes, max_command_bytes: int) -> Verdict:
    """Return the verdict on the bytes that follow the handshake."""
    reader = _Reader(max_command_bytes)
    while data and not reader.over:
        data = reader.read(data)
    return reader.verdict


class _Reader:
    def __init__(self, max_command_bytes: int) -> None:
        self.verdict = Verdict()
        self.over = False
        self._max = max_command_bytes
        self._opcode: int | None = None
        self._parts = b""

    def read(self, data: bytes) -> bytes:
        """Take a frame; returns what is behind it."""
        if len(data) < 2:
            return self._cut_off()
        fin, rsv, opcode, length = data[0] >> 7, data[0] >> 4 & 7, data[0] & 15, data[1] & 127
        if opcode not in (CONT, TEXT, BINARY, CLOSE, PING, PONG) or not data[1] >> 7:
            return self._fail(PROTOCOL_ERROR)
        width = {126: 2, 127: 8}.get(length, 0)
        start = 2 + width + 4
        if len(data) < 2 + width:
            return self._cut_off()
        if width:
            length = int.from_bytes(data[2 : 2 + width])
        if codes := self._limits(opcode, rsv, length):
            return self._fail(*codes)
        if len(data) < start + length:
            return self._cut_off()
        payload = masked(data[start : start + length], data[start - 4 : start])
        if rsv or (opcode >= CLOSE and not fin):
            return self._fail(PROTOCOL_ERROR)
        if opcode >= CLOSE:
            self._control(opcode, payload)
        elif (opcode == CONT) != (self._opcode is not None):
            self._fail(PROTOCOL_ERROR)
        else:
            self._fragment(opcode, payload, last=bool(fin))
        return data[start + length :]

    def _limits(self, opcode: int, rsv: int, length: int) -> list[int]:
        """Return the codes for a frame that is too large by its header."""
        if opcode >= CLOSE:
            return [PROTOCOL_ERROR] if length > 125 else []
        if length + (len(self._parts) if opcode == CONT else 0) <= self._max:
            return []
        # What else is wrong with the frame may be seen first.
        faulty = rsv or (opcode == CONT) != (self._opcode is not None)
        return [TOO_BIG, PROTOCOL_ERROR] if faulty else [TOO_BIG]

    def _cut_off(self) -> bytes:
        self.over = self.verdict.cut_off = True
        return b""

    def _fail(self, *codes: int) -> bytes:
        self.over = True
        self.verdict.codes.update(codes)
        return b""

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self._close(payload)
        elif opcode == PING:
            self.verdict.pings.append(payload)

    def _close(self, payload: bytes) -> None:
        self.over = True
        code, reason = int.from_bytes(payload[:2]) if payload else NO_CODE, payload[2:]
        faults = set()
        if len(payload) == 1 or (payload and code not in _REGISTERED) or self._opcode is not None:
            # In the middle of a message it is `websockets` that takes it for an error; the RFC leaves it open.
            faults.add(PROTOCOL_ERROR)
        if not _is_utf8(reason):
            faults.add(INVALID_DATA)
        if faults or self.verdict.codes:
            # What is wrong with a message may be seen only when the Close behind it has been answered.
            self.verdict.codes |= faults or {code}
        else:
            self.verdict.close = payload

    def _fragment(self, opcode: int, payload: bytes, *, last: bool) -> None:
        if opcode != CONT:
            self._opcode, self._parts = opcode, b""
        self._parts += payload
        self.verdict.unfinished = not last
        if last:
            self._message(self._opcode == TEXT, self._parts)
            self._opcode = None

    def _message(self, text: bool, content: bytes) -> None:
        if text and not _is_utf8(content):
            self.verdict.codes.add(INVALID_DATA)
        if not self.verdict.codes:
            self.verdict.messages.append(content.decode() if text else content)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return opcode and payload of the server's next frame, which is whole and not masked.

    Raises:
        IncompleteReadError: The connection has ended.
    """
    first, length = await reader.readexactly(2)
    assert first & 0xF0 == 0x80, hex(first)
    assert length < 128
    if length > 125:
        length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8))
    return first & 15, await reader.readexactly(length)
