"""The protocols that clients speak to each kind of server until their subscriptions are confirmed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

__all__ = ["CLIENT_PROTOCOLS", "BridgeHistory", "ClientProtocol", "Step", "binary_frame", "text_frame"]

_COMMAND_BYTES = 60_000  # the bridge accepts 65,536
_QUERY_BYTES = 7_000  # Sanic accepts a request head of 8 KiB
_UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Step:
    """Data to send, and the bytes that the answer contains ``count`` times once the server has processed it."""

    send: bytes
    expected: bytes
    count: int = 1


class ClientProtocol(Protocol):
    """The way in which a client subscribes."""

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """Return the steps on the client's connection."""

    def posts(self, subjects: Sequence[str], received: bytes) -> list[bytes]:
        """Return the requests to send on other connections, after the client has received these bytes."""


class BridgeWebSocket:
    """The bridge's ``/stream``."""

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """Return the handshake and as many commands as the subjects need."""
        commands = [_command(part) for part in _parts(subjects, _COMMAND_BYTES)]
        frames = b"".join(text_frame(command) for command in commands)
        return [Step(_UPGRADE % b"/nats/stream", _HEAD_END), Step(frames, b'"active":true', len(commands))]

    def posts(self, subjects: Sequence[str], received: bytes) -> list[bytes]:
        """Return no requests."""
        return []


class BridgeHistory:
    """The bridge's ``/stream``, with subscriptions that begin at a point in a stream.

    Args:
        start: The fields of the command that name the point, such as ``{"from": "new"}``.
    """

    def __init__(self, start: Mapping[str, Any]) -> None:
        self._start = start

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """Return the handshake and one command. The client has caught up when it is answered."""
        frame = text_frame(_command(subjects, **self._start))
        return [Step(_UPGRADE % b"/nats/stream", _HEAD_END), Step(frame, b'"type":"caught_up"')]

    def posts(self, subjects: Sequence[str], received: bytes) -> list[bytes]:
        """Return no requests."""
        return []


class BridgeEvents:
    """The bridge's ``/events``. Subjects that don't fit into the URL are subscribed by POST."""

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """Return one request."""
        query = "&".join(f"subjects={quote(subject)}" for subject in self._in_query(subjects))
        request = f"GET /nats/events?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        return [Step(request.encode(), b'"active":true')]

    def posts(self, subjects: Sequence[str], received: bytes) -> list[bytes]:
        """Return a command for each part of the remaining subjects."""
        rest = subjects[len(self._in_query(subjects)) :]
        session = received.partition(b'"session":"')[2].partition(b'"')[0].decode()
        bodies = [_command(part, session=session) for part in _parts(rest, _COMMAND_BYTES)]
        head = b"POST /nats/subscribe HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return [b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body) for body in bodies]

    def _in_query(self, subjects: Sequence[str]) -> Sequence[str]:
        return next(_parts(subjects, _QUERY_BYTES, len("&subjects=")))


class NatsWebSocket:
    """The WebSocket port of nats-server: the NATS client protocol in binary frames."""

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """Return the handshake and a frame of CONNECT, the SUBs, and a PING whose PONG confirms the SUBs."""
        lines = [f"SUB {subject} {sid}\r\n".encode() for sid, subject in enumerate(subjects, start=1)]
        connect = b'CONNECT {"verbose":false,"pedantic":false,"protocol":1}\r\n'
        frame = binary_frame(b"".join([connect, *lines, b"PING\r\n"]))
        return [Step(_UPGRADE % b"/", _HEAD_END), Step(frame, b"PONG\r\n")]

    def posts(self, subjects: Sequence[str], received: bytes) -> list[bytes]:
        """Return no requests."""
        return []


class PlainWebSocket:
    """The protocol of a hand-written gateway: a text frame with the subjects, confirmed by another."""

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """Return the handshake and one command."""
        frame = text_frame(_command(subjects))
        return [Step(_UPGRADE % b"/stream", _HEAD_END), Step(frame, b'"subscribed"')]

    def posts(self, subjects: Sequence[str], received: bytes) -> list[bytes]:
        """Return no requests."""
        return []


CLIENT_PROTOCOLS: dict[str, ClientProtocol] = {
    "bridge-ws": BridgeWebSocket(),
    "bridge-ws-stored": BridgeHistory({"from": "new"}),
    "bridge-sse": BridgeEvents(),
    "nats-ws": NatsWebSocket(),
    "plain": PlainWebSocket(),
}


def text_frame(payload: bytes) -> bytes:
    """Return a WebSocket text frame of a client, masked with zeros (RFC 6455, section 5.2)."""
    return _frame(1, payload)


def binary_frame(payload: bytes) -> bytes:
    """Return a WebSocket binary frame of a client, masked with zeros (RFC 6455, section 5.2)."""
    return _frame(2, payload)


def _frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 2**16:
        length = b"\xfe" + size.to_bytes(2)
    else:
        length = b"\xff" + size.to_bytes(8)
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


def _command(subjects: Sequence[str], **fields: Any) -> bytes:
    return json.dumps({"action": "subscribe", "subjects": list(subjects)} | fields).encode()


def _parts(subjects: Sequence[str], limit: int, overhead: int = len('"", ')) -> Iterator[Sequence[str]]:
    """Split the subjects into parts of at most ``limit`` bytes, with ``overhead`` bytes added to each subject."""
    start = size = 0
    for index, subject in enumerate(subjects):
        size += len(subject) + overhead
        if size > limit:
            yield subjects[start:index]
            start, size = index, len(subject) + overhead
    if start < len(subjects):
        yield subjects[start:]
