"""One message, or one frame, as the bytes that leave for a client: a WebSocket frame or an event.

A server's WebSocket frame is not masked (RFC 6455, section 5.1), and a chunk of an event stream has
no address either, so the same bytes serve every client: they are built once, with their headers.
"""

import base64
import json
import re
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NoReturn

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
    "join",
    "websocket_frame",
]


class WireFormat(IntEnum):
    """The shapes in which a frame leaves; of integers, whose hash is that of C."""

    WEBSOCKET = 0  # RFC 6455, section 5
    EVENT_STREAM = 1  # events, each in a chunk
    # For servers that put their own framing around what they are given.
    JSON_LINES = 2
    EVENTS = 3


_LF: Final = 0x0A
_CR: Final = 0x0D
_FIN_TEXT: Final = 0x81
_SHORT: Final = struct.Struct(">BB").pack
_MEDIUM: Final = struct.Struct(">BBH").pack
_LONG: Final = struct.Struct(">BBQ").pack
_ESCAPED_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")

_raw_decoder = msgspec.json.Decoder(msgspec.Raw)


class MessagePrefix:
    """What the messages of one pattern have in common, as a client names it.

    The subject that a client sees begins with ``alias`` instead of ``target``.
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
        """The opening of a `message` frame, its subject included."""
        if not self.wildcard:
            return self._head
        if self._target_size:
            subject = self._alias + subject[self._target_size :]
        return self._head + b',"subject":' + encode_string(subject)


class EncodedMessage(msgspec.Struct, eq=False, gc=False):
    """One NATS message under one pattern, encoded once in each form, when that is first needed.

    ``subject`` is the real one. ``headers`` is a JSON object or empty; ``number`` is the message's place
    among those of its turn.
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
        """The same message under another pattern; what they have in common is encoded once."""
        self.shared = True
        return EncodedMessage(prefix, self.subject, self.headers, self.payload, self.number, self)

    def encoded(self, wire_format: WireFormat) -> bytes:
        """The bytes to write to a client of that form."""
        data: bytes | None = getattr(self, _FIELDS[wire_format])
        if data is None:
            data = _FRAMED[wire_format](self._as_json())
            setattr(self, _FIELDS[wire_format], data)
        return data

    def _as_json(self) -> bytes:
        if self.json is None:
            head = self.prefix.head(self.subject)
            first = self.first or self
            self.json = head + first._as_shared() if first.shared else first._encode(head)
        return self.json

    def _as_shared(self) -> bytes:
        """The `message` frame but for its head."""
        if self.rest is None:
            self.rest = self._encode(b"")
        return self.rest

    def _encode(self, head: bytes) -> bytes:
        # Nothing is kept but bytes: of containers the garbage collector would have to look at each one.
        data, encoding = encode_payload(self.payload)
        headers = b',"headers":' + self.headers if self.headers else b""
        return b"".join((head, headers, b',"data":', data, encoding, b"}"))


def join(messages: Iterable[EncodedMessage], wire_format: WireFormat) -> bytes:
    """Several messages as one write."""
    return b"".join([message.encoded(wire_format) for message in messages])


def encode_frame(frame: Frame, wire_format: WireFormat, retry: int | None = None) -> bytes:
    """Any frame but a message. ``retry`` (milliseconds) goes before it on an event stream."""
    document = encode(frame)
    if wire_format in (WireFormat.WEBSOCKET, WireFormat.JSON_LINES):
        return _FRAMED[wire_format](document)
    written = event_text(document, event_name(frame), retry)
    return chunk(written) if wire_format is WireFormat.EVENT_STREAM else written


def encode_payload(payload: bytes) -> tuple[bytes, bytes]:
    """A payload as the JSON of `message.data`, and the ``encoding`` member that tells how, or nothing.

    JSON is embedded as it stands: checked, never rebuilt, so that numbers keep their digits.
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


def header_fields(block: bytes, names: frozenset[str]) -> bytes:
    """The allowed headers of a NATS header block (ADR-4) as a JSON object, or nothing.

    Never raises: whoever publishes may put any bytes there.
    """
    fields: dict[str, list[str]] = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        key = name.decode("utf-8", "replace")
        if colon and key in names:
            fields.setdefault(key, []).append(value.strip().decode("utf-8", "replace"))
    return msgspec.json.encode(fields) if fields else b""


def websocket_frame(payload: bytes) -> bytes:
    """An unfragmented, unmasked text frame (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        return _SHORT(_FIN_TEXT, size) + payload
    if size < 0x10000:
        return _MEDIUM(_FIN_TEXT, 126, size) + payload
    return _LONG(_FIN_TEXT, 127, size) + payload


def event_text(data: bytes, event: str | None = None, retry: int | None = None) -> bytes:
    """One event (WHATWG HTML, server-sent events).

    ``data`` is JSON on one line: nothing in it could end the event or start a field.
    """
    fields = b"" if retry is None else b"retry: %d\n" % retry
    if event is not None:
        fields += b"event: %b\n" % event.encode()
    return b"%bdata: %b\n\n" % (fields, data)


def chunk(data: bytes) -> bytes:
    """A chunk of a response whose length is not known (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _line(document: bytes) -> bytes:
    return document + b"\n"


def _chunked_event(data: bytes) -> bytes:
    # Of a message, which is `chunk(event_text(data))` in one step.
    return b"%x\r\ndata: %b\n\n\r\n" % (len(data) + len(b"data: \n\n"), data)


# By form: where a delivery keeps its bytes, and what makes them of its JSON.
_FIELDS: Final = ("frame", "chunk", "line", "event")
_FRAMED: Final = (websocket_frame, _chunked_event, _line, event_text)


def encode_string(text: str) -> bytes:
    """A JSON string."""
    return msgspec.json.encode(text)


def _on_one_line(document: bytes) -> bytes:
    # In valid JSON a raw line end can only stand between tokens.
    if _LF in document or _CR in document:
        return document.replace(b"\r", b" ").replace(b"\n", b" ")
    return document


def _is_json(document: bytes) -> bool:
    """Whether UTF-8 text is JSON (RFC 8259), nested no deeper than the decoder follows."""
    try:
        _raw_decoder.decode(document)
    except RecursionError:
        return False
    except msgspec.DecodeError:
        # It refuses what the grammar allows: an escaped surrogate alone, as browsers write for a cut
        # emoji. `json` has the last word, where there is one: it takes fifty times as long.
        return _ESCAPED_SURROGATE.search(document) is not None and _is_json_to_the_letter(document)
    return True


def _is_json_to_the_letter(document: bytes) -> bool:
    try:
        json.loads(document.decode(), parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
