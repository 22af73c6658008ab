"""The subscriptions of one session that go on after an absence, because a stream has their messages."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import combinations

from msgspec import UNSET

from ..auth.permissions import Grant
from ..errors import (
    BridgeError,
    InvalidCommand,
    UnknownSession,
)
from ..hub.interest import View
from ..protocol import subjects
from ..protocol.messages import Command, Gap, Reply, success_reply
from ..protocol.start import Start
from ..protocol.stream_messages import StreamMessage
from ..settings import Settings
from ..streams.feed import Feed, position_of
from ..streams.followed import Channel, Followed, IdLine
from ..streams.hub import StreamHub
from ..streams.judgement import cutoff_of
from ..streams.positions import Point, decode_position
from .binding import MAX_STREAMS, bind, too_many_streams
from .interfaces import HistoryOwner
from .pattern_shares import PatternShares
from .resumption import Entry, Resumption, replay_of
from .starts import Subscribed, check_start, unavailable
from .subscriptions import Subscriptions

__all__ = ["SessionHistory"]

_PATTERNS_OF_REPLAY = 128
"""The number of patterns that a command with a ``from`` other than "new" counts as in addition."""
_KNOWN_SECONDS = 5.0
"""The time that the streams have to become known before a replay tries again."""


class SessionHistory:
    """The resumable subscriptions of one session, by the client's names for their patterns.

    Args:
        owner: The session.
        streams: The streams of the worker.
        settings: The options of the bridge.
        shares: The patterns that each client holds.
    """

    def __init__(self, owner: HistoryOwner, streams: StreamHub, settings: Settings, shares: PatternShares) -> None:
        self._owner = owner
        self._streams = streams
        self._settings = settings
        self._shares = shares
        self._entries: dict[str, Entry] = {}
        self._running: dict[Resumption, asyncio.Task[None]] = {}
        """The replays in progress."""
        self._becoming_live: set[asyncio.Task[None]] = set()
        """The changes into subscriptions without history in progress."""
        self._turn = asyncio.Lock()
        self._skipped: dict[Feed, Point] = {}
        """For each stream of which the slow client has skipped messages, the position before the first of them."""
        self._is_closed = False
        self._is_query = False
        """True if the next command is that of the query of an event stream."""
        self._line = IdLine.NONE if owner.transport == "sse" else IdLine.OWN
        """The ``id:`` lines of live messages on an event stream: none, unless the query has a start."""
        streams.add_subscriber(self)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns, as the client names them."""
        return tuple(self._entries)

    @property
    def views(self) -> list[View]:
        """The views in which the session sees live messages."""
        return [entry.view for entry in self._entries.values() if entry.view is not None]

    @property
    def is_behind(self) -> bool:
        """True while some subscriptions have not caught up."""
        return bool(self._running or self._skipped)

    def begin_query(self) -> None:
        """Note that the next command is that of the query of an event stream, and has a start."""
        self._is_query = True

    def position(self) -> str:
        """Return the position up to which the client has everything; empty while it is behind."""
        return "" if self.is_behind or not self._entries else position_of(self._live_points())

    def _live_points(self) -> dict[Feed, Point]:
        return {feed: feed.point for feed in self._live_feeds()}

    def _live_feeds(self) -> dict[Feed, None]:
        return {each.feed: None for each in self._entries.values() if each.view is not None}

    # Commands

    async def execute_subscribe(
        self, command: Command, subscriptions: Subscriptions, count: Callable[[int], None]
    ) -> Reply:
        """Subscribe to all patterns of a command, or to none.

        Args:
            command: The command.
            subscriptions: The subscriptions of the session without history.
            count: Called with the number of new patterns before they are authorized. May raise a `BridgeError`.

        Raises:
            BridgeError: A pattern, or its past, was rejected. No subscription has changed.
        """
        seconds, policy = self._settings.confirm_timeout, subscriptions.policy
        patterns = policy.validate(command.patterns)
        subscribed, resumption = _NONE, None
        if command.start is not None:
            self._check_start(command.start)
            held = {*self._entries, *subscriptions.patterns}
            new = [pattern for pattern in patterns if pattern not in held]
            count(len(new) + (_PATTERNS_OF_REPLAY if command.start.kind != "new" else 0))
            grants = await self._authorize(command, new, subscriptions, seconds)
            subscribed, resumption = await self._subscribe(command, command.start, grants, seconds)
        resumable = [pattern for pattern in patterns if pattern in self._entries]
        others = [pattern for pattern in patterns if pattern not in self._entries]
        active = subscribed.active and (self._streams.connected or not resumable)
        if others:
            try:
                counted = count if command.start is None else None
                _, confirmed = await subscriptions.subscribe(others, seconds, counted, len(self._entries))
            except BaseException:
                self.remove_all(subscribed.resumable)
                raise
            active = active and confirmed
        if resumption is not None:
            resumption.ordered.set()
        if command.start is None:
            return success_reply(command, patterns, active)
        is_known = all(self._entries[pattern].is_bound for pattern in resumable)
        recovered = UNSET if subscribed.recovered is None or not is_known else subscribed.recovered
        if subscribed.others and command.after is not UNSET:
            # After the reply, which the caller writes in this turn.
            gap = Gap(subjects=subscribed.others, lost=None, reason="unknown")
            self._streams.counters.gaps["unknown"] += len(subscribed.others)
            asyncio.get_running_loop().call_soon(self._owner.send, gap)
            recovered = False if is_known else UNSET
        self.note_change()
        return success_reply(
            command,
            patterns,
            active and is_known,
            resumable=resumable if is_known else UNSET,
            recovered=recovered,
        )

    def note_change(self) -> None:
        """Let the session report the status of NATS after the reply, because its subscriptions have changed."""
        asyncio.get_running_loop().call_soon(self._owner.nats_changed)

    async def _authorize(
        self, command: Command, patterns: Sequence[str], subscriptions: Subscriptions, seconds: float
    ) -> list[Grant]:
        """Return the grants of new patterns, when it is known which streams hold them, or the seconds have passed.

        Raises:
            BridgeError: A pattern, or its past, isn't allowed, or can't be had.
        """
        while True:
            updates = subscriptions.permission_updates
            held = {*self._entries, *subscriptions.patterns}
            grants = subscriptions.policy.authorize(subscriptions.permissions, patterns, held)
            check_start(command, grants, self._owner.allows_history, None)
            await self._know_streams(grants, seconds)
            if self._is_closed:
                raise UnknownSession("No such session")
            if subscriptions.permission_updates == updates:
                check_start(command, grants, self._owner.allows_history, self._streams)
                return grants

    def _check_start(self, start: Start) -> None:
        if start.count > self._settings.max_replay_messages:
            raise InvalidCommand(f"'last' must be at most {self._settings.max_replay_messages}")

    async def _subscribe(
        self, command: Command, start: Start, grants: Sequence[Grant], seconds: float
    ) -> tuple[Subscribed, Resumption | None]:
        """Subscribe to the patterns that a stream holds, from the point that the command names.

        The caller must set `Resumption.ordered` in the turn of the event loop in which it writes the reply.

        Raises:
            BridgeError: The past can't be had. Nothing has changed.
        """
        after = command.after if isinstance(command.after, str) else None
        is_allowed = all(self._owner.allows_history(grant) for grant in grants)
        if not is_allowed:
            start = Start("new")
        feeds = {grant: self._streams.find(grant.real) for grant in grants}
        missing = [grant.pattern for grant, feed in feeds.items() if feed is None]
        held = {grant: feed for grant, feed in feeds.items() if feed is not None}
        if not held:
            return Subscribed([], missing, True, None), None
        entries = self._claim(held)
        points = None if after is None else decode_position(after) or {}
        is_query, self._is_query = self._is_query, False
        resumption = self._resume(entries, points, start, is_allowed=is_allowed, has_lines=is_query)
        try:
            async with asyncio.timeout(seconds):
                await resumption.prepared.wait()
        except TimeoutError:
            pass
        except BaseException:
            self._give_up(entries)
            raise
        if self._is_closed:
            raise UnknownSession("No such session")
        if resumption.error is not None:
            self._give_up(entries)
            raise resumption.error
        is_known = resumption.prepared.is_set()
        patterns = [entry.grant.pattern for entry in entries]
        return Subscribed(patterns, missing, is_known, resumption.recovered if is_known else None), resumption

    async def _know_streams(self, grants: Sequence[Grant], seconds: float) -> None:
        """Wait until it is known which streams hold these patterns, or the seconds have passed."""
        await self._streams.until_known([grant.real for grant in grants], seconds)

    def _claim(self, held: Mapping[Grant, Feed]) -> list[Entry]:
        if len({*self._feeds(), *held.values()}) > MAX_STREAMS:
            raise too_many_streams([grant.pattern for grant in held])
        real = [grant.real for grant in held]
        if self._is_query:
            # The client has one position for all of these patterns, which may match one message twice.
            overlap = any(subjects.overlaps(*pair) for pair in combinations(real, 2))
            self._line = IdLine.BEFORE if overlap else IdLine.OWN
        self._shares.add(self._owner.client, real, [grant.pattern for grant in held])
        entries: list[Entry] = []
        try:
            for grant, feed in held.items():
                entries.append(Entry(grant, feed, self._streams.follow(feed, grant.real), self._line))
        except BaseException:
            for entry in entries:
                self._streams.release(entry.feed, entry.followed)
            self._shares.remove(self._owner.client, real)
            raise
        self._entries |= {entry.grant.pattern: entry for entry in entries}
        return entries

    def _feeds(self) -> set[Feed]:
        return {entry.feed for entry in self._entries.values()}

    def _resume(
        self,
        entries: Sequence[Entry],
        points: Mapping[str, Point] | None,
        start: Start,
        *,
        is_allowed: bool,
        has_lines: bool,
        announces: bool = True,
    ) -> Resumption:
        settings = self._settings
        cutoff = None if is_allowed or points is None else cutoff_of(settings.resume_window)
        resumption = Resumption(
            self._owner,
            entries,
            replay_of(entries, self._streams, settings, cutoff),
            points,
            start,
            attach=self._attach,
            bind=partial(self._bind, cutoff=cutoff, start=start, is_resumed=points is not None),
            refuse=self._refuse,
            others=self._live_points,
            announces=announces,
            has_lines=has_lines,
            slices=self._streams.slices,
            max_overlap=settings.max_overlap,
            reads_past=announces and is_allowed and (start.kind != "new" or points is not None),
            counters=self._streams.counters,
        )
        begin = "slow_consumer" if not announces else start.kind if points is None else "after"
        self._streams.counters.replays[begin] += 1
        task = asyncio.create_task(resumption.run(self._turn), name="natsbridge-replay")
        self._running[resumption] = task
        task.add_done_callback(lambda _: self._running.pop(resumption, None))
        return resumption

    async def _bind(self, resumption: Resumption, cutoff: int | None, start: Start, *, is_resumed: bool) -> bool:
        """Move subscriptions to the streams that hold them, if that was not known before; return whether it is now.

        Those that no stream holds go on without history, unless the client has asked for the past only.
        """
        unknown = [entry for entry in resumption.entries if not entry.is_bound]
        if not unknown:
            return True
        await self._know_streams([entry.grant for entry in unknown], _KNOWN_SECONDS)
        unknown = [entry for entry in unknown if entry in resumption.entries]
        binding = bind(unknown, {each.feed for each in self._entries.values() if each.is_bound}, self._streams)
        if binding is None:
            return False
        refused = list(binding.refused)
        if binding.unheld and not is_resumed and start.kind != "new":
            refused.append((binding.unheld, unavailable([entry.grant.pattern for entry in binding.unheld])))
        if refused and not resumption.ordered.is_set():
            resumption.error = refused[0][1]
            return True
        for entries, error in refused:
            self._end(entries, error)
        if binding.unheld and (is_resumed or start.kind == "new"):
            for entry in binding.unheld:
                resumption.entries.remove(entry)
            task = asyncio.create_task(self._go_on_live(binding.unheld, is_resumed=is_resumed), name="natsbridge-live")
            self._becoming_live.add(task)
            task.add_done_callback(self._becoming_live.discard)
        resumption.replay = replay_of(resumption.entries, self._streams, self._settings, cutoff)
        return True

    async def _go_on_live(self, entries: Sequence[Entry], *, is_resumed: bool) -> None:
        """Make subscriptions that no stream holds ones without history."""
        # No command may subscribe to the same patterns meanwhile, and the reply comes before.
        async with self._owner.command_lock:
            patterns = [name for entry in entries if self._entries.get(name := entry.grant.pattern) is entry]
            self.remove_all(patterns)
            while patterns:
                try:
                    await self._owner.follow_live(patterns, len(self._entries))
                    break
                except UnknownSession:
                    return
                except BridgeError as error:
                    ended = [pattern for pattern in patterns if pattern in error.subjects] or patterns
                    self._owner.patterns_ended(ended, error)
                    patterns = [pattern for pattern in patterns if pattern not in ended]
            if patterns and is_resumed:
                self._streams.counters.gaps["unknown"] += len(patterns)
                self._owner.send(Gap(subjects=patterns, lost=None, reason="unknown"))
        self.note_change()

    def _end(self, entries: Sequence[Entry], error: BridgeError) -> None:
        """End subscriptions, and report it to the client."""
        names = [name for entry in entries if self._entries.get(name := entry.grant.pattern) is entry]
        if names:
            self.remove_all(names)
            self._owner.patterns_ended(names, error)

    def _give_up(self, entries: Sequence[Entry]) -> None:
        """End the subscriptions of a command that has failed."""
        self.remove_all([entry.grant.pattern for entry in entries])

    def _refuse(self, resumption: Resumption) -> None:
        """End the subscriptions of a replay that can't begin, after the reply to its command."""
        assert resumption.error is not None
        self._end(tuple(resumption.entries), resumption.error)

    def _attach(self, resumption: Resumption) -> None:
        """Make the entries of a resumption live, in the turn in which all of their old messages were written."""
        self._running.pop(resumption, None)
        # It may end this session, which must not be attached then.
        self._streams.flush()
        if self._is_closed:
            return
        before = self._live_feeds()
        scope_feeds = {**before, **dict.fromkeys(entry.feed for entry in resumption.entries)}
        if scope_feeds.keys() != before.keys():
            self._move_live(scope_feeds)
        for entry in resumption.entries:
            entry.view = self._streams.attach(
                self._owner, entry.followed, entry.grant, self._streams.scope(scope_feeds, entry.line)
            )
        resumption.entries = []

    def _move_live(self, feeds: Collection[Feed]) -> None:
        """Give the live messages ids that hold these streams."""
        for entry in self._entries.values():
            if entry.view is not None:
                self._streams.detach(self._owner, entry.view)
                entry.view = self._streams.attach(
                    self._owner, entry.followed, entry.grant, self._streams.scope(feeds, entry.line)
                )

    def remove(self, pattern: str, *, cut: bool = False) -> None:
        """End a subscription. With ``cut``, messages that aren't written yet are dropped."""
        entry = self._entries.pop(pattern, None)
        if entry is None:
            return
        if entry.view is not None:
            self._streams.detach(self._owner, entry.view, cut=cut)
        self._streams.release(entry.feed, entry.followed)
        self._shares.remove(self._owner.client, [entry.grant.real])
        for resumption, task in tuple(self._running.items()):
            if entry in resumption.entries:
                resumption.entries.remove(entry)
                if not resumption.entries:
                    task.cancel()
        feeds = self._live_feeds()
        if entry.view is not None and entry.feed not in feeds and feeds:
            self._move_live(feeds)

    def remove_all(self, patterns: Sequence[str], *, cut: bool = False) -> None:
        """End those of these subscriptions that are held, as `remove` does."""
        for pattern in patterns:
            self.remove(pattern, cut=cut)

    def matching(self, subject: str) -> list[str]:
        """Return the patterns under which the client gets the messages of a subject, in the order of subscribing."""
        encoded = subject.encode()
        views = ((pattern, entry.view) for pattern, entry in self._entries.items())
        return [pattern for pattern, view in views if view is not None and view.shows(encoded, subject)]

    def update_grants(self, grant_of: Callable[[str], Grant | None]) -> list[str]:
        """Replace the grants, as new permissions allow; end and return the patterns that they don't allow."""
        ended = []
        for pattern, entry in tuple(self._entries.items()):
            grant = grant_of(pattern)
            if grant is None or grant.real != entry.grant.real:
                ended.append(pattern)
                self.remove(pattern)
            elif grant != entry.grant:
                view = entry.view
                entry.set_grant(grant)
                if view is not None:
                    channel = view.interest
                    assert isinstance(channel, Channel)
                    self._streams.detach(self._owner, view)
                    entry.view = self._streams.attach(self._owner, entry.followed, grant, channel.scope)
        for resumption in self._running:
            # It may show the last seconds all the same, but not any more what the client has asked for.
            if resumption.reads_past and not all(self._owner.allows_history(each.grant) for each in resumption.entries):
                resumption.reads_past = False
                resumption.replay.skip_to_present("expired")
        return ended

    def close(self, *, cut: bool = False) -> None:
        """End all subscriptions and replays."""
        self._is_closed = True
        self._streams.remove_subscriber(self)
        for task in (*self._running.values(), *self._becoming_live):
            task.cancel()
        for pattern in tuple(self._entries):
            self.remove(pattern, cut=cut)

    # Slow consumers

    def skip(self, messages: Sequence[StreamMessage]) -> None:
        """Note messages that the slow client skips. They are read from the stream later."""
        for message in messages:
            feed = message.stream
            assert isinstance(feed, Feed)
            if feed not in self._skipped:
                self._skipped[feed] = Point(message.seq - 1, message.time)

    def catch_up(self) -> None:
        """Read the messages that the client has skipped while it was slow. All messages before were written."""
        if not self._skipped or self._is_closed:
            return
        points, self._skipped = self._live_points() | self._skipped, {}
        entries = [entry for entry in self._entries.values() if entry.view is not None]
        for entry in entries:
            assert entry.view is not None
            self._streams.detach(self._owner, entry.view)
            entry.view = None
        by_key = {feed.key: point for feed, point in points.items()}
        resumption = self._resume(entries, by_key, Start("new"), is_allowed=True, has_lines=True, announces=False)
        resumption.ordered.set()

    # Called by the streams

    def follows(self, feed: Feed) -> bool:
        """Return whether a subscription of the session is on this stream."""
        return feed in self._feeds()

    def stream_was_reset(self, feed: Feed) -> None:
        """Send a gap for the live subscriptions on a stream that isn't the same any more."""
        names = [name for name, each in self._entries.items() if each.feed is feed and each.view is not None]
        if names:
            self._streams.counters.gaps["reset"] += len(names)
            self._owner.send(Gap(subjects=names, lost=None, reason="reset"))

    def patterns_ended(self, followed: list[Followed]) -> None:
        """End the subscriptions to patterns that no stream holds any more."""
        entries = [each for each in self._entries.values() if each.is_bound and each.followed in followed]
        self._end(entries, unavailable([entry.grant.pattern for entry in entries]))


_NONE = Subscribed([], [], active=True, recovered=None)
