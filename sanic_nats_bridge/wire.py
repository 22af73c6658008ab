"""One message, or one frame, as the bytes that leave for a client: a WebSocket frame or an event.

A server's WebSocket frame is not masked (RFC 6455, section 5.1), and a chunk of an event stream has
no address either, so the same bytes serve every client: they are built once, with their headers.
"""

import base64
import json
import re
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NoReturn

import msgspec

from .protocol import Frame, encode, event_name

__all__ = [
    "Delivery",
    "Form",
    "chunk",
    "encode_frame",
    "encode_payload",
    "encode_string",
    "event_text",
    "header_fields",
    "join",
    "message_head",
    "websocket_frame",
]


class Form(IntEnum):
    """The shapes in which a frame leaves; of integers, whose hash is that of C."""

    WEBSOCKET = 0  # RFC 6455, section 5
    EVENT_STREAM = 1  # events, each in a chunk
    # For servers that put their own framing around what they are given.
    JSON_LINES = 2
    EVENTS = 3


_FIN_TEXT: Final = 0x81
_ESCAPED_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")

_raw_decoder = msgspec.json.Decoder(msgspec.Raw)


class Delivery:
    """One NATS message under one pattern, encoded once in each form, when that is first needed."""

    __slots__ = ("_encoded", "_head", "_headers", "_json", "_payload", "pattern", "subject")

    def __init__(self, pattern: str, head: bytes, subject: str, headers: bytes, payload: bytes) -> None:
        """``head`` is what every message of the pattern has in common, ``headers`` a JSON object or empty."""
        self.pattern = pattern
        self.subject = subject
        self._head = head
        self._headers = headers
        self._payload = payload
        self._json: bytes | None = None
        self._encoded: dict[Form, bytes] = {}

    def encoded(self, form: Form) -> bytes:
        """The bytes to write to a client of that form."""
        data = self._encoded.get(form)
        if data is None:
            data = self._encoded[form] = _framed(self._as_json(), form)
        return data

    def _as_json(self) -> bytes:
        if self._json is None:
            data, encoding = encode_payload(self._payload)
            headers = b',"headers":' + self._headers if self._headers else b""
            self._json = b'%b,"subject":%b%b,"data":%b%b}' % (
                self._head,
                encode_string(self.subject),
                headers,
                data,
                encoding,
            )
        return self._json


def message_head(pattern: str, *, wildcard: bool) -> bytes:
    """The opening of a `message` frame, up to its subject."""
    named = b',"pattern":' + encode_string(pattern) if wildcard else b""
    return b'{"type":"message"' + named


def join(deliveries: Iterable[Delivery], form: Form) -> bytes:
    """What arrived in one turn of the event loop, as one write."""
    return b"".join([delivery.encoded(form) for delivery in deliveries])


def encode_frame(frame: Frame, form: Form, retry: int | None = None) -> bytes:
    """Any frame but a message. ``retry`` (milliseconds) goes before it on an event stream."""
    return _framed(encode(frame), form, event_name(frame), retry)


def _framed(document: bytes, form: Form, event: str | None = None, retry: int | None = None) -> bytes:
    if form is Form.WEBSOCKET:
        return websocket_frame(document)
    if form is Form.JSON_LINES:
        return document + b"\n"
    written = event_text(document, event, retry)
    return chunk(written) if form is Form.EVENT_STREAM else written


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
        return bytes((_FIN_TEXT, size)) + payload
    if size < 0x10000:
        return b"\x81\x7e" + size.to_bytes(2) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload


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


def encode_string(text: str) -> bytes:
    """A JSON string."""
    return msgspec.json.encode(text)


def _on_one_line(document: bytes) -> bytes:
    # In valid JSON a raw line end can only stand between tokens.
    if b"\n" in document or b"\r" in document:
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
