"""The results of publishes and requests, and how they are read from the answers. A responder may answer anything."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ..errors import NoResponders, PublishUnknown, PublishUnstored, RequestFailed
from ..nats.line_filter import printable
from .headers import header_values

__all__ = ["Acknowledgement", "Answer", "read_acknowledgement", "read_answer"]

_STATUS = re.compile(rb"NATS/1\.0[ \t]+(\d{3})(?:[ \t]+([^\r\n]*))?").match  # ADR-4
_NO_RESPONDERS = b"503"
_DUPLICATE_IN_PROCESS = 10158
"""The error of JetStream for a message of which the replicas of its stream don't yet agree to store an earlier copy."""
_SERVICE_CODE = "Nats-Service-Error-Code"  # ADR-32
_SERVICE_ERROR = "Nats-Service-Error"
_MAX_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The acknowledgement of JetStream that a message is stored."""

    stream: str
    """The name of the stream."""

    sequence: int
    """The number of the message in the stream."""

    duplicate: bool = False
    """True if the stream had a message with this ``msg_id`` already, and has stored no second one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request."""

    data: bytes
    """The payload."""

    header_block: bytes = b""
    """The headers as NATS has sent them."""

    @property
    def headers(self) -> Mapping[str, list[str]]:
        """The headers: name → values."""
        return header_values(self.header_block)

    def json(self, schema: Any = Any) -> Any:
        """Return the data decoded from JSON, into a type that msgspec supports if one is given.

        Raises:
            msgspec.DecodeError: The data isn't JSON, or isn't of this type.
        """
        return msgspec.json.decode(self.data, type=schema)


class _Error(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _PubAck(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_decode = msgspec.json.Decoder(_PubAck).decode


def read_acknowledgement(headers: bytes, payload: bytes) -> Acknowledgement:
    """Return the acknowledgement of JetStream.

    Raises:
        PublishUnstored: JetStream has refused the message, or nothing in NATS receives it.
        PublishUnknown: The answer isn't JetStream's, or an earlier copy is still in process.
    """
    if headers and (status := _STATUS(headers)) and status[1] == _NO_RESPONDERS:
        raise PublishUnstored("Not stored: no stream and no subscriber receives this subject")
    try:
        answer = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = _PubAck()
    if answer.error is not None:
        if answer.error.err_code == _DUPLICATE_IN_PROCESS:
            raise PublishUnknown("Not acknowledged: the stream still processes an earlier attempt")
        description = printable(answer.error.description[:_MAX_SHOWN])
        raise PublishUnstored("Not stored: JetStream has refused the message", description=description)
    if not answer.stream or answer.seq <= 0:
        raise PublishUnknown("Not acknowledged: a subscriber that is not a stream has answered")
    return Acknowledgement(answer.stream, answer.seq, answer.duplicate)


def read_answer(headers: bytes, payload: bytes) -> Answer:
    """Return the answer to a request.

    Raises:
        NoResponders: Nothing in NATS receives the request.
        RequestFailed: A service has answered with an error.
    """
    if headers:
        status = _STATUS(headers)
        if status and status[1] == _NO_RESPONDERS:
            raise NoResponders("Nothing in NATS answers requests on this subject")
        if status:
            raise _failure(status[1].decode(), (status[2] or b"").decode("utf-8", "replace"))
        if b"ervice-" in headers:
            values = header_values(headers)
            code = values.get(_SERVICE_CODE, [""])[0]
            if code:
                raise _failure(code, values.get(_SERVICE_ERROR, [""])[0])
    return Answer(payload, headers)


def _failure(code: str, description: str) -> RequestFailed:
    code, description = printable(code[:_MAX_SHOWN]), printable(description[:_MAX_SHOWN])
    message = f"The service has reported an error: {description or code}"
    return RequestFailed(message, service_code=code)
