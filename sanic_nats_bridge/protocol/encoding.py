"""The bytes of messages and frames on each transport.

A server's WebSocket frame is not masked (RFC 6455, section 5.1), and a chunk of an event stream names no client.
So the same bytes serve every client, and they are encoded once.
"""

import base64
import json
import re
import struct
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from typing import NoReturn

import msgspec

from .messages import Frame, encode, event_name

__all__ = [
    "EncodedMessage",
    "MessagePrefix",
    "WireFormat",
    "chunk",
    "encode_frame",
    "encode_payload",
    "encode_string",
    "event_text",
    "header_fields",
    "is_status",
    "join",
    "websocket_frame",
]


class WireFormat(IntEnum):
    """The encodings of a frame. They are integers, which hash faster than other enum members."""

    WEBSOCKET = 0  # a frame (RFC 6455, section 5)
    EVENT_STREAM = 1  # an event in a chunk
    # For ASGI servers, which add the framing.
    JSON_LINES = 2
    EVENTS = 3


# In Python 3.11, a member of an enum takes longer to look up than several calls.
_WITHOUT_EVENTS = (WireFormat.WEBSOCKET, WireFormat.JSON_LINES)
_LF = 0x0A
_CR = 0x0D
_FIN_TEXT = 0x81
_SHORT = struct.Struct(">BB").pack
_MEDIUM = struct.Struct(">BBH").pack
_LONG = struct.Struct(">BBQ").pack
_STATUS = re.compile(rb"NATS/1\.0[ \t]+[^ \t\r]").match
_MAX_STATUS_BYTES = 256
_MAX_HEADER_VALUES = 64
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_raw_decoder = msgspec.json.Decoder(msgspec.Raw)


class MessagePrefix:
    """The JSON with which every message of one pattern begins.

    Args:
        pattern: The pattern as clients name it.
        alias: The first tokens of the subjects that clients see, which replace ``target``.
        target: The first tokens of the real subjects.
    """

    __slots__ = ("_alias", "_head", "_target_size", "pattern", "wildcard")

    def __init__(self, pattern: str, alias: str = "", target: str = "") -> None:
        self.pattern = pattern
        self.wildcard = "*" in pattern or ">" in pattern
        self._alias = alias
        self._target_size = len(target)
        named = b',"pattern":' + encode_string(pattern) if self.wildcard else b',"subject":' + encode_string(pattern)
        self._head = b'{"type":"message"' + named

    def head(self, subject: str) -> bytes:
        """Return the JSON of a message up to its subject."""
        if not self.wildcard:
            return self._head
        if self._target_size:
            subject = self._alias + subject[self._target_size :]
        return self._head + b',"subject":' + encode_string(subject)


class EncodedMessage(msgspec.Struct, eq=False, gc=False):
    """One NATS message under one pattern, encoded at most once in each wire format, on first use.

    ``subject`` is the real one. ``headers`` is a JSON object or empty. ``number`` orders the messages of a flush.
    ``first`` is the same message under the pattern for which it was created first.
    """

    prefix: MessagePrefix
    subject: str
    headers: bytes
    payload: bytes
    number: int = 0
    first: "EncodedMessage | None" = None
    shared: bool = False
    rest: bytes | None = None
    json: bytes | None = None
    frame: bytes | None = None
    chunk: bytes | None = None
    line: bytes | None = None
    event: bytes | None = None

    def under(self, prefix: MessagePrefix) -> "EncodedMessage":
        """Return the same message under another pattern. Both share the encoded payload."""
        self.shared = True
        return EncodedMessage(prefix, self.subject, self.headers, self.payload, self.number, self)

    def encoded(self, wire_format: WireFormat) -> bytes:
        """Return the bytes for clients with this wire format."""
        data: bytes | None = getattr(self, _FIELDS[wire_format])
        if data is None:
            data = _FRAMED[wire_format](self._as_json())
            setattr(self, _FIELDS[wire_format], data)
        return data

    def _as_json(self) -> bytes:
        if self.json is None:
            head = self.prefix.head(self.subject)
            first = self.first or self
            self.json = head + first.as_shared() if first.shared else first.encode_after(head)
        return self.json

    def as_shared(self) -> bytes:
        """Return the JSON after the subject."""
        if self.rest is None:
            self.rest = self.encode_after(b"")
        return self.rest

    def encode_after(self, head: bytes) -> bytes:
        """Return the JSON that begins with a head, which ends after the subject or later."""
        # Only bytes are kept, because the garbage collector would have to visit containers.
        data, encoding = encode_payload(self.payload)
        headers = b',"headers":' + self.headers if self.headers else b""
        return b"".join((head, headers, b',"data":', data, encoding, b"}"))


def join(messages: Iterable[EncodedMessage], wire_format: WireFormat) -> bytes:
    """Return several messages as the bytes of one write."""
    return b"".join([message.encoded(wire_format) for message in messages])


def encode_frame(
    frame: Frame, wire_format: WireFormat, retry: int | None = None, *, event_id: str | None = None
) -> bytes:
    """Encode a frame that isn't a message.

    Args:
        frame: The frame.
        wire_format: The wire format.
        retry: The milliseconds in the ``retry:`` line of an event.
        event_id: The id in the ``id:`` line of an event.
    """
    document = encode(frame)
    if wire_format in _WITHOUT_EVENTS:
        return _FRAMED[wire_format](document)
    written = event_text(document, event_name(frame), retry, event_id)
    return chunk(written) if wire_format is WireFormat.EVENT_STREAM else written


def encode_payload(payload: bytes) -> tuple[bytes, bytes]:
    """Return a payload as the JSON of ``data``, and the JSON of the ``encoding`` member if there is one.

    A JSON payload is checked and embedded unchanged, so that numbers keep their digits.
    """
    if not payload:
        return b"null", b""
    try:
        text = None if payload.isascii() else payload.decode()
    except UnicodeDecodeError:
        return b'"%b"' % base64.b64encode(payload), b',"encoding":"base64"'
    if _is_json(payload):
        return _on_one_line(payload), b""
    return encode_string(payload.decode() if text is None else text), b',"encoding":"text"'


def is_status(block: bytes) -> bool:
    """Return whether a NATS header block has a status, so that the message is from NATS itself and not from an app.

    ADR-4 defines the status in the first line, and ADR-9 the idle heartbeats and flow control requests of JetStream.
    """
    return _STATUS(block, 0, _MAX_STATUS_BYTES) is not None


def header_fields(block: bytes, names: frozenset[str]) -> bytes:
    """Return the named headers of a NATS header block (ADR-4) as a JSON object; empty if there is none.

    The block is searched for the names, and not split: it may have many other lines. Only the first 64 values of each
    header are returned. It never raises, because a publisher may put any bytes into the block.
    """
    fields: dict[str, list[str]] = {}
    for name, line_start, size in _line_starts(names):
        start = block.find(line_start)
        if start >= 0:
            end = block.find(b"\r\n", start + size)
            fields[name] = [block[start + size : end if end >= 0 else None].strip().decode("utf-8", "replace")]
            start = block.find(line_start, end) if end >= 0 else -1
            if start >= 0:
                fields[name] += _more_values(block, line_start, start)
    return msgspec.json.encode(fields) if fields else b""


@lru_cache(16)
def _line_starts(names: frozenset[str]) -> tuple[tuple[str, bytes, int], ...]:
    """Return each name with the bytes that precede its values in a header block, and their number."""
    starts = ((name, b"\r\n%b:" % name.encode()) for name in sorted(names))
    return tuple((name, start, len(start)) for name, start in starts)


def _more_values(block: bytes, line_start: bytes, start: int) -> list[str]:
    """Return the values of a header after the first one, beginning at this position."""
    lines = block[start:].split(line_start, _MAX_HEADER_VALUES)[1:_MAX_HEADER_VALUES]
    return [line.partition(b"\r\n")[0].strip().decode("utf-8", "replace") for line in lines]


def websocket_frame(payload: bytes) -> bytes:
    """Return an unfragmented, unmasked text frame (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        return _SHORT(_FIN_TEXT, size) + payload
    if size < 0x10000:
        return _MEDIUM(_FIN_TEXT, 126, size) + payload
    return _LONG(_FIN_TEXT, 127, size) + payload


def event_text(data: bytes, event: str | None = None, retry: int | None = None, event_id: str | None = None) -> bytes:
    """Return one event (WHATWG HTML, server-sent events).

    ``data`` must be JSON on one line, so that it can neither end the event nor begin a field. ``event_id`` must be an
    id of the protocol, for the same reason.
    """
    fields = b"" if retry is None else b"retry: %d\n" % retry
    if event_id is not None:
        fields += b"id: %b\n" % event_id.encode()
    if event is not None:
        fields += b"event: %b\n" % event.encode()
    return b"%bdata: %b\n\n" % (fields, data)


def chunk(data: bytes) -> bytes:
    """Return a chunk of a response with chunked transfer coding (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _line(document: bytes) -> bytes:
    return document + b"\n"


def _chunked_event(data: bytes) -> bytes:
    # Equal to `chunk(event_text(data))`, in one step.
    return b"%x\r\ndata: %b\n\n\r\n" % (len(data) + len(b"data: \n\n"), data)


def _event(data: bytes) -> bytes:
    # Equal to `event_text(data)`, in one step.
    return b"data: %b\n\n" % data


# By wire format: the field of a message that keeps its bytes, and the function that encodes them from JSON.
_FIELDS = ("frame", "chunk", "line", "event")
_FRAMED = (websocket_frame, _chunked_event, _line, _event)


def encode_string(text: str) -> bytes:
    """Return a JSON string."""
    return msgspec.json.encode(text)


def _on_one_line(document: bytes) -> bytes:
    # Valid JSON has raw line ends between tokens only.
    if _LF in document or _CR in document:
        return document.replace(b"\r", b" ").replace(b"\n", b" ")
    return document


def _is_json(document: bytes) -> bool:
    """Return whether UTF-8 is JSON (RFC 8259) whose nesting the decoder supports."""
    try:
        _raw_decoder.decode(document)
    except RecursionError:
        return False
    except msgspec.DecodeError:
        # msgspec rejects a lone escaped surrogate, which the grammar allows, and which browsers write for half an
        # emoji. Only then `json` decides, because it takes fifty times as long.
        return _ESCAPED_SURROGATE.search(document) is not None and _is_json_by_stdlib(document)
    return True


def _is_json_by_stdlib(document: bytes) -> bool:
    try:
        json.loads(document.decode(), parse_int=str, parse_float=str, parse_constant=_reject)
    except (ValueError, RecursionError):
        return False
    return True


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
