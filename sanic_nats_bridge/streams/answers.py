"""The answers of JetStream: errors, the state of a stream, stored messages, and the metadata of delivered ones.

A server may answer anything. What isn't valid raises `JetStreamError`, and nothing else.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import msgspec

from ..nats.line_filter import printable

__all__ = [
    "Batch",
    "ConsumerMissing",
    "JetStreamError",
    "JetStreamUnavailable",
    "MessageMissing",
    "PermissionMissing",
    "StoredMessage",
    "StreamInfo",
    "StreamMissing",
    "batch_of",
    "check",
    "direct_message",
    "ends_batch",
    "feed_metadata",
    "message_of_json",
    "pending_of_consumer",
    "status_of",
    "stream_info",
]

_STATUS = b"NATS/1.0 "
_ADDED = b"Nats-Stream: "
"""The beginning of the header lines that the server adds to a stored message."""
_NO_HEADERS = b"NATS/1.0\r\n"
_MAX_ADDED_LINES = 16
_NANOSECONDS = 9
_MILLISECOND_DIGITS = 6
_MAX_TOKENS = 12
_TOKENS = 9
_TOKENS_WITH_DOMAIN = 11
_MAX_DIGITS = 20  # of an unsigned 64-bit integer
_MAX_DESCRIPTION = 300
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", re.ASCII).fullmatch
_STORED = re.compile(
    rb"Nats-Stream: [^\n]*\r\nNats-Subject: ([^\n]*)\r\nNats-Sequence: (\d{1,20})\r\n"
    rb"Nats-Time-Stamp: (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{3})\d{0,6}Z\r\n"
    rb"(?:Nats-Num-Pending: \d{1,20}\r\nNats-Last-Sequence: (\d{1,20})\r\n)?\r\n"
).fullmatch
"""The usual lines that the server adds to a stored message. To split them takes twice as long."""
_STREAM_MISSING = 10059
_CONSUMER_MISSING = 10014
_MESSAGE_MISSING = 10037
_NOT_FOUND = 404
_END_OF_BATCH = 204
_UNAVAILABLE = {408, 503, 504}
_OFFLINE = {10118, 10119}
"""Error codes of a stream or a consumer whose servers are all offline, which have the status 500."""


class JetStreamError(Exception):
    """An answer that JetStream shouldn't have given, or an error of its API.

    Args:
        description: The error, for the log.
        code: The status of an error of the API; 0 for other errors.
        err_code: The number of an error of the API; 0 for other errors.
    """

    def __init__(self, description: str, code: int = 0, err_code: int = 0) -> None:
        super().__init__(description)
        self.description = description
        self.code = code
        self.err_code = err_code


class JetStreamUnavailable(JetStreamError):
    """No answer, or an incomplete one. The same request may succeed later."""


class PermissionMissing(JetStreamError):
    """The NATS user may not send a request."""


class StreamMissing(JetStreamError):
    """The stream doesn't exist."""


class ConsumerMissing(JetStreamError):
    """The consumer doesn't exist."""


class MessageMissing(JetStreamError):
    """No stored message has this sequence or a later one, and matches the pattern."""


class StoredMessage(NamedTuple):
    """A message of a stream.

    ``time`` is in milliseconds since 1970. ``subject`` is empty if it isn't UTF-8, as for live messages. ``headers``
    is the header block that the publisher has sent; empty if there was none.
    """

    seq: int
    time: int
    subject: str
    headers: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages of a stream that follow each other, under one pattern.

    ``is_end`` is true if no more follow, as far as the server that answered knows. ``pending`` is the number that
    follow, and -1 if that isn't known.
    """

    messages: list[StoredMessage]
    is_end: bool
    pending: int


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The configuration and the state of a stream. Times are in milliseconds since 1970, 0 if there is none."""

    name: str
    created: str
    """The time of the creation, as JetStream writes it."""
    first_seq: int
    last_seq: int
    first_time: int
    last_time: int
    messages: int
    subjects: tuple[str, ...]
    """The subjects that the stream listens to; empty for a mirror."""
    retention: str
    storage: str
    allow_direct: bool
    max_msgs_per_subject: int
    max_age_ns: int
    max_msgs: int
    max_bytes: int
    num_replicas: int
    is_mirror: bool
    has_sources: bool
    """True if other streams are copied into this one, with any subjects."""
    has_transform: bool
    """True if the subjects of stored messages differ from those that were published."""


class _Failure(msgspec.Struct, gc=False):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct, gc=False):
    error: _Failure | None = None


class _Config(msgspec.Struct, gc=False):
    name: str
    retention: str = "limits"
    storage: str = "file"
    subjects: tuple[str, ...] | None = None
    allow_direct: bool = False
    max_msgs_per_subject: int = -1
    max_age: int = 0
    max_msgs: int = -1
    max_bytes: int = -1
    num_replicas: int = 1
    mirror: dict[str, Any] | None = None
    sources: list[Any] | None = None
    subject_transform: dict[str, Any] | None = None


class _State(msgspec.Struct, gc=False):
    messages: int
    first_seq: int
    last_seq: int
    first_ts: str
    last_ts: str


class _InfoAnswer(_Answer, gc=False):
    config: _Config | None = None
    state: _State | None = None
    created: str = ""


class _Message(msgspec.Struct, gc=False):
    subject: str
    seq: int
    time: str
    hdrs: bytes = b""
    data: bytes = b""


class _MessageAnswer(_Answer, gc=False):
    message: _Message | None = None


class _ConsumerAnswer(_Answer, gc=False):
    name: str = ""
    num_pending: int = 0


_AnswerType = TypeVar("_AnswerType", bound=_Answer)


@lru_cache(8)
def _decoder(kind: type[_AnswerType]) -> "msgspec.json.Decoder[_AnswerType]":
    return msgspec.json.Decoder(kind)


def _decode(answer: bytes, kind: type[_AnswerType]) -> _AnswerType:
    """Return an answer of the API.

    Raises:
        JetStreamError: It isn't valid, or an error.
    """
    try:
        decoded: _AnswerType = _decoder(kind).decode(answer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise JetStreamError("invalid answer") from None
    if decoded.error is not None:
        raise _error(decoded.error)
    return decoded


def _error(failure: _Failure) -> JetStreamError:
    description = printable(failure.description[:_MAX_DESCRIPTION]) or "error without a description"
    kinds = {
        _STREAM_MISSING: StreamMissing,
        _CONSUMER_MISSING: ConsumerMissing,
        _MESSAGE_MISSING: MessageMissing,
    }
    kind = kinds.get(failure.err_code, JetStreamError)
    if kind is JetStreamError and (failure.code in _UNAVAILABLE or failure.err_code in _OFFLINE):
        kind = JetStreamUnavailable
    return kind(description, failure.code, failure.err_code)


def stream_info(answer: bytes) -> StreamInfo:
    """Return the stream that an answer of ``STREAM.INFO`` describes.

    Raises:
        JetStreamError: The answer isn't valid, or an error.
    """
    decoded = _decode(answer, _InfoAnswer)
    config, state = decoded.config, decoded.state
    if (
        config is None
        or state is None
        or not decoded.created
        or min(state.messages, state.first_seq, state.last_seq) < 0
    ):
        raise JetStreamError("invalid answer")
    return StreamInfo(
        name=config.name,
        created=decoded.created,
        first_seq=state.first_seq,
        last_seq=state.last_seq,
        first_time=max(0, _milliseconds(state.first_ts)),
        last_time=max(0, _milliseconds(state.last_ts)),
        messages=state.messages,
        subjects=config.subjects or (),
        retention=config.retention,
        storage=config.storage,
        allow_direct=config.allow_direct,
        max_msgs_per_subject=config.max_msgs_per_subject,
        max_age_ns=config.max_age,
        max_msgs=config.max_msgs,
        max_bytes=config.max_bytes,
        num_replicas=config.num_replicas,
        is_mirror=config.mirror is not None,
        has_sources=config.sources is not None,
        has_transform=config.subject_transform is not None,
    )


def message_of_json(answer: bytes) -> StoredMessage:
    """Return the message of an answer of ``STREAM.MSG.GET``.

    Raises:
        JetStreamError: The answer isn't valid, or an error.
    """
    message = _decode(answer, _MessageAnswer).message
    if message is None or message.seq <= 0:
        raise JetStreamError("invalid answer")
    return StoredMessage(message.seq, _milliseconds(message.time), message.subject, message.hdrs, message.data)


def pending_of_consumer(answer: bytes, name: str) -> int:
    """Return the number of messages that a new consumer will deliver.

    Raises:
        JetStreamError: The answer isn't valid, or an error.
    """
    decoded = _decode(answer, _ConsumerAnswer)
    if decoded.name != name or decoded.num_pending < 0:
        raise JetStreamError("invalid answer")
    return decoded.num_pending


def check(answer: bytes) -> None:
    """Raise JetStreamError if an answer of the API isn't valid, or an error."""
    _decode(answer, _Answer)


def _milliseconds(time: str) -> int:
    """Return a time that JetStream writes (RFC 3339) as milliseconds since 1970.

    Raises:
        JetStreamError: It isn't valid.
    """
    found = _TIME(time)
    if found is None:
        raise JetStreamError("invalid time")
    # Without rounding, as the integer division of nanoseconds in `feed_metadata`.
    return _seconds(found[1]) * 1000 + int((found[2] or "0").ljust(_NANOSECONDS, "0")[:3])


@lru_cache(64)
def _seconds(time: str) -> int:
    try:
        return int(datetime.fromisoformat(f"{time}+00:00").timestamp())
    except ValueError:
        raise JetStreamError("invalid time") from None


# Header blocks


def status_of(headers: bytes) -> int:
    """Return the status of a NATS header block (ADR-4), such as 100 or 404; 0 if it has none.

    A publisher may send a block with a status too. It is from the server only if the subject is that of the
    subscription, and no message is stored under that one.
    """
    digits = headers[9:12]
    return int(digits) if headers.startswith(_STATUS) and len(digits) == 3 and digits.isdigit() else 0


def ends_batch(headers: bytes) -> bool:
    """Return whether a header block is the last one of a batch, and not that of a stored message."""
    return headers.startswith(_STATUS) and headers.rfind(_ADDED) < 0


def direct_message(headers: bytes, payload: bytes) -> StoredMessage | None:
    """Return the message of a Direct Get for one message (ADR-31); ``None`` if there is none.

    Raises:
        JetStreamUnavailable: The server couldn't answer.
        JetStreamError: The answer isn't valid.
    """
    if not ends_batch(headers):
        return _stored_message(headers, payload)[0]
    _check_end(headers)
    return None


def batch_of(replies: list[tuple[bytes, bytes]], seq: int) -> Batch:
    """Return the messages of a Direct Get for a batch (ADR-31).

    Args:
        replies: The headers and the payload of each reply, in order. The last reply ends the batch.
        seq: The first sequence that was asked for.

    Raises:
        JetStreamUnavailable: A message is missing, or the server couldn't answer.
        JetStreamError: The answer isn't valid.
    """
    messages: list[StoredMessage] = []
    last = 0
    for headers, payload in replies[:-1]:
        message, previous = _stored_message(headers, payload)
        if previous != last:
            raise JetStreamUnavailable("a message of a batch is missing")
        if message.seq < seq or message.seq <= last:
            raise JetStreamError("the messages of a batch are out of order")
        messages.append(message)
        last = message.seq
    fields = _check_end(replies[-1][0])
    if fields is None:
        if messages:
            raise JetStreamUnavailable("the end of a batch is missing")
        return Batch(messages, is_end=True, pending=0)
    try:
        pending, previous = _number(fields[b"Nats-Num-Pending"]), _number(fields[b"Nats-Last-Sequence"])
    except (KeyError, ValueError):
        raise JetStreamError("invalid end of a batch") from None
    if previous != last:
        raise JetStreamUnavailable("a message of a batch is missing")
    return Batch(messages, is_end=not pending, pending=pending)


def _check_end(headers: bytes) -> dict[bytes, bytes] | None:
    """Return the fields of the block that ends a batch; ``None`` if no message was found.

    Raises:
        JetStreamUnavailable: The server couldn't answer.
    """
    status = status_of(headers)
    if status == _NOT_FOUND:
        return None
    if status != _END_OF_BATCH:
        line = printable(headers[len(_STATUS) :].partition(b"\r")[0].decode("utf-8", "replace"))
        raise JetStreamUnavailable(f"Direct Get failed with status {line}", status)
    return _fields(headers)


def _fields(block: bytes) -> dict[bytes, bytes]:
    """Return the fields of a header block that the server has written, without its first line."""
    lines = block.split(b"\r\n", _MAX_ADDED_LINES)[1:]
    return dict([line.partition(b": ")[::2] for line in lines])


def _stored_message(headers: bytes, payload: bytes) -> tuple[StoredMessage, int]:
    """Return a message of Direct Get, and in a batch the sequence of the message before it, else 0.

    Raises:
        JetStreamError: It isn't valid.
    """
    # The server adds its lines after those of the publisher, which may have the same names. No value has a space.
    start = headers.rfind(_ADDED)
    found = _STORED(headers, start) if start >= 0 else None
    if found is None:
        subject, seq, time, previous = _split_lines(headers[start:] if start >= 0 else b"")
    else:
        subject, digits, date, thousandths, before = found.groups()
        seq, previous = int(digits), int(before or 0)
        time = _seconds(date.decode()) * 1000 + int(thousandths)
    own = headers[:start]
    own = b"" if own == _NO_HEADERS else own + b"\r\n"
    return StoredMessage(seq, time, _text(subject), own, payload), previous


def _split_lines(lines: bytes) -> tuple[bytes, int, int, int]:
    """Return subject, sequence, time and the sequence before, of the lines that the server has added.

    Raises:
        JetStreamError: One is missing or isn't valid.
    """
    fields = _fields(b"\r\n" + lines)
    try:
        time = _milliseconds(fields[b"Nats-Time-Stamp"].decode("ascii"))
        previous = _number(fields.get(b"Nats-Last-Sequence", b"0"))
        return fields[b"Nats-Subject"], _number(fields[b"Nats-Sequence"]), time, previous
    except (KeyError, ValueError):
        raise JetStreamError("invalid message in an answer") from None


def _text(subject: bytes) -> str:
    try:
        return subject.decode()
    except UnicodeDecodeError:
        return ""


def _number(digits: bytes) -> int:
    """Return a number that the server has written.

    Raises:
        ValueError: It isn't one.
    """
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise ValueError
    return int(digits)


def feed_metadata(reply: bytes) -> tuple[int, int, int, int] | None:
    """Return stream sequence, consumer sequence, time and pending messages of a message of a push consumer.

    The reply subject has them (ADR-15): 9 tokens, or at least 11 with a domain and the hash of an account. The time is
    in milliseconds since 1970. The result is ``None`` if it isn't such a subject.
    """
    tokens = reply.split(b".", _MAX_TOKENS)
    count = len(tokens)
    try:
        if count == _TOKENS:
            _, ack, _, _, _, seq, consumer_seq, time, pending = tokens
        elif count >= _TOKENS_WITH_DOMAIN:
            ack, seq, consumer_seq, time, pending = tokens[1], *tokens[7:11]
        else:
            return None
        if ack != b"ACK":
            return None
        return int(seq), int(consumer_seq), int(time[:-_MILLISECOND_DIGITS]), int(pending)
    except ValueError:
        return None
