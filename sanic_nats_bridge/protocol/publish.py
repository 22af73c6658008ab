"""The commands ``publish`` and ``request``: decoded, and the id by which JetStream knows a repeated publish.

Their ``data`` isn't converted: it goes out byte for byte as it is in the command.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..errors import InvalidCommand
from .headers import MAX_HEADERS, MAX_NAME_CHARACTERS, MAX_VALUE_BYTES, Header, is_header_name, is_header_value

__all__ = [
    "MAX_MESSAGE_ID_CHARACTERS",
    "MIN_ANONYMOUS_ID_CHARACTERS",
    "DataEncoding",
    "PublishAction",
    "PublishCommand",
    "decode_publish",
    "message_id",
]

MAX_MESSAGE_ID_CHARACTERS = 64
"""The most characters of a ``msg_id``."""
MIN_ANONYMOUS_ID_CHARACTERS = 22
"""The fewest characters of a ``msg_id`` without an identity: those of 128 bits, so that no client guesses another's."""

PublishAction: TypeAlias = Literal["publish", "request"]
DataEncoding: TypeAlias = Literal["text", "base64"]
"""The ``encoding`` of data that isn't JSON."""

_MESSAGE_ID = re.compile(rf"[A-Za-z0-9._~-]{{1,{MAX_MESSAGE_ID_CHARACTERS}}}", re.ASCII)
_HASH_BYTES = 24


class PublishCommand(Struct, kw_only=True, frozen=True):
    """A publish or a request of a client. Whether it is allowed is not checked yet.

    ``payload`` are the bytes for NATS, and ``encoding`` is the form in which the client has given them; it is empty
    without ``data``. ``headers`` has one item for each value, with the name as the client writes it. ``msg_id`` is
    ``None`` without ``ack``, and ``timeout`` for a publish.
    """

    action: PublishAction
    subject: str
    payload: bytes
    encoding: Literal["", "json"] | DataEncoding = ""
    headers: tuple[Header, ...] = ()
    id: str | int | UnsetType = UNSET
    ack: bool = False
    msg_id: str | None = None
    timeout: float | None = None


class _Received(Struct, kw_only=True, frozen=True):
    action: str | UnsetType = UNSET
    subject: str | UnsetType = UNSET
    data: msgspec.Raw | UnsetType = UNSET
    encoding: DataEncoding | UnsetType = UNSET
    headers: dict[str, list[str]] | UnsetType = UNSET
    id: str | int | UnsetType = UNSET
    ack: bool | UnsetType = UNSET
    msg_id: str | UnsetType = UNSET
    timeout: float | UnsetType = UNSET


_decoder = msgspec.json.Decoder(_Received)
_string_decoder = msgspec.json.Decoder(str)


def decode_publish(data: bytes, action: PublishAction, *, needs_id: bool = False) -> PublishCommand:
    """Decode a publish or a request from JSON. Fields that the action doesn't have are checked and then ignored.

    Args:
        data: The JSON text.
        action: The action of the command, or that which the path of a POST implies.
        needs_id: True if a request must have an ``id``, because its answer may come after those to later commands.

    Raises:
        InvalidCommand: The data isn't a JSON object, a field is missing or invalid, or the action contradicts the path.
    """
    try:
        received = _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidCommand(f"Not a valid command: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidCommand("Not a valid command: malformed JSON") from None
    except RecursionError:
        raise InvalidCommand("Not a valid command: nested too deeply") from None
    if received.action not in (UNSET, action):
        raise InvalidCommand(f"Not a valid command: the action is not '{action}'")
    if isinstance(received.subject, UnsetType):
        raise InvalidCommand("Not a valid command: 'subject' is missing")
    is_request = action == "request"
    if is_request and needs_id and received.id is UNSET:
        raise InvalidCommand("Not a valid command: a request must have an 'id'")
    msg_id, timeout = _message_id(received, is_request), _timeout(received)
    encoding: Literal["", "json"] | DataEncoding = "" if received.data is UNSET else "json"
    if not isinstance(received.encoding, UnsetType):
        encoding = received.encoding
    return PublishCommand(
        action=action,
        subject=received.subject,
        payload=_payload(received),
        encoding=encoding,
        headers=() if isinstance(received.headers, UnsetType) else _headers(received.headers),
        id=received.id,
        ack=received.ack is True and not is_request,
        msg_id=None if is_request else msg_id,
        timeout=timeout if is_request else None,
    )


def message_id(identity: str | None, subject: str, msg_id: str) -> str:
    """Return the ``Nats-Msg-Id`` of a publish, by which JetStream drops a repeated one.

    It is a hash of the author and of the subject too, because the ids of one stream are one set: no client may suppress
    the message of another one, nor its own on another subject.

    Args:
        identity: The identity of the client; ``None`` if it has none.
        subject: The real subject.
        msg_id: The ``msg_id`` of the command.
    """
    # Neither a subject nor a msg_id has a NUL. The identity, which may have one, is the last part.
    author = "" if identity is None else f"\0{identity}"
    digest = hashlib.sha256(f"{subject}\0{msg_id}{author}".encode()).digest()[:_HASH_BYTES]
    return base64.urlsafe_b64encode(digest).decode()


def _message_id(received: _Received, is_request: bool) -> str | None:
    if isinstance(received.msg_id, UnsetType):
        return None
    if not _MESSAGE_ID.fullmatch(received.msg_id):
        raise InvalidCommand(
            f"Not a valid command: 'msg_id' must be 1 to {MAX_MESSAGE_ID_CHARACTERS} letters, digits and any of . _ ~ -"
        )
    if received.ack is not True and not is_request:
        raise InvalidCommand("Not a valid command: 'msg_id' requires 'ack'")
    return received.msg_id


def _timeout(received: _Received) -> float | None:
    if isinstance(received.timeout, UnsetType):
        return None
    if received.timeout <= 0:
        raise InvalidCommand("Not a valid command: 'timeout' must be a number of seconds above 0")
    return received.timeout


def _payload(received: _Received) -> bytes:
    if received.encoding is UNSET:
        return b"" if isinstance(received.data, UnsetType) else _utf8(bytes(received.data))
    text = _string(received.data)
    if text is None:
        raise InvalidCommand(f"Not a valid command: 'data' must be a string, as its encoding is '{received.encoding}'")
    return text.encode() if received.encoding == "text" else _from_base64(text)


def _utf8(document: bytes) -> bytes:
    # The body of a POST may have any bytes, and msgspec doesn't look into a string that it doesn't return.
    if not document.isascii():
        try:
            document.decode()
        except UnicodeDecodeError:
            raise InvalidCommand("Not a valid command: malformed JSON") from None
    return document


def _string(document: msgspec.Raw | UnsetType) -> str | None:
    if isinstance(document, UnsetType):
        return None
    try:
        return _string_decoder.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _from_base64(text: str) -> bytes:
    """Return the bytes of the one base64 text that they have (RFC 4648, sections 3.5 and 4)."""
    try:
        payload = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        payload = None
    if payload is None or binascii.b2a_base64(payload, newline=False) != text.encode():
        raise InvalidCommand("Not a valid command: 'data' is not base64")
    return payload


def _headers(headers: Mapping[str, Sequence[str]]) -> tuple[Header, ...]:
    found: list[Header] = []
    for name, values in headers.items():
        if not is_header_name(name):
            raise InvalidCommand(
                "Not a valid command: the name of a header must be a token of HTTP (RFC 9110) of at most "
                f"{MAX_NAME_CHARACTERS} characters"
            )
        if not values:
            raise InvalidCommand("Not a valid command: a header must have at least one value")
        if len(found) + len(values) > MAX_HEADERS:
            raise InvalidCommand(f"Not a valid command: at most {MAX_HEADERS} header values")
        for value in values:
            # No character takes less than a byte.
            if len(value) > MAX_VALUE_BYTES or len(value.encode()) > MAX_VALUE_BYTES:
                raise InvalidCommand(f"Not a valid command: a header value must be at most {MAX_VALUE_BYTES} bytes")
            if not is_header_value(value):
                raise InvalidCommand("Not a valid command: a header value must not have CR, LF and NUL")
            found.append((name, value))
    return tuple(found)
