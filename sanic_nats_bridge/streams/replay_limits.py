"""The bounds of a replay. Of more messages, a client gets the newest ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from .replayed_stream import ReplayedStream

__all__ = ["ReplayLimits", "bound", "shared"]


@dataclass(frozen=True)
class ReplayLimits:
    """The bounds of one replay."""

    messages: int
    size: int
    """Bytes that may be read from NATS."""
    subjects: int
    """Subjects of a snapshot."""


async def bound(streams: Sequence[ReplayedStream], most: int) -> None:
    """Move the streams on that have more messages left than a replay may show. Call it again if it fails.

    Args:
        streams: The streams, whose messages were counted if they may be too many.
        most: The largest number of messages of all streams together.

    Raises:
        JetStreamError: A stream can't be asked now.
    """
    left = most
    counted = sorted((each for each in streams if each.counts is not None), key=lambda each: each.left)
    for number, stream in enumerate(counted):
        share = left // (len(counted) - number)
        total = stream.left
        if total > share:
            lost = await _cut(stream, share)
            if lost != 0:
                stream.miss("backlog", lost)
        left -= min(total, share)
    for stream in counted:
        stream.counts = None


async def _cut(stream: ReplayedStream, most: int) -> int | None:
    """Move a stream to its newest messages; return the number of those that it skips, if that is known exactly."""
    reader, counts, before = stream.reader, stream.counts, stream.point
    assert counts is not None
    assert before is not None
    feed, end, lost = stream.feed, reader.end, None
    if reader.has_firsts:
        # The client has asked for the last messages of each pattern.
        info = await reader.jetstream.stream_info(feed.name)
        firsts = await stream.find_last(shared(counts, most), info)
        if len(firsts) == 1:
            lost = await _count_skipped(stream, before.seq, firsts[0])
        stream.move_to_each(firsts, info)
    elif reader.is_in_windows and (total := sum(reader.count_in_windows())) >= most:
        read = sum(len(followed) for _, followed in stream.hits)
        stream.move_to(reader.newest_in_windows(most))
        lost = read + total - sum(reader.count_in_windows())
    else:
        info = await reader.jetstream.stream_info(feed.name)
        patterns = [each.pattern for each, count in zip(reader.followed, counts, strict=True) if count]
        first = await reader.jetstream.first_of_last_of_all(feed.name, patterns, most, info)
        lost = await _count_skipped(stream, before.seq, first)
        stream.move_to(max(before, stream.point_before(first, info)))
    reader.end = end
    # Not again, if the next stream fails.
    stream.counts = [most]
    return lost


async def _count_skipped(stream: ReplayedStream, seq: int, first: int) -> int | None:
    """Return the number of messages above a sequence and before another one, if that is known exactly."""
    if first <= seq + 1:
        return 0
    reader = stream.reader
    if len(reader.followed) > 1:
        return None
    return await reader.jetstream.count_between(stream.feed.name, reader.followed[0].pattern, seq + 1, first)


def shared(counts: Sequence[int], most: int) -> list[int]:
    """Return how many of its messages each pattern gets, ``most`` of all together. Those with few get all of them."""
    shares, left = [0] * len(counts), most
    for rank, index in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        shares[index] = min(counts[index], left // (len(counts) - rank))
        left -= shares[index]
    return shares
