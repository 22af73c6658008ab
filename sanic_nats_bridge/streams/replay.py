"""One replay: from the positions of a client, or from a point that it names, to the present of its streams."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from ..protocol.messages import ReplayGapReason
from ..protocol.start import Start
from .feed import Feed
from .followed import Followed
from .judgement import NOWHERE
from .positions import Point
from .reader import Hit, StreamReader, first_hits
from .replay_limits import ReplayLimits, bound
from .replay_starts import CURRENT_SECONDS, StartFinder
from .replayed_stream import ReplayedStream
from .snapshot import SnapshotTooLarge
from .window import Record

__all__ = ["Missed", "Replay", "Step"]


@dataclass
class Missed:
    """Messages that a replay can't show."""

    reason: ReplayGapReason
    patterns: list[str] = field(default_factory=list)
    """The real patterns."""
    lost: int | None = None


class Step(NamedTuple):
    """A message of a replay, and the position that the client has with it."""

    record: Record
    followed: tuple[Followed, ...]
    """The patterns that match it."""
    feed: Feed
    point: Point


class Replay:
    """The messages of one command's patterns, on one or several streams, up to the present.

    The caller prepares it. Then it takes messages, which it writes at once, until none is left. If some must be read
    from NATS, it reads them and takes again.

    Args:
        readers: A reader for each stream.
        limits: The bounds.
        cutoff: The time before which no message may be sent to this client, in Unix milliseconds, or ``None``.
    """

    def __init__(self, readers: Sequence[StreamReader], limits: ReplayLimits, cutoff: int | None) -> None:
        self._streams = [ReplayedStream(reader) for reader in readers]
        self._limits = limits
        self.cutoff = cutoff
        self.reasons: set[ReplayGapReason] = set()
        """The reasons of all gaps that were taken."""
        self._skips: ReplayGapReason | None = None
        """The reason for which the rest must be skipped."""

    @property
    def readers(self) -> tuple[StreamReader, ...]:
        """The reader of each stream."""
        return tuple(stream.reader for stream in self._streams)

    @property
    def recovered(self) -> bool:
        """True if nothing is missing so far."""
        return not self.reasons and not any(stream.missed for stream in self._streams)

    @property
    def positions(self) -> dict[Feed, Point]:
        """The position in each stream up to which the client has everything."""
        return {stream.feed: stream.point for stream in self._streams if stream.point is not None}

    def leave(self, followed: AbstractSet[Followed]) -> None:
        """Stop reading streams on which none of these patterns is left. `positions` doesn't hold them any more."""
        self._streams = [stream for stream in self._streams if not followed.isdisjoint(stream.reader.followed)]

    def take_missed(self) -> list[Missed]:
        """Return what is missing since the last call, by reason."""
        by_reason: dict[ReplayGapReason, Missed] = {}
        for stream in self._streams:
            taken, stream.missed = stream.missed, []
            for reason, lost in taken:
                found = by_reason.get(reason)
                if found is None:
                    found = by_reason[reason] = Missed(reason, lost=lost)
                else:
                    found.lost = None
                patterns = [each.pattern for each in stream.reader.followed]
                found.patterns += [pattern for pattern in patterns if pattern not in found.patterns]
        self.reasons.update(by_reason)
        return list(by_reason.values())

    # Finding the beginning

    async def prepare(self, points: Mapping[str, Point] | None, start: Start) -> None:
        """Find the position in each stream at which reading begins. Call it again if it fails.

        Args:
            points: The positions of the client, or ``None`` if it names none; `take_missed` returns which can't be had.
            start: The point from which a stream is read without a position.

        Raises:
            JetStreamError: A stream can't be asked now.
            SnapshotTooLarge: The last messages of all subjects are too many. No stream is prepared any more.
        """
        streams = tuple(self._streams)
        finder = StartFinder(streams, self._limits, points, start, self.cutoff)
        for stream in streams:
            if stream.is_prepared or stream not in self._streams:
                continue
            try:
                await finder.find(stream)
            except SnapshotTooLarge:
                # The state of the other streams would be half of what the client has asked for.
                self._streams = [ReplayedStream(each.reader) for each in self._streams]
                raise
            except BaseException:
                stream.missed = []
                raise
            stream.is_prepared = True
        await bound(self._streams, self._limits.messages)

    # Reading on to the present

    def skip_to_present(self, reason: ReplayGapReason) -> None:
        """Skip all messages that are left.

        Args:
            reason: The reason for which the client misses it.
        """
        # Not at once, because a request to NATS may be in progress.
        self._skips = reason

    def take_window(self, most: int) -> Sequence[Record]:
        """Return messages of the window, as `take_present` does, if there is only one pattern; empty if there is none.

        An empty result doesn't mean that the stream is at its present.
        """
        self._notice_changes()
        stream = self._streams[0]
        reader = stream.reader
        if len(self._streams) > 1 or len(reader.followed) > 1 or stream.hits or reader.unchecked is not None:
            return ()
        if not reader.is_in_windows or reader.has_firsts:
            return ()
        records = reader.take_slice(most)
        if records:
            stream.point = Point(records[-1].seq, records[-1].time)
        return records

    def take_present(self, most: int) -> list[Step] | None:
        """Return messages that are at hand, from one stream at a time; ``None`` if some must be read from NATS.

        An empty list means that every stream is at its present. The subscriptions must be attached in the same turn of
        the event loop then. The caller must write the messages at once, because `positions` includes them.
        """
        self._notice_changes()
        if any(stream.reader.unchecked is not None for stream in self._streams):
            return None
        for stream in self._streams:
            if hits := first_hits(stream.hits, most):
                stream.hits = stream.hits[len(hits) :]
                return _taken(stream, hits)
        for stream in self._streams:
            reader = stream.reader
            while reader.is_in_windows:
                before = reader.seq
                if hits := reader.take_from_windows(most):
                    return _taken(stream, hits)
                if reader.seq == before:
                    break
        if not all(reader.is_in_windows and reader.awaited <= reader.feed.seq for reader in self.readers):
            return None
        for stream in self._streams:
            stream.point = stream.feed.point
        return []

    def _notice_changes(self) -> None:
        """Go on at the present end of each stream that isn't the same any more, or must not be read."""
        skips, self._skips = self._skips, None
        for stream in self._streams:
            if skips is not None:
                # The client may not know any more how many messages there were.
                stream.missed = [(reason, None) for reason, _ in stream.missed]
            is_reset = stream.life is not stream.feed.life
            if is_reset or skips is not None:
                stream.life = stream.feed.life
                stream.miss("reset" if is_reset else skips or "expired")
                stream.move_to(stream.feed.point)

    async def read(self) -> None:
        """Read messages that aren't at hand, or wait for a feed that is behind.

        Raises:
            JetStreamError: A stream can't be read now.
        """
        for stream in self._streams:
            if stream.reader.unchecked is not None:
                await _check(stream)
                return
        for stream in self._streams:
            if not stream.reader.is_in_windows:
                if sum(reader.read_bytes for reader in self.readers) > self._limits.size:
                    stream.miss("backlog")
                    stream.move_to(stream.feed.point)
                else:
                    stream.hits = await stream.reader.fetch()
                    await _check(stream)
                return
        for reader in self.readers:
            if reader.awaited > reader.feed.seq:
                await reader.feed.until_at(reader.awaited, CURRENT_SECONDS)
                return


def _taken(stream: ReplayedStream, hits: list[Hit]) -> list[Step]:
    """Return messages with the positions that the client has with them, and note the last one."""
    feed, settled, state_end = stream.feed, stream.settled, stream.state_end
    if state_end is None:
        points = [Point(record.seq, record.time) if record.seq >= settled else NOWHERE for record, _ in hits]
    else:
        points = [NOWHERE] * len(hits)
        if not stream.hits:
            stream.state_end = None
            if state_end.seq >= settled:
                points[-1] = state_end
    stream.point = points[-1]
    return [Step(record, followed, feed, point) for (record, followed), point in zip(hits, points, strict=True)]


async def _check(stream: ReplayedStream) -> None:
    """Note messages that were removed from the stream before they were read."""
    if stream.takes_what_is_left:
        stream.takes_what_is_left = False
        stream.reader.unchecked = None
    elif await stream.has_expired():
        stream.miss("expired")
