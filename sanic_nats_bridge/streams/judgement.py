"""The judgement of a client's position: the stream must be the same, and nothing after the position may be missing."""

import time

from ..protocol.messages import ReplayGapReason
from .feed import Feed
from .jetstream import JetStreamUnavailable, StoredMessage, StreamInfo
from .positions import Point
from .reader import StreamReader

__all__ = ["NOWHERE", "cutoff_of", "has_expired", "judge"]

NOWHERE = Point(0, 1)
"""The position of a client that has a part of a state. No other position has this time."""
_LAG_SECONDS = 5.0
"""The time for which a worker waits that is behind the position of a client."""
_CLOCK_MS = 60_000
"""The difference of clocks beyond which a position of the future is foreign."""


def cutoff_of(resume_window: float) -> int:
    """Return the time before which no message is sent to a client that may not read the past, in Unix milliseconds."""
    return int((time.time() - resume_window) * 1000)


async def judge(feed: Feed, point: Point, reader: StreamReader, cutoff: int | None) -> ReplayGapReason | None:
    """Judge whether a stream can go on after the position of a client.

    Messages that have expired are noticed when the reader reads the first ones, if they aren't in the windows.

    Args:
        feed: The feed of the stream, whose position is known.
        point: The position, of which only the stream's key is known to be right.
        reader: A reader of the client's patterns. It is moved to the position.
        cutoff: The time before which no message may be sent, or ``None``.

    Returns:
        The reason for which it can't, or ``None`` if it can.

    Raises:
        JetStreamError: The stream can't be asked now.
    """
    if point == NOWHERE:
        return "unknown"
    if feed.seq < point.seq and not await feed.until_at(point.seq, _LAG_SECONDS):
        # The leader has the last word.
        info = await reader.jetstream.stream_info(feed.name)
        if info.last_seq < point.seq:
            return "unknown" if point.time > time.time() * 1000 + _CLOCK_MS else "reset"
        raise JetStreamUnavailable(
            f"stream '{feed.name}' is read up to {feed.seq} only, and a client is at {point.seq}"
        )
    reader.move_to(point)
    # The feed has seen every message since its anchor. So the position is of the same life of the stream. A client that
    # has no message of the stream yet can go on in any life.
    is_same = point.seq == 0 or (feed.life.anchor.seq <= point.seq and 0 < feed.life.anchor.time <= point.time)
    if not is_same and not reader.knows(point):
        info = await reader.jetstream.stream_info(feed.name)
        first = await reader.jetstream.next_message(feed.name, max(point.seq, 1), ">")
        if _is_reset(info, point, first, feed.life.anchor):
            return "reset"
        reader.note_known(point)
    if cutoff is None:
        return None
    if reader.is_in_windows:
        is_older = reader.has_older_in_windows(cutoff)
    else:
        is_older = await _has_older(reader, cutoff)
    return "expired" if is_older else None


def _is_reset(info: StreamInfo, point: Point, first: StoredMessage | None, anchor: Point) -> bool:
    """Return whether the stream has begun again after the position was sent to the client."""
    if first is not None and first.seq == point.seq:
        # A server that has lost the message of this number uses the number again.
        return first.time > point.time
    # Some message up to the position must be as old as it.
    if info.messages > 0 and info.first_seq <= point.seq:
        return info.first_time > point.time
    return anchor.seq <= point.seq and anchor.time > point.time


def has_expired(info: StreamInfo, seq: int) -> bool:
    """Return whether messages above a sequence may be gone."""
    if info.first_seq <= seq + 1:
        return False
    is_empty = not info.messages and info.last_seq > seq
    # If only the last messages of each subject are kept, the first sequence rises because they are replaced.
    is_limited = info.max_age_ns > 0 or info.max_msgs > 0 or info.max_bytes > 0
    return is_empty or is_limited or info.max_msgs_per_subject <= 0


async def _has_older(reader: StreamReader, cutoff: int) -> bool:
    """Return whether a message that is to be read is older than a time."""
    if len(reader.followed) > 1:
        # The times of a stream rise with its sequences.
        message = await reader.jetstream.next_message(reader.feed.name, reader.seq + 1, ">")
        if message is None or message.time >= cutoff:
            return False
    for each in reader.followed:
        message = await reader.jetstream.next_message(reader.feed.name, reader.seq + 1, each.pattern)
        if message is not None and message.time < cutoff:
            return True
    return False
