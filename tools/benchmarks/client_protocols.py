"""What a client says to each kind of server until it follows its subjects."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import quote

__all__ = ["DIALECTS", "Dialect", "Step", "binary_frame", "text_frame"]

_COMMAND_BYTES: Final = 60_000  # the bridge takes 65,536
_QUERY_BYTES: Final = 7_000  # Sanic takes 8 KiB of request head
_UPGRADE: Final = (
    b"GET %b HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_HEAD_END: Final = b"\r\n\r\n"


@dataclass(frozen=True)
class Step:
    """Something to send, and what stands in the answer, how many times, when it has been taken."""

    send: bytes
    until: bytes
    times: int = 1


class Dialect(Protocol):
    """How to subscribe."""

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """What a client sends on its connection."""

    def posts(self, subjects: Sequence[str], heard: bytes) -> list[bytes]:
        """Requests that it sends beside its connection, on which it has heard this."""


class BridgeWebSocket:
    """The bridge's ``/stream``."""

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """The handshake, then as many commands as it needs."""
        commands = [_command(part) for part in _parts(subjects, _COMMAND_BYTES)]
        frames = b"".join(text_frame(command) for command in commands)
        return [Step(_UPGRADE % b"/nats/stream", _HEAD_END), Step(frames, b'"active":true', len(commands))]

    def posts(self, subjects: Sequence[str], heard: bytes) -> list[bytes]:
        """None."""
        return []


class BridgeEvents:
    """The bridge's ``/events``: what does not fit into its URL is subscribed by POST."""

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """One request."""
        query = "&".join(f"subjects={quote(subject)}" for subject in self._in_query(subjects))
        request = f"GET /nats/events?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        return [Step(request.encode(), b'"active":true')]

    def posts(self, subjects: Sequence[str], heard: bytes) -> list[bytes]:
        """A command for each part of the rest."""
        rest = subjects[len(self._in_query(subjects)) :]
        session = heard.partition(b'"session":"')[2].partition(b'"')[0].decode()
        bodies = [_command(part, session=session) for part in _parts(rest, _COMMAND_BYTES)]
        head = b"POST /nats/subscribe HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return [b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body) for body in bodies]

    def _in_query(self, subjects: Sequence[str]) -> Sequence[str]:
        return next(_parts(subjects, _QUERY_BYTES, len("&subjects=")))


class NatsWebSocket:
    """The WebSocket port of nats-server: its client protocol in binary frames."""

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """The handshake, then CONNECT, the SUBs, and the PING whose PONG says that they were taken."""
        lines = [f"SUB {subject} {sid}\r\n".encode() for sid, subject in enumerate(subjects, start=1)]
        connect = b'CONNECT {"verbose":false,"pedantic":false,"protocol":1}\r\n'
        frame = binary_frame(b"".join([connect, *lines, b"PING\r\n"]))
        return [Step(_UPGRADE % b"/", _HEAD_END), Step(frame, b"PONG\r\n")]

    def posts(self, subjects: Sequence[str], heard: bytes) -> list[bytes]:
        """None."""
        return []


class PlainWebSocket:
    """A gateway of one's own: a text frame with the subjects, answered by another."""

    def steps(self, subjects: Sequence[str]) -> list[Step]:
        """The handshake, then one command."""
        frame = text_frame(_command(subjects))
        return [Step(_UPGRADE % b"/stream", _HEAD_END), Step(frame, b'"subscribed"')]

    def posts(self, subjects: Sequence[str], heard: bytes) -> list[bytes]:
        """None."""
        return []


DIALECTS: Final[dict[str, Dialect]] = {
    "bridge-ws": BridgeWebSocket(),
    "bridge-sse": BridgeEvents(),
    "nats-ws": NatsWebSocket(),
    "plain": PlainWebSocket(),
}


def text_frame(payload: bytes) -> bytes:
    """A WebSocket frame as a client sends it, masked with zeros (RFC 6455, section 5.2)."""
    return _frame(1, payload)


def binary_frame(payload: bytes) -> bytes:
    """The same with a binary payload."""
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


def _command(subjects: Sequence[str], **fields: str) -> bytes:
    return json.dumps({"action": "subscribe", "subjects": list(subjects)} | fields).encode()


def _parts(subjects: Sequence[str], limit: int, around: int = len('"", ')) -> Iterator[Sequence[str]]:
    """The subjects in pieces, none of which is larger than the limit with so many bytes around each subject."""
    start = size = 0
    for index, subject in enumerate(subjects):
        size += len(subject) + around
        if size > limit:
            yield subjects[start:index]
            start, size = index, len(subject) + around
    if start < len(subjects):
        yield subjects[start:]
