"""The subscriptions of one session that go on after an absence, because a stream has their messages."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations

from msgspec import UNSET

from ..auth.permissions import Grant
from ..errors import InvalidCommand, UnknownSession
from ..hub.interest import View
from ..protocol import subjects
from ..protocol.messages import Command, Gap, Reply, success_reply
from ..protocol.start import Start
from ..protocol.stream_messages import MessageStream, StreamMessage
from ..settings import Settings
from ..streams.encoding import position_of
from ..streams.feed import Feed
from ..streams.followed import Channel, Followed, IdLine
from ..streams.hub import StreamHub
from ..streams.judgement import cutoff_of
from ..streams.positions import Point, decode_position
from .binding import MAX_STREAMS, Binder, too_many_streams
from .interfaces import HistoryOwner
from .pattern_shares import PatternShares
from .resumption import Entry, ReplayRequest, Resumption
from .starts import Subscribed, check_start, unavailable
from .subscriptions import Subscriptions, no_longer_allowed

__all__ = ["SessionHistory"]

_PATTERNS_OF_PAST = 128
"""The number of patterns that a command with a ``from`` other than "new" counts as in addition."""
_PATTERNS_OF_ABSENCE = 16
"""The same for a command with an ``after``, whose messages are usually in memory."""


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
        self._query: Resumption | None = None
        """The replay of the query, until it is live. No ``id:`` line of others may pass its position."""
        self._binder = Binder(owner, streams, self._entries, self.remove_all)
        self._turn = asyncio.Lock()
        self._skipped: dict[MessageStream, Point] = {}
        """For each stream of which the slow client has skipped messages, the position before the first of them."""
        self._is_closed = False
        self._is_query = False
        """True if the next command is that of the query of an event stream."""
        self._unanswered: set[str] = set()
        """The patterns of the command in progress. The client isn't notified when they end."""
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
        patterns = subscriptions.policy.validate(command.patterns)
        held = self._held(command, subscriptions)
        new = [pattern for pattern in patterns if pattern not in held]
        self._unanswered = set(new)
        try:
            return await self._execute_subscribe(command, patterns, new, subscriptions, count)
        finally:
            self._unanswered = set()
            self._is_query = False

    def _held(self, command: Command, subscriptions: Subscriptions) -> set[str]:
        """Return the patterns that need no subscription to a stream; those that are followed never have history."""
        followed = [pattern for pattern in command.patterns if pattern in subscriptions.followed]
        return {*self._entries, *subscriptions.patterns, *followed}

    async def _execute_subscribe(
        self,
        command: Command,
        patterns: Sequence[str],
        new: Sequence[str],
        subscriptions: Subscriptions,
        count: Callable[[int], None],
    ) -> Reply:
        # One for all waits, because a POST by way of another worker waits no longer.
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.confirm_timeout
        subscribed, resumption = Subscribed([], [], active=True, recovered=None), None
        if command.start is not None:
            if command.start.count > self._settings.max_replay_messages:
                raise InvalidCommand(f"'last' must be at most {self._settings.max_replay_messages}")
            count(len(new) + _cost_of(command))
            subscribed, resumption = await self._subscribe_all(command, command.start, new, subscriptions, deadline)
        resumable = [pattern for pattern in patterns if pattern in self._entries]
        others = [pattern for pattern in patterns if pattern not in resumable]
        active = subscribed.active and (self._streams.connected or not resumable)
        if others:
            try:
                counted = count if command.start is None else None
                _, confirmed = await subscriptions.subscribe(
                    others, deadline - loop.time(), counted, len(self._entries)
                )
            except BaseException:
                self.remove_all(subscribed.resumable)
                raise
            active = active and confirmed
        if resumption is not None:
            resumption.ordered.set()
        if ended := [pattern for pattern in subscribed.resumable if pattern not in self._entries]:
            # While the others were subscribed.
            loop.call_soon(self._owner.patterns_ended, ended, no_longer_allowed(ended))
        if command.start is None:
            return success_reply(command, patterns, active)
        is_known = all(entry.is_bound for pattern in resumable if (entry := self._entries.get(pattern)) is not None)
        recovered = UNSET if subscribed.recovered is None or not is_known else subscribed.recovered
        if subscribed.others and command.after is not UNSET:
            # After the reply, which the caller writes in this turn.
            self._streams.counters.gaps["unknown"] += len(subscribed.others)
            loop.call_soon(self._owner.send, Gap(subjects=subscribed.others, lost=None, reason="unknown"))
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

    async def _subscribe_all(
        self, command: Command, start: Start, new: Sequence[str], subscriptions: Subscriptions, deadline: float
    ) -> tuple[Subscribed, Resumption | None]:
        """Subscribe as `_subscribe` does, again if the permissions change meanwhile so that they end a pattern."""
        is_query, self._is_query = self._is_query, False
        while True:
            grants = await self._authorize(command, new, subscriptions, deadline)
            updates = subscriptions.permission_updates
            subscribed, resumption = await self._subscribe(command, start, grants, deadline, is_query=is_query)
            names = {*subscribed.resumable, *subscribed.others}
            if updates == subscriptions.permission_updates or names.issuperset(new):
                return subscribed, resumption
            self.remove_all(subscribed.resumable)

    async def _authorize(
        self, command: Command, patterns: Sequence[str], subscriptions: Subscriptions, deadline: float
    ) -> list[Grant]:
        """Return the grants of new patterns, when it is known which streams hold them, or the deadline has passed.

        Raises:
            BridgeError: A pattern, or its past, isn't allowed, or can't be had.
        """
        while True:
            updates = subscriptions.permission_updates
            held = self._held(command, subscriptions)
            grants = subscriptions.policy.authorize(subscriptions.permissions, patterns, held)
            check_start(command, grants, self._owner.allows_history, None)
            await self._streams.until_known([grant.real for grant in grants], deadline)
            if self._owner.closed:
                raise UnknownSession("No such session")
            if subscriptions.permission_updates == updates:
                check_start(command, grants, self._owner.allows_history, self._streams)
                return grants

    async def _subscribe(
        self, command: Command, start: Start, grants: Sequence[Grant], deadline: float, *, is_query: bool
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
        entries = self._claim(held, is_query=is_query)
        points = None if after is None else decode_position(after) or {}
        request = ReplayRequest(
            points,
            start,
            cutoff=None if is_allowed or points is None else cutoff_of(self._settings.resume_window),
            reads_past=is_allowed and (start.kind != "new" or points is not None),
            has_lines=is_query,
        )
        resumption = self._start_replay(entries, request)
        self._query = resumption if is_query else self._query
        try:
            async with asyncio.timeout_at(deadline):
                await resumption.prepared.wait()
        except TimeoutError:
            pass
        except BaseException:
            self._give_up(entries)
            raise
        if self._owner.closed:
            raise UnknownSession("No such session")
        if resumption.error is not None:
            self._give_up(entries)
            raise resumption.error
        is_known = resumption.prepared.is_set()
        patterns = [name for entry in entries if self._entries.get(name := entry.grant.pattern) is entry]
        return Subscribed(patterns, missing, is_known, resumption.recovered if is_known else None), resumption

    def _claim(self, held: Mapping[Grant, Feed], *, is_query: bool) -> list[Entry]:
        if len({*self._feeds(), *held.values()}) > MAX_STREAMS:
            raise too_many_streams([grant.pattern for grant in held])
        real = [grant.real for grant in held]
        if is_query:
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
        self._entries.update({entry.grant.pattern: entry for entry in entries})
        return entries

    def _feeds(self) -> set[Feed]:
        return {entry.feed for entry in self._entries.values()}

    def _start_replay(self, entries: Sequence[Entry], request: ReplayRequest) -> Resumption:
        resumption = Resumption(self, self._owner, self._streams, entries, request)
        if request.points is None:
            begin: str = request.start.kind
        else:
            begin = "after" if request.announces else "slow_consumer"
        self._streams.counters.replays[begin] += 1
        task = asyncio.create_task(resumption.run(self._turn), name="natsbridge-replay")
        self._running[resumption] = task
        task.add_done_callback(lambda _: self._ended(resumption))
        return resumption

    def _ended(self, resumption: Resumption) -> None:
        # A task that is cancelled before it begins doesn't set it.
        resumption.prepared.set()
        self._running.pop(resumption, None)
        if self._query is resumption:
            self._query = None

    def _give_up(self, entries: Sequence[Entry]) -> None:
        """End the subscriptions of a command that has failed."""
        self.remove_all([entry.grant.pattern for entry in entries])

    def _attach_entry(self, entry: Entry, feeds: Collection[Feed]) -> None:
        line = entry.line if self._query is None else IdLine.NONE
        scope = self._streams.scope(feeds, line)
        entry.view = self._streams.attach(self._owner, entry.followed, entry.grant, scope)

    def _move_live(self, feeds: Collection[Feed]) -> None:
        """Give the live messages ids that hold these streams."""
        for entry in self._entries.values():
            if entry.view is not None:
                self._streams.detach(self._owner, entry.view)
                self._attach_entry(entry, feeds)

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
                resumption.remove(entry)
                if not resumption.entries:
                    task.cancel()
        # A session that ends gets nothing more.
        feeds = {} if self._is_closed else self._live_feeds()
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
                self.remove(pattern)
                if pattern not in self._unanswered:
                    ended.append(pattern)
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
                resumption.forbid_past()
        return ended

    def close(self, *, cut: bool = False) -> None:
        """End all subscriptions and replays."""
        self._is_closed = True
        self._streams.remove_subscriber(self)
        self._binder.close()
        for task in tuple(self._running.values()):
            task.cancel()
        for pattern in tuple(self._entries):
            self.remove(pattern, cut=cut)

    # Slow consumers

    def skip(self, messages: Sequence[StreamMessage]) -> None:
        """Note messages that the slow client skips. They are read from the stream later."""
        for message in messages:
            if message.stream not in self._skipped:
                self._skipped[message.stream] = Point(message.seq - 1, message.time)

    def catch_up(self) -> None:
        """Read the messages that the client has skipped while it was slow. All messages before were written."""
        if not self._skipped or self._is_closed:
            return
        points = {feed.key: point for feed, point in self._live_points().items()}
        points |= {stream.key: point for stream, point in self._skipped.items()}
        self._skipped = {}
        entries = [entry for entry in self._entries.values() if entry.view is not None]
        for entry in entries:
            assert entry.view is not None
            self._streams.detach(self._owner, entry.view)
            entry.view = None
        request = ReplayRequest(points, Start("new"), has_lines=self._query is None, announces=False)
        self._start_replay(entries, request).ordered.set()

    # Called by the replays, as their owner

    async def bind(self, resumption: Resumption) -> bool:
        """Move entries to the streams that hold them; return whether that is known of all."""
        return await self._binder.bind(resumption)

    def refuse(self, resumption: Resumption) -> None:
        """End the entries because of the replay's error, which came after the reply."""
        self._binder.refuse(resumption)

    def known_positions(self) -> dict[Feed, Point]:
        """Return the positions in streams whose messages the client gets, or would get if it weren't slow."""
        points = self._live_points()
        for resumption in self._running:
            if not resumption.request.announces:
                points |= resumption.positions
        return points

    def awaited_by(self, resumption: Resumption) -> list[asyncio.Task[None]]:
        """Return the other replays that send what the slow client has skipped, for subscriptions that were live."""
        if not resumption.request.announces:
            return []
        return [task for each, task in self._running.items() if not each.request.announces]

    def attach(self, resumption: Resumption) -> None:
        """Make the entries live, in the turn of the event loop in which the last old message was written."""
        was_query = self._query is resumption
        self._ended(resumption)
        # It may end this session, which must not be attached then.
        self._streams.flush()
        if self._is_closed:
            return
        before = self._live_feeds()
        scope_feeds = {**before, **dict.fromkeys(entry.feed for entry in resumption.entries)}
        if was_query or scope_feeds.keys() != before.keys():
            self._move_live(scope_feeds)
        for entry in resumption.entries:
            self._attach_entry(entry, scope_feeds)
        resumption.entries = []

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
        self._binder.end(entries, unavailable([entry.grant.pattern for entry in entries]))


def _cost_of(command: Command) -> int:
    if command.start is not None and command.start.kind != "new":
        return _PATTERNS_OF_PAST
    return 0 if command.after is UNSET else _PATTERNS_OF_ABSENCE
