"""One replay: from the positions of a client, or from a point that it names, to the present of its streams."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from ..protocol.messages import ReplayGapReason
from ..protocol.start import Start
from .feed import Feed
from .followed import Followed
from .jetstream import JetStreamUnavailable, StreamInfo
from .judgement import NOWHERE, has_expired, judge
from .positions import Point, same_name, stream_key
from .reader import MAX_TURN_BYTES, Hit, StreamReader, first_hits
from .snapshot import SnapshotTooLarge, read_snapshot
from .window import Record

__all__ = ["Missed", "Replay", "ReplayLimits", "Step", "shared"]


_CURRENT_SECONDS = 5.0
"""The time that a feed has to find its position before a replay tries again."""


@dataclass(frozen=True)
class ReplayLimits:
    """The bounds of one replay."""

    messages: int
    size: int
    """Bytes that may be read from NATS."""
    subjects: int
    """Subjects of a snapshot."""


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

    Args:
        readers: A reader for each stream.
        limits: The bounds.
        cutoff: The time before which no message may be sent to this client, in Unix milliseconds, or ``None``.
    """

    def __init__(self, readers: Sequence[StreamReader], limits: ReplayLimits, cutoff: int | None) -> None:
        self.readers = tuple(readers)
        self._limits = limits
        self.cutoff = cutoff
        self._positions: dict[Feed, Point] = {}
        self._missed: list[tuple[ReplayGapReason, StreamReader, int | None]] = []
        """The gaps that weren't taken yet: the reason, the reader, and the number of messages if it is known."""
        self.reasons: set[ReplayGapReason] = set()
        """The reasons of all gaps that were taken."""
        self._skips: ReplayGapReason | None = None
        """The reason for which the rest must be skipped."""
        self._lives: dict[StreamReader, int] = {}
        """The life of each feed to which the position of its reader belongs."""
        self._prepared: set[StreamReader] = set()
        self._counts: dict[StreamReader, list[int]] = {}
        """The number of messages of each pattern of the readers that may have too many."""
        self._from_start: set[StreamReader] = set()
        """The readers that begin at what is left of the stream, and haven't read yet."""
        self._ready: dict[StreamReader, list[Hit]] = {}
        """Messages that were read already."""
        self._settled: dict[StreamReader, int] = {}
        """The sequences before which a position would repeat parts of a state."""
        self._state_of: dict[StreamReader, Point] = {}
        """The readers whose messages at hand are a state, and the position after the last one. None lies between."""

    @property
    def recovered(self) -> bool:
        """True if nothing is missing so far."""
        return not self._missed and not self.reasons

    @property
    def positions(self) -> dict[Feed, Point]:
        """The position in each stream up to which the client has everything."""
        feeds = [reader.feed for reader in self.readers]
        return {feed: self._positions[feed] for feed in feeds if feed in self._positions}

    def leave(self, followed: AbstractSet[Followed]) -> None:
        """Stop reading streams on which none of these patterns is left. `positions` doesn't hold them any more."""
        self.readers = tuple(reader for reader in self.readers if not followed.isdisjoint(reader.followed))
        self._missed = [each for each in self._missed if each[1] in self.readers]

    def take_missed(self) -> list[Missed]:
        """Return what is missing since the last call, by reason."""
        taken, self._missed = self._missed, []
        self.reasons.update(reason for reason, _, _ in taken)
        by_reason: dict[ReplayGapReason, Missed] = {}
        for reason, reader, lost in taken:
            found = by_reason.get(reason)
            if found is None:
                found = by_reason[reason] = Missed(reason, lost=lost)
            else:
                found.lost = None
            found.patterns += [each.pattern for each in reader.followed if each.pattern not in found.patterns]
        return list(by_reason.values())

    def _miss(self, reason: ReplayGapReason, reader: StreamReader, lost: int | None = None) -> None:
        self._missed.append((reason, reader, lost))

    async def prepare(self, points: Mapping[str, Point] | None, start: Start) -> None:
        """Find the position in each stream at which reading begins. Call it again if it fails.

        Args:
            points: The positions of the client, or ``None`` if it names none; `take_missed` returns which can't be had.
            start: The point from which a stream is read without a position.

        Raises:
            JetStreamError: A stream can't be asked now.
            SnapshotTooLarge: The last messages of all subjects are too many. No stream is prepared any more.
        """
        for reader in self.readers:
            if reader not in self._prepared and reader in self.readers:
                known = len(self._missed)
                try:
                    await self._prepare(reader, points, start)
                except SnapshotTooLarge:
                    # The state of the other streams would be half of what the client has asked for.
                    self._begin_again()
                    raise
                except BaseException:
                    del self._missed[known:]
                    raise
                self._prepared.add(reader)
        await self._bound()

    async def _prepare(self, reader: StreamReader, points: Mapping[str, Point] | None, start: Start) -> None:
        feed = reader.feed
        if not await feed.until_current(_CURRENT_SECONDS):
            raise JetStreamUnavailable(feed.problem or f"the state of stream '{feed.name}' is not known yet")
        self._lives[reader] = feed.life
        # An attempt before may have failed.
        reader.read_bytes = 0
        point = None if points is None else points.get(feed.key)
        # A client that was cut off in the middle of a state gets all of it again, and misses nothing.
        if points is None or (point == NOWHERE and start.kind != "new"):
            await self._start(reader, start)
            return
        reason: ReplayGapReason | None
        if point is not None:
            async with reader.turn_after(point):
                reason = await self._resume(reader, point)
            if reason is None:
                return
        elif any(same_name(key, feed.key) for key in points):
            await self._check_age(reader, points)
            reason = "reset"
        else:
            reason = "unknown"
        self._miss(reason, reader)
        await self._start(reader, start)

    async def _resume(self, reader: StreamReader, point: Point) -> ReplayGapReason | None:
        """Move a reader to the position of the client; return the reason for which that can't be done."""
        reason = await judge(reader.feed, point, reader, self.cutoff)
        if reason is not None:
            return reason
        self._begin(reader, point)
        await self._count(reader)
        if await self._is_expired(reader):
            return "expired"
        # The other clients find the rest in the window then.
        self._ready[reader] += await reader.fetch_to_window(sum(self._counts[reader]))
        if await self._is_expired(reader):
            self._miss("expired", reader)
        else:
            reader.keep()
        return None

    async def _check_age(self, reader: StreamReader, points: Mapping[str, Point]) -> None:
        """Check that the position of a client is of an earlier stream of this name.

        Raises:
            JetStreamUnavailable: It is of the present one, and the feed hasn't noticed yet that it was created again.
        """
        feed = reader.feed
        info = await reader.jetstream.stream_info(feed.name)
        if stream_key(feed.name, info.created) in points:
            feed.look_again()
            raise JetStreamUnavailable(f"stream '{feed.name}' was created again")

    def _begin_again(self) -> None:
        """Forget what is prepared."""
        for of_reader in (self._counts, self._ready, self._settled, self._state_of, self._lives):
            of_reader.clear()
        self._prepared.clear()
        self._from_start.clear()
        self._missed.clear()
        self.positions.clear()

    def _begin(self, reader: StreamReader, point: Point) -> None:
        reader.move_to(point)
        self._positions[reader.feed] = point
        self._ready[reader] = []
        self._counts.pop(reader, None)

    async def _start(self, reader: StreamReader, start: Start) -> None:
        """Move a reader to the point at which a client that has no position begins."""
        feed = reader.feed
        if start.kind == "new":
            self._begin(reader, feed.point)
        elif start.kind == "last_per_subject":
            await self._begin_state(reader)
        else:
            info = await reader.jetstream.stream_info(feed.name)
            if start.kind == "all":
                self._begin(reader, Point(max(info.first_seq - 1, 0), info.first_time))
                await self._count(reader)
                reader.unchecked = None
            else:
                firsts = await self._find_last(reader, [start.count] * len(reader.followed), info)
                self._begin_each(reader, firsts)
                # One pattern alone has no more messages than the command may have.
                if len(self.readers) > 1 or start.count * len(reader.followed) > self._limits.messages:
                    await self._count(reader)
                    reader.unchecked = None
                self._from_start.add(reader)
                # The search has counted later messages too.
                info = await reader.jetstream.stream_info(feed.name)
            # What was stored before the client has asked comes before it is live.
            reader.end = info.last_seq

    async def _begin_state(self, reader: StreamReader) -> None:
        others = [hit for other in self._state_of for hit in self._ready[other]]
        size = self._limits.size - sum(record.length for record, _ in others)
        hits, point, settled = await read_snapshot(reader, self._limits.subjects - len(others), size)
        self._settled[reader] = settled
        self._ready[reader] = hits
        # Those after a position that has expired don't count.
        self._counts.pop(reader, None)
        if hits:
            # A client that is cut off in the middle of a state must get all of it again.
            self._positions[reader.feed] = NOWHERE
            self._state_of[reader] = point
        else:
            self._positions[reader.feed] = point if point.seq >= settled else NOWHERE

    async def _find_last(self, reader: StreamReader, counts: Sequence[int], info: StreamInfo) -> list[int]:
        """Return the sequences at which the last messages of the patterns begin, for each pattern so many."""
        feed = reader.feed
        return [
            (await reader.jetstream.first_of_last(feed.name, each.pattern, count, info))[0]
            if count
            else info.last_seq + 1
            for each, count in zip(reader.followed, counts, strict=True)
        ]

    def _begin_each(self, reader: StreamReader, firsts: Sequence[int]) -> None:
        """Move a reader to a sequence for each of its patterns."""
        # Patterns with rarer messages reach back further. What the others have before is skipped.
        self._begin(reader, Point(min(firsts) - 1, reader.feed.time))
        reader.begin_each_at(firsts)

    async def _count(self, reader: StreamReader) -> None:
        """Count the messages that a reader has left."""
        if reader.is_in_windows:
            self._counts[reader] = reader.count_in_windows()
            return
        hits = self._ready[reader] = await reader.fetch()
        counts = await reader.count_pending()
        for _, followed in hits:
            for each in followed:
                counts[reader.followed.index(each)] += 1
        self._counts[reader] = counts

    async def _bound(self) -> None:
        """Move the readers on that have more messages left than a replay may show."""
        left = self._limits.messages
        readers = sorted(self._counts, key=lambda reader: sum(self._counts[reader]))
        for number, reader in enumerate(readers):
            share = left // (len(readers) - number)
            total = sum(self._counts[reader])
            if total > share:
                lost = await self._cut(reader, share)
                if lost != 0:
                    self._miss("backlog", reader, lost)
            left -= min(total, share)
        self._counts = {}

    async def _cut(self, reader: StreamReader, most: int) -> int | None:
        """Move a reader to its newest messages; return the number of those that it skips, if that is known exactly."""
        counts, before, end = self._counts[reader], self._positions[reader.feed], reader.end
        feed, lost = reader.feed, None
        if reader.has_firsts:
            # The client has asked for the last messages of each pattern.
            info = await reader.jetstream.stream_info(feed.name)
            firsts = await self._find_last(reader, shared(counts, most), info)
            if len(firsts) == 1:
                lost = await self._count_skipped(reader, before.seq, firsts[0])
            self._begin_each(reader, firsts)
        elif reader.is_in_windows and (total := sum(reader.count_in_windows())) >= most:
            read = sum(len(followed) for _, followed in self._ready[reader])
            self._begin(reader, reader.newest_in_windows(most))
            lost = read + total - sum(reader.count_in_windows())
        else:
            info = await reader.jetstream.stream_info(feed.name)
            patterns = [each.pattern for each, count in zip(reader.followed, counts, strict=True) if count]
            first = await reader.jetstream.first_of_last_of_all(feed.name, patterns, most, info)
            lost = await self._count_skipped(reader, before.seq, first)
            self._begin(reader, max(before, Point(first - 1, feed.time)))
        reader.end = end
        self._counts[reader] = [most]
        return lost

    async def _count_skipped(self, reader: StreamReader, seq: int, first: int) -> int | None:
        """Return the number of messages above a sequence and before another one, if that is known exactly."""
        if first <= seq + 1:
            return 0
        if len(reader.followed) > 1:
            return None
        feed = reader.feed
        return await reader.jetstream.count_between(feed.name, reader.followed[0].pattern, seq + 1, first)

    def skip_to_present(self, reason: ReplayGapReason) -> None:
        """Skip all messages that are left.

        Args:
            reason: The reason for which the client misses it.
        """
        # Not at once, because a request to NATS may be in progress.
        self._skips = reason

    # Reading

    def take_present(self, most: int) -> list[Step] | None:
        """Return messages that are at hand, from one stream at a time; ``None`` if some must be read from NATS.

        An empty list means that every stream is at its present. The subscriptions must be attached in the same turn of
        the event loop then. The caller must write the messages at once, because `positions` includes them.
        """
        self._notice_changes()
        if any(reader.unchecked is not None for reader in self.readers):
            return None
        for reader in self.readers:
            if hits := first_hits(self._ready[reader], most):
                self._ready[reader] = self._ready[reader][len(hits) :]
                return self._taken(reader, hits)
        for reader in self.readers:
            while reader.is_in_windows:
                before = reader.seq
                if hits := reader.take_from_windows(most):
                    return self._taken(reader, hits)
                if reader.seq == before:
                    break
        if not all(reader.is_in_windows and reader.awaited <= reader.feed.seq for reader in self.readers):
            return None
        for reader in self.readers:
            self._positions[reader.feed] = reader.feed.point
        return []

    def take_window(self, most: int) -> Sequence[Record]:
        """Return messages of the window, as `take_present` does, if there is only one pattern; empty if there is none.

        An empty result doesn't mean that the stream is at its present.
        """
        self._notice_changes()
        reader = self.readers[0]
        if len(self.readers) > 1 or len(reader.followed) > 1 or self._ready[reader] or reader.unchecked is not None:
            return ()
        if not reader.is_in_windows or reader.has_firsts:
            return ()
        records = reader.followed[0].window.slice_after(reader.seq, most)
        while len(records) > 1 and sum([len(each.payload) for each in records]) > MAX_TURN_BYTES:
            # Fewer, which end at the same records for every client.
            most //= 2
            records = reader.followed[0].window.slice_after(reader.seq, most)
        if records:
            last = records[-1]
            reader.has_taken(last.seq)
            self._positions[reader.feed] = Point(last.seq, last.time)
        return records

    def _notice_changes(self) -> None:
        """Go on at the present end of each stream that isn't the same any more, or must not be read."""
        if self._skips is not None:
            # The client may not know any more how many messages there were.
            self._missed = [(reason, reader, None) for reason, reader, _ in self._missed]
        for reader in self.readers:
            is_reset = self._lives[reader] != reader.feed.life
            if is_reset or self._skips is not None:
                self._lives[reader] = reader.feed.life
                self._state_of.pop(reader, None)
                self._miss("reset" if is_reset else self._skips or "expired", reader)
                self._begin(reader, reader.feed.point)
        self._skips = None

    def _taken(self, reader: StreamReader, hits: list[Hit]) -> list[Step]:
        feed = reader.feed
        if reader not in self._state_of:
            settled = self._settled.get(reader, 0)
            steps = [
                Step(record, followed, feed, Point(record.seq, record.time) if record.seq >= settled else NOWHERE)
                for record, followed in hits
            ]
        else:
            steps = [Step(record, followed, feed, NOWHERE) for record, followed in hits]
            if not self._ready[reader]:
                point = self._state_of.pop(reader)
                if point.seq >= self._settled[reader]:
                    steps[-1] = steps[-1]._replace(point=point)
        self._positions[feed] = steps[-1].point
        return steps

    async def read(self) -> None:
        """Read messages that aren't at hand, or wait for a feed that is behind.

        Raises:
            JetStreamError: A stream can't be read now.
        """
        for reader in self.readers:
            if reader.unchecked is not None:
                await self._check(reader)
                return
        for reader in self.readers:
            if not reader.is_in_windows:
                if sum(each.read_bytes for each in self.readers) > self._limits.size:
                    self._miss("backlog", reader)
                    self._begin(reader, reader.feed.point)
                else:
                    self._ready[reader] = await reader.fetch()
                    await self._check(reader)
                return
        for reader in self.readers:
            if reader.awaited > reader.feed.seq:
                await reader.feed.until_at(reader.awaited, _CURRENT_SECONDS)
                return

    async def _check(self, reader: StreamReader) -> None:
        """Note messages that were removed from the stream before they were read."""
        if reader in self._from_start:
            self._from_start.discard(reader)
            reader.unchecked = None
        elif await self._is_expired(reader):
            self._miss("expired", reader)

    async def _is_expired(self, reader: StreamReader) -> bool:
        """Return whether messages were removed from the stream before they were read."""
        if reader.unchecked is None:
            return False
        info = await reader.jetstream.stream_info(reader.feed.name)
        unchecked, reader.unchecked = reader.unchecked, None
        return has_expired(info, unchecked)


def shared(counts: Sequence[int], most: int) -> list[int]:
    """Return how many of its messages each pattern gets, ``most`` of all together. Those with few get all of them."""
    shares, left = [0] * len(counts), most
    for rank, index in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        shares[index] = min(counts[index], left // (len(counts) - rank))
        left -= shares[index]
    return shares
