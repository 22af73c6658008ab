"""One replay for a session: the messages that it has missed, or asks for, and then its live subscriptions."""

import asyncio
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..auth.permissions import Grant
from ..errors import BridgeError
from ..hub.interest import View
from ..log_limits import limited_logger
from ..protocol import encoding
from ..protocol.encoding import MessagePrefix
from ..protocol.messages import CaughtUp, Gap
from ..protocol.start import Start
from ..protocol.stream_messages import StreamMessage
from ..streams.encoding import encode_record, position_of
from ..streams.feed import Feed
from ..streams.followed import Followed, IdLine
from ..streams.hub import StreamHub
from ..streams.jetstream import JetStreamError
from ..streams.positions import Point
from ..streams.replay import Step
from ..streams.snapshot import SnapshotTooLarge
from ..streams.window import Record
from .interfaces import ReplayTarget
from .starts import too_large

__all__ = ["Entry", "ReplayRequest", "Resumption"]

logger = limited_logger()

_MESSAGES_PER_TURN = 256
"""The number of messages that one replay writes in one turn of the event loop: less than 2 ms."""
_MAX_PENDING = 262_144
"""The pending bytes of a client with which its replay waits."""
_PENDING_SECONDS = 0.02
_FIRST_BACKOFF = 0.1
_MAX_BACKOFF = 5.0


class Entry:
    """A subscription that goes on after an absence.

    Args:
        grant: The grant of the pattern.
        feed: The feed of its stream.
        followed: The pattern on that stream, claimed.
        line: The ``id:`` lines of its messages.
    """

    def __init__(self, grant: Grant, feed: Feed, followed: Followed, line: IdLine) -> None:
        self.feed = feed
        self.followed = followed
        self.is_bound = feed.is_known
        """True if it is known that the stream holds the pattern."""
        self.line = line
        self.view: View | None = None
        """The view in which the session sees live messages; ``None`` while it is behind."""
        self.set_grant(grant)

    def set_grant(self, grant: Grant) -> None:
        """Set or replace the grant."""
        self.grant = grant
        self.prefix = MessagePrefix(grant.pattern, grant.alias, grant.target)
        self.excludes = grant.excluded.matcher() if grant.excluded else None

    def shows(self, subject: str) -> bool:
        """Return whether the client may see a message of the pattern that has this subject."""
        return self.excludes is None or not self.excludes(subject)


@dataclass(frozen=True)
class ReplayRequest:
    """The messages that a replay shows, and how."""

    points: Mapping[str, Point] | None
    """The positions of the client by the keys of the streams, or ``None`` if it names none."""
    start: Start
    """The point from which streams without a position are read."""
    cutoff: int | None = None
    """The time before which no message may be sent, in Unix milliseconds, or ``None``."""
    reads_past: bool = False
    """True if the client needs a permission for what it reads."""
    has_lines: bool = False
    """True if the messages, and the ``caught_up``, have ``id:`` lines on an event stream."""
    announces: bool = True
    """True if a ``caught_up`` follows the messages. None follows what a slow consumer has skipped."""


class ReplayOwner(Protocol):
    """The history of a session, as its replays use it."""

    async def bind(self, resumption: "Resumption") -> bool:
        """Move entries to the streams that hold them; return whether that is known of all."""
        ...

    def refuse(self, resumption: "Resumption") -> None:
        """End the entries because of the `error`, which came after the reply."""

    def known_positions(self) -> dict[Feed, Point]:
        """Return the positions in streams whose messages the client gets, or would get if it weren't slow."""
        ...

    def awaited_by(self, resumption: "Resumption") -> Collection[asyncio.Task[None]]:
        """Return the replays that must end before the entries are live.

        Otherwise their ids would pass messages that the slow client has skipped.
        """
        ...

    def attach(self, resumption: "Resumption") -> None:
        """Make the entries live, in the turn of the event loop in which the last old message was written."""


class Resumption:
    """A replay for some entries of a session, in the background.

    Args:
        owner: The history of the session.
        target: The session.
        streams: The streams of the worker.
        entries: The entries, which are attached at the end.
        request: The messages that they get before.
    """

    def __init__(
        self,
        owner: ReplayOwner,
        target: ReplayTarget,
        streams: StreamHub,
        entries: Sequence[Entry],
        request: ReplayRequest,
    ) -> None:
        self.entries = list(entries)
        self.request = request
        self.reads_past = request.reads_past
        """True while the client needs a permission for what it reads."""
        self.replayed = 0
        """The number of messages that were written."""
        self.prepared = asyncio.Event()
        """Set when `recovered` is known, or `error`, or when the session has ended."""
        self.error: BridgeError | None = None
        """The error with which the command fails if its reply isn't written yet."""
        self.ordered = asyncio.Event()
        """Set when the reply to the command is written, so that messages may follow."""
        self._owner = owner
        self._target = target
        self._streams = streams
        self._counters = streams.counters
        self._start = request.start
        self._is_past_forbidden = False
        self._has_failed = False
        self._needs_reading = False
        self._last_position = ""
        """The position of the client after the last message that was written, or before the first one."""
        self._is_logged = False
        """True if a problem of this replay was logged."""
        self._backoff = _FIRST_BACKOFF
        self.renew_replay()

    def renew_replay(self) -> None:
        """Replay the streams that hold the entries. It wasn't known before which ones do."""
        patterns = [(entry.feed, entry.followed) for entry in self.entries]
        self.replay = self._streams.replay(patterns, self.request.cutoff)
        if self._is_past_forbidden:
            self.replay.skip_to_present("expired")

    @property
    def is_resumed(self) -> bool:
        """True if the client goes on after a position."""
        return self.request.points is not None

    @property
    def needs_history(self) -> bool:
        """True if only a stream has what the client asks for."""
        return self.request.points is None and self._start.kind != "new"

    @property
    def positions(self) -> dict[Feed, Point]:
        """The position in each stream up to which the client has everything, as far as is known."""
        found = self.replay.positions
        points = self.request.points or {}
        for feed in {entry.feed: None for entry in self.entries}:
            if feed not in found and feed.key in points:
                found[feed] = points[feed.key]
        return found

    @property
    def recovered(self) -> bool:
        """True if nothing is missing so far."""
        return self.replay.recovered and not self._has_failed

    def remove(self, entry: Entry) -> None:
        """Drop an entry, because its subscription has ended."""
        self.entries.remove(entry)
        self.replay.leave({each.followed for each in self.entries})

    def forbid_past(self) -> None:
        """Skip what is left of the past, because the client may not read it any more."""
        self.reads_past = False
        self._is_past_forbidden = True
        self.replay.skip_to_present("expired")

    async def run(self, turn: asyncio.Lock) -> None:
        """Bring the entries to the present.

        Args:
            turn: Held while messages are written, so that a session has one replay at a time.
        """
        self._counters.replays_running += 1
        try:
            await self._run(turn)
        except Exception:
            logger.exception("A replay has failed; the client gets a gap. Please report this traceback")
            self._has_failed = True
            self.prepared.set()
            await self.ordered.wait()
            for entry in self.entries:
                self._target.messages_lost(entry.grant.pattern)
            await self._go_live()
        finally:
            self._counters.replays_running -= 1
            self.prepared.set()

    async def _run(self, turn: asyncio.Lock) -> None:
        # The messages of a state are all read at once. A session has the memory for one at a time.
        if self._start.kind != "last_per_subject":
            await self._prepare_for_reply()
        while True:
            async with turn:
                if not self.prepared.is_set():
                    await self._prepare_for_reply()
                if self.error is not None:
                    return
                await self._write_all()
            if self._target.closed or not self.entries:
                return
            if tasks := self._owner.awaited_by(self):
                await asyncio.wait(tasks)

    async def _write_all(self) -> None:
        """Write all messages. Then the entries are live, or the session has ended, or they wait for another replay."""
        while not self._target.closed and self.entries:
            await self._wait_for_client()
            if not self._is_up_to_date() or not self.entries:
                continue
            if self._write_next():
                return
            await asyncio.sleep(0)
            if self._needs_reading:
                await self._read()

    async def _go_live(self) -> None:
        """Make the entries live without their old messages."""
        while not self._target.closed and self.entries:
            await self._wait_for_client()
            if tasks := self._owner.awaited_by(self):
                await asyncio.wait(tasks)
            elif self._is_up_to_date() and self.entries:
                self._finish()
                return

    def _is_up_to_date(self) -> bool:
        """Write the live messages received so far, whose positions are in the ids; return whether more may follow."""
        if self._owner.known_positions() and not self._target.closed:
            self._target.flush()
        return self._target.is_writable and not self._target.closed

    async def _prepare_for_reply(self) -> None:
        """Find the first messages, and wait until the reply is written."""
        await self._until_prepared()
        self.prepared.set()
        await self.ordered.wait()
        if self.error is not None:
            # The command had not waited for it, or it would have ended the replay.
            self.error = None
            await self._until_prepared()
            if self.error is not None:
                self._owner.refuse(self)

    async def _until_prepared(self) -> None:
        while not await self._try_to_prepare():
            await self._pause()

    async def _try_to_prepare(self) -> bool:
        try:
            if not await self._owner.bind(self):
                return False
            if self.error is None:
                await self.replay.prepare(self.request.points, self._start)
        except SnapshotTooLarge as error:
            if self.request.points is None:
                self.error = too_large(error, [entry.grant.pattern for entry in self.entries])
            else:
                self._start = Start("new")
                return False
        except JetStreamError as error:
            if not self._is_logged:
                self._is_logged = True
                logger.warning("Cannot begin a replay: %s; retrying", error)
            return False
        return True

    async def _wait_for_client(self) -> None:
        await self._target.wait_until_writable()
        # The transport reports other marks: those for messages that nothing could write later.
        while self._target.pending > _MAX_PENDING and not self._target.closed:  # noqa: ASYNC110
            await asyncio.sleep(_PENDING_SECONDS)
        # No message may be written after the permissions have expired.
        self._target.expire_due()

    def _write_next(self) -> bool:
        """Write some messages; return whether none is left. Then the entries are live, or wait."""
        if not self.replayed and any(each.line is IdLine.BEFORE for each in self.entries):
            # A client with overlapping patterns that gets the first message alone goes on before it.
            self._last_position = position_of(self._owner.known_positions() | self.replay.positions)
        records = self.replay.take_window(_MESSAGES_PER_TURN)
        steps = [] if records else self.replay.take_present(_MESSAGES_PER_TURN)
        self._report_missed()
        self._needs_reading = steps is None
        if records:
            self._write_records(records)
            return False
        if steps:
            self._write(steps)
        if steps is None or steps:
            return False
        if not self._owner.awaited_by(self):
            self._finish()
        return True

    async def _read(self) -> None:
        try:
            await self.replay.read()
            self._backoff = _FIRST_BACKOFF
        except JetStreamError as error:
            if not self._is_logged:
                self._is_logged = True
                logger.warning("Cannot go on with a replay: %s; retrying", error)
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._backoff * random.uniform(0.5, 1))
        self._backoff = min(self._backoff * 2, _MAX_BACKOFF)

    def _report_missed(self) -> None:
        """Write a gap for each reason."""
        for missed in self.replay.take_missed():
            entries = [each for each in self.entries if each.followed.pattern in missed.patterns]
            is_alone = len(entries) == len(missed.patterns) == 1
            is_visible = is_alone and not entries[0].grant.excluded and not entries[0].grant.alias
            names = [each.grant.pattern for each in entries]
            if not names:
                continue
            self._counters.gaps[missed.reason] += len(names)
            self._target.send(Gap(subjects=names, lost=missed.lost if is_visible else None, reason=missed.reason))

    def _write_records(self, records: Sequence[Record]) -> None:
        """Write messages of one pattern, from its window."""
        (reader,) = self.replay.readers
        feed, followed = reader.feed, reader.followed
        others = self._owner.known_positions()
        others.pop(feed, None)
        if others or len(self.entries) > 1 or self.entries[0].line is IdLine.BEFORE:
            self._write([Step(each, followed, feed, Point(each.seq, each.time)) for each in records])
            return
        (entry,) = self.entries
        has_lines = self.request.has_lines and entry.line is not IdLine.NONE
        shown = [each for each in records if entry.shows(each.subject)] if entry.excludes else records

        def encode() -> bytes:
            messages = []
            for each in shown:
                position = feed.life.encode(each.seq, each.time)
                line = position if has_lines else ""
                messages.append(encode_record(each, entry.prefix, 0, position, line, feed=feed))
            return encoding.join(messages, self._target.wire_format)

        self._count(len(shown))
        key = (feed.life, entry.grant, has_lines, self._target.wire_format, records[0].seq, records[-1].seq)
        self._target.charge_replay(len(records))
        self._target.write(self._streams.slices.get(key, encode))

    def _write(self, steps: Sequence[Step]) -> None:
        by_followed: dict[Followed, list[Entry]] = {}
        for each in self.entries:
            by_followed.setdefault(each.followed, []).append(each)
        # Streams of this replay whose messages follow later are part of the position too.
        others = self._owner.known_positions() | self.replay.positions
        messages: list[StreamMessage] = []
        most = self._streams.settings.max_overlap
        crowded: dict[Entry, None] = {}
        before = self._last_position
        for record, followed, feed, point in steps:
            others[feed] = point
            position = feed.part(point) if len(others) == 1 else position_of(others)
            first: StreamMessage | None = None
            matching = [
                entry for each in followed for entry in by_followed.get(each, ()) if entry.shows(record.subject)
            ]
            if len(matching) > most:
                crowded |= dict.fromkeys(matching[most:])
            for entry in matching[:most]:
                line = self._line_of(entry, position, before)
                message = encode_record(record, entry.prefix, 0, position, line, first, feed=feed)
                first = first or message
                messages.append(message)
            before = self._last_position = position
        self._count(len(messages))
        # Those that are hidden from the client were read for it all the same.
        self._target.charge_replay(max(len(steps), len(messages)))
        if messages:
            self._target.write(encoding.join(messages, self._target.wire_format))
        if crowded:
            self._target.end_overlap([entry.grant.pattern for entry in crowded])

    def _count(self, messages: int) -> None:
        self.replayed += messages
        self._counters.replayed += messages
        self._counters.deliveries += messages

    def _line_of(self, entry: Entry, position: str, before: str) -> str:
        if not self.request.has_lines or entry.line is IdLine.NONE:
            return ""
        return position if entry.line is IdLine.OWN else before

    def _finish(self) -> None:
        names = [each.grant.pattern for each in self.entries]
        if self.recovered:
            self._counters.replay_results["recovered"] += 1
        for reason in self.replay.reasons:
            self._counters.replay_results[reason] += 1
        self._owner.attach(self)
        if not self.request.announces or self._target.closed:
            return
        position = position_of(self._owner.known_positions())
        frame = CaughtUp(subjects=names, replayed=self.replayed, recovered=self.recovered, position=position)
        line = position if self.request.has_lines else None
        self._target.write(encoding.encode_frame(frame, self._target.wire_format, event_id=line))
