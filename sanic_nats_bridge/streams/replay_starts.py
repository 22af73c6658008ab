"""The positions at which the streams of a replay begin: those of a client, or the point that it names."""

from collections.abc import Mapping, Sequence

from ..protocol.messages import ReplayGapReason
from ..protocol.start import Start
from .jetstream import JetStreamUnavailable
from .judgement import NOWHERE, judge
from .positions import Point, same_name, stream_key
from .replay_limits import ReplayLimits
from .replayed_stream import ReplayedStream
from .snapshot import read_snapshot

__all__ = ["CURRENT_SECONDS", "StartFinder"]

CURRENT_SECONDS = 5.0
"""The time that a feed has to find its position before a replay tries again."""


class StartFinder:
    """The search for the positions at which the streams of a replay begin.

    Args:
        streams: All streams of the replay, whose states share the limits.
        limits: The bounds of the replay.
        points: The positions of the client, or ``None`` if it names none.
        start: The point from which a stream is read without a position.
        cutoff: The time before which no message may be sent to this client, in Unix milliseconds, or ``None``.
    """

    def __init__(
        self,
        streams: Sequence[ReplayedStream],
        limits: ReplayLimits,
        points: Mapping[str, Point] | None,
        start: Start,
        cutoff: int | None,
    ) -> None:
        self._streams = streams
        self._limits = limits
        self._points = points
        self._start = start
        self._cutoff = cutoff

    async def find(self, stream: ReplayedStream) -> None:
        """Move a stream to the position at which it begins. If the client's can't be had, it has a gap.

        Raises:
            JetStreamError: The stream can't be asked now.
            SnapshotTooLarge: The last messages of all subjects are too many.
        """
        feed, points = stream.feed, self._points
        if not await feed.until_current(CURRENT_SECONDS):
            raise JetStreamUnavailable(feed.problem or f"the state of stream '{feed.name}' is not known yet")
        stream.life = feed.life
        # An attempt before may have failed.
        stream.reader.read_bytes = 0
        point = None if points is None else points.get(feed.key)
        # A client that was cut off in the middle of a state gets all of it again, and misses nothing.
        if points is None or (point == NOWHERE and self._start.kind != "new"):
            await self._go_to_start(stream)
            return
        reason: ReplayGapReason | None
        if point is not None:
            async with stream.reader.turn_after(point):
                reason = await self._resume(stream, point)
            if reason is None:
                return
        elif any(same_name(key, feed.key) for key in points):
            await _check_age(stream, points)
            reason = "reset"
        else:
            reason = "unknown"
        stream.miss(reason)
        await self._go_to_start(stream)

    async def _resume(self, stream: ReplayedStream, point: Point) -> ReplayGapReason | None:
        """Move a stream to the position of the client; return the reason for which that can't be done."""
        reader = stream.reader
        reason = await judge(stream.feed, point, reader, self._cutoff)
        if reason is not None:
            return reason
        stream.move_to(point)
        await stream.count()
        if await stream.has_expired():
            return "expired"
        # The other clients find the rest in the window then.
        stream.hits += await reader.fetch_to_window(stream.left)
        if await stream.has_expired():
            stream.miss("expired")
        else:
            reader.keep()
        return None

    async def _go_to_start(self, stream: ReplayedStream) -> None:
        """Move a stream to the point at which a client that has no position begins."""
        if self._start.kind == "new":
            stream.move_to(stream.feed.point)
        elif self._start.kind == "last_per_subject":
            await self._read_state(stream)
        elif self._start.kind == "all":
            await self._go_to_first(stream)
        else:
            await self._go_to_last(stream)

    async def _go_to_first(self, stream: ReplayedStream) -> None:
        reader = stream.reader
        info = await reader.jetstream.stream_info(stream.feed.name)
        # Without messages there is no first time, but that of the last one that was removed.
        stream.move_to(Point(max(info.first_seq - 1, 0), info.first_time if info.messages else info.last_time))
        await stream.count()
        reader.unchecked = None
        # What was stored before the client has asked comes before it is live.
        reader.end = info.last_seq

    async def _go_to_last(self, stream: ReplayedStream) -> None:
        reader, count = stream.reader, self._start.count
        info = await reader.jetstream.stream_info(stream.feed.name)
        stream.move_to_each(await stream.find_last([count] * len(reader.followed), info), info)
        # One pattern alone has no more messages than the command may have.
        if len(self._streams) > 1 or count * len(reader.followed) > self._limits.messages:
            await stream.count()
            reader.unchecked = None
        # The search has counted later messages too.
        info = await reader.jetstream.stream_info(stream.feed.name)
        reader.end = info.last_seq

    async def _read_state(self, stream: ReplayedStream) -> None:
        others = [hit for other in self._streams if other.state_end is not None for hit in other.hits]
        size = self._limits.size - sum(record.length for record, _ in others)
        hits, point, settled = await read_snapshot(stream.reader, self._limits.subjects - len(others), size)
        stream.set_state(hits, point, settled)


async def _check_age(stream: ReplayedStream, points: Mapping[str, Point]) -> None:
    """Check that the position of a client is of an earlier stream of this name.

    Raises:
        JetStreamUnavailable: It is of the present one, and the feed hasn't noticed yet that it was created again.
    """
    feed = stream.feed
    info = await stream.reader.jetstream.stream_info(feed.name)
    if stream_key(feed.name, info.created) in points:
        feed.look_again()
        raise JetStreamUnavailable(f"stream '{feed.name}' was created again")
