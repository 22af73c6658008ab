"""One stream of a replay: its reader, and what is known of its messages and of the client's position."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..protocol.messages import ReplayGapReason
from .feed import Feed, StreamLife
from .jetstream import StreamInfo
from .judgement import NOWHERE, has_expired
from .positions import Point
from .reader import Hit, StreamReader

__all__ = ["ReplayedStream"]


@dataclass(eq=False)
class ReplayedStream:
    """The state of one stream in a replay.

    First the point at which reading begins is found (`replay_starts`). Then the messages that are left are bounded
    (`replay_limits`). Then they are read up to the present (`replay`).
    """

    reader: StreamReader
    is_prepared: bool = False
    """True once it is known where reading begins."""
    point: Point | None = None
    """The position up to which the client has everything; ``None`` before it is known."""
    life: StreamLife | None = None
    """The life of the feed to which `point` belongs."""
    counts: list[int] | None = None
    """The number of messages of each pattern that are left, if they may be more than a replay shows."""
    hits: list[Hit] = field(default_factory=list)
    """Messages that were read already."""
    takes_what_is_left: bool = False
    """True before the first messages are read, if the client misses nothing that was removed until then."""
    state_end: Point | None = None
    """The position after the last one of `hits`, if they are a state. None lies between them."""
    settled: int = 0
    """The sequence before which a position would repeat parts of a state."""
    missed: list[tuple[ReplayGapReason, int | None]] = field(default_factory=list)
    """The gaps that weren't taken yet: the reason, and the number of messages if it is known."""

    @property
    def feed(self) -> Feed:
        """The feed of the stream."""
        return self.reader.feed

    @property
    def left(self) -> int:
        """The number of messages that are left, by the `counts`."""
        return sum(self.counts or ())

    def miss(self, reason: ReplayGapReason, lost: int | None = None) -> None:
        """Note that the client misses messages."""
        self.missed.append((reason, lost))

    def move_to(self, point: Point) -> None:
        """Go on after another position."""
        self.reader.move_to(point)
        self.point = point
        self.counts = None
        self.hits = []
        self.takes_what_is_left = False
        self.state_end = None
        self.settled = 0

    def move_to_each(self, firsts: Sequence[int], info: StreamInfo) -> None:
        """Go on at a sequence for each pattern, if the client has asked for its last messages.

        Args:
            firsts: The sequences, from `find_last`.
            info: The state of the stream for which they were found.
        """
        # Patterns with rarer messages reach back further. What the others have before is skipped.
        self.move_to(self.point_before(min(firsts), info))
        self.reader.skip_before(firsts)
        self.takes_what_is_left = True

    def set_state(self, hits: list[Hit], point: Point, settled: int) -> None:
        """Begin with a state, behind which the reader was moved.

        Args:
            hits: Its messages.
            point: The position after all of them.
            settled: The sequence from which on that position holds for all patterns.
        """
        self.counts = None
        self.hits = hits
        self.settled = settled
        # A client that is cut off in the middle of a state must get all of it again.
        self.state_end = point if hits else None
        self.point = point if not hits and point.seq >= settled else NOWHERE

    def point_before(self, seq: int, info: StreamInfo) -> Point:
        """Return the position before a sequence that was found for this state of the stream.

        Its time is not before that of any message up to it, else it would seem to be of an earlier stream. The feed may
        be far behind.
        """
        return Point(seq - 1, max(self.feed.time, info.last_time))

    async def find_last(self, counts: Sequence[int], info: StreamInfo) -> list[int]:
        """Return the sequences at which the last messages of the patterns begin, for each pattern so many.

        Raises:
            JetStreamError: The stream can't be asked now.
        """
        return [
            (await self.reader.jetstream.first_of_last(self.feed.name, each.pattern, count, info))[0]
            if count
            else info.last_seq + 1
            for each, count in zip(self.reader.followed, counts, strict=True)
        ]

    async def count(self) -> None:
        """Count the messages that are left.

        Raises:
            JetStreamError: The stream can't be read now.
        """
        reader = self.reader
        if reader.is_in_windows:
            self.counts = reader.count_in_windows()
            return
        self.hits = await reader.fetch()
        counts = await reader.count_pending()
        for _, followed in self.hits:
            for each in followed:
                counts[reader.followed.index(each)] += 1
        self.counts = counts

    async def has_expired(self) -> bool:
        """Return whether messages were removed from the stream before they were read.

        Raises:
            JetStreamError: The stream can't be asked now.
        """
        reader = self.reader
        if reader.unchecked is None:
            return False
        info = await reader.jetstream.stream_info(self.feed.name)
        unchecked, reader.unchecked = reader.unchecked, None
        return has_expired(info, unchecked)
