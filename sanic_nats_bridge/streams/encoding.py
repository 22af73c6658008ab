"""The messages of streams as clients get them, and the ids of messages and of clients."""

from collections.abc import Mapping

from ..protocol.encoding import MessagePrefix
from ..protocol.stream_messages import StreamMessage
from .feed import Feed
from .followed import IdLine, Scope
from .positions import Point, join_parts
from .window import Record

__all__ = ["encode_record", "ids_of", "position_of"]

# In Python 3.11, a member of an enum takes longer to look up than several calls.
_OWN = IdLine.OWN


def encode_record(
    record: Record,
    prefix: MessagePrefix,
    number: int,
    position: str,
    line: str,
    first: StreamMessage | None = None,
    *,
    feed: Feed,
) -> StreamMessage:
    """Return a message of a stream under one pattern. It shares its payload with the first one of the same message."""
    if first is None:
        return StreamMessage(
            prefix,
            record.subject,
            record.headers,
            record.payload,
            number,
            seq=record.seq,
            position=position,
            event_id=line,
            operation=record.operation,
            stream=feed,
            time=record.time,
        )
    return first.under(prefix, position, line)


def ids_of(scope: Scope, feed: Feed, record: Record) -> tuple[str, str]:
    """Return the id of a message at which its feed has not arrived yet, and the one for its line on event streams."""
    if len(scope.streams) == 1:
        position = feed.life.encode(record.seq, record.time)
        if scope.line is _OWN:
            return position, position
    else:
        present = Point(record.seq, record.time)
        position = join_parts([each.part(present if each is feed else each.point) for each in scope.streams])
    if scope.line is IdLine.OWN:
        return position, position
    if scope.line is IdLine.NONE:
        return position, ""
    return position, join_parts([each.part(each.point) for each in scope.streams])


def position_of(points: Mapping[Feed, Point]) -> str:
    """Return the position of a client that has everything up to these points, as it is sent to the client."""
    return join_parts([feed.part(points[feed]) for feed in sorted(points, key=lambda feed: feed.key)])
