"""Messages of JetStream streams, which have ids, and the headers by which a bucket deletes its keys."""

from typing import Literal, Protocol, TypeAlias

from .encoding import EncodedMessage, MessagePrefix, WireFormat, websocket_frame

__all__ = ["MessageStream", "Operation", "StreamMessage", "operation_of"]

Operation: TypeAlias = Literal["", "delete", "purge"]
"""The effect of a stored message on the key of a bucket, if it doesn't set the value."""

# In Python 3.11, a member of an enum takes longer to look up than several calls.
_WEBSOCKET = WireFormat.WEBSOCKET
_CHUNKS = WireFormat.EVENT_STREAM
_EVENTS = WireFormat.EVENTS
# The values of KV-Operation (ADR-8), and of Nats-Marker-Reason (ADR-48).
_OPERATIONS: dict[bytes, Operation] = {b"DEL": "delete", b"PURGE": "purge"}
_MARKERS: dict[bytes, Operation] = {b"MaxAge": "purge", b"Purge": "purge", b"Remove": "delete"}


class MessageStream(Protocol):
    """The stream of a message."""

    @property
    def key(self) -> str:
        """The key of the stream in ids."""
        ...


class StreamMessage(EncodedMessage, eq=False, gc=False, kw_only=True):
    """One message of a stream, with the id of its position in the streams that a session follows.

    ``seq`` is its sequence number in ``stream``, and ``time`` the time at which it was stored, in Unix milliseconds.
    ``position`` is the ``id`` in the JSON. ``event_id`` is the id in the
    ``id:`` line of an event, which other wire formats don't have; empty for none. Both must be ids of the protocol,
    which need no escapes.
    """

    stream: MessageStream
    seq: int
    time: int
    position: str
    event_id: str = ""
    operation: Operation = ""

    def under(self, prefix: MessagePrefix, position: str | None = None, event_id: str | None = None) -> "StreamMessage":
        """Return the same message under another pattern, or with other ids. All share the encoded payload."""
        first = self.first or self
        first.shared = True
        return StreamMessage(
            prefix,
            self.subject,
            self.headers,
            self.payload,
            self.number,
            first,
            seq=self.seq,
            position=self.position if position is None else position,
            event_id=self.event_id if event_id is None else event_id,
            operation=self.operation,
            stream=self.stream,
            time=self.time,
        )

    def encoded(self, wire_format: WireFormat) -> bytes:
        """Return the bytes for clients with this wire format."""
        if wire_format == _WEBSOCKET:
            if self.frame is None:
                self.frame = websocket_frame(self._as_json())
            return self.frame
        if self.event_id:
            if wire_format == _CHUNKS:
                if self.chunk is None:
                    self.chunk = _chunked_event(self._as_json(), self.event_id.encode())
                return self.chunk
            if wire_format == _EVENTS:
                if self.event is None:
                    self.event = _event(self._as_json(), self.event_id.encode())
                return self.event
        return EncodedMessage.encoded(self, wire_format)

    def _as_json(self) -> bytes:
        if self.json is None:
            head = self.prefix.head(self.subject) + f',"id":"{self.position}"'.encode()
            if self.operation:
                head += f',"operation":"{self.operation}"'.encode()
            first = self.first or self
            self.json = head + first.as_shared() if first.shared else first.encode_after(head)
        return self.json


def operation_of(headers: bytes) -> Operation:
    """Return the effect of a stored message on its key, by its NATS header block.

    A header of the client counts before the one by which the server marks an expiry or a deletion.
    """
    if not headers:
        return ""
    # Constants, because the messages of a Direct Get have many headers, but seldom one of these.
    if b"\r\nKV-Operation:" in headers and (found := _OPERATIONS.get(_first_value(headers, b"\r\nKV-Operation:"))):
        return found
    if b"\r\nNats-Marker-Reason:" in headers:
        return _MARKERS.get(_first_value(headers, b"\r\nNats-Marker-Reason:"), "")
    return ""


def _first_value(block: bytes, line_start: bytes) -> bytes:
    return block.partition(line_start)[2].partition(b"\r\n")[0].strip()


def _event(data: bytes, event_id: bytes) -> bytes:
    return b"id: %b\ndata: %b\n\n" % (event_id, data)


def _chunked_event(data: bytes, event_id: bytes) -> bytes:
    # A chunk with the event, in one step.
    size = len(data) + len(event_id) + len(b"id: \ndata: \n\n")
    return b"%x\r\nid: %b\ndata: %b\n\n\r\n" % (size, event_id, data)
