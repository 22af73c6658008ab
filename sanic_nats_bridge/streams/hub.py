"""The streams of one worker: their feeds, and the sessions that follow patterns on them.

Streams have a connection to NATS of their own. A request that keeps the server busy delays no other messages, and the
path of messages without history stays as it is.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

from ..auth.permissions import Grant
from ..errors import SubscriptionLimitExceeded
from ..hub.broadcast import Broadcaster
from ..hub.interest import View
from ..hub.interfaces import Subscriber
from ..log_limits import limited_logger
from ..metrics.counters import Counters
from ..nats.connection import NatsClient
from ..nats.interfaces import ControlListener
from ..nats.supervisor import ConnectionSupervisor
from ..protocol.stream_messages import StreamMessage
from ..settings import Settings
from .encoding import encode_record, ids_of
from .feed import Feed
from .followed import Channel, Followed, IdLine, Scope
from .jetstream import JetStream, JetStreamError, PermissionMissing, StreamInfo, StreamMissing
from .positions import MAX_PARTS, Point, PointEncoder, join_parts, stream_key
from .reader import StreamReader
from .replay import Replay
from .replay_limits import ReplayLimits
from .requirements import holds, problem_of
from .slices import EncodedSlices
from .turns import Turns
from .window import Record, WindowMemory

__all__ = ["StreamHub", "StreamSubscriber"]

logger = limited_logger()

_LINGER_SECONDS = 30.0
"""Seconds for which a pattern is followed after its last session has left, so that clients find it when they return."""
_SLICES_SHARE = 8
"""The part of the memory that encoded messages have."""
_BLOCKS = 64
"""The number of parts of the memory for records, of which the oldest is removed as a whole."""
# In Python 3.11, a member of an enum takes longer to look up than several calls.
_OWN = IdLine.OWN
_ACCEPTED_BYTES = 2 * 1024 * 1024
"""The accepted length of answers: a stored message in JSON is a third longer than ``max_payload``, which is 1 MiB."""


class StreamHub:
    """The feeds of a worker, by the names of their streams.

    Args:
        settings: The options of the bridge.
        broadcaster: The message path, shared with the hub.
        counters: The counters of the worker.
        prefix: The literal prefix of the worker's own subjects, below the control prefix.
        on_changed: Called when the connection has ended or was established.
    """

    def __init__(
        self,
        settings: Settings,
        broadcaster: Broadcaster,
        counters: Counters,
        *,
        prefix: str,
        on_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self._broadcaster = broadcaster
        self._on_changed = on_changed
        self.counters = counters
        self.headers = frozenset(settings.expose_headers)
        share = settings.history_buffer_bytes // _SLICES_SHARE
        self.memory = WindowMemory(settings.history_buffer_bytes - share, settings.history_buffer_bytes // _BLOCKS)
        self.slices = EncodedSlices(share)
        self.connection = ConnectionSupervisor(
            settings,
            on_connected=lambda: None,
            # A lambda, because JetStream needs the connection.
            on_denied=lambda subject: self.jetstream.denied(subject),
            purpose="streams",
            accepted_length=_ACCEPTED_BYTES,
        )
        self.jetstream = JetStream(self.connection, f"{prefix}.reply", domain=settings.jetstream_domain)
        self.jetstream.on_denied = self._denied
        self.feeds = tuple(
            Feed(
                name,
                None if patterns is None else tuple(patterns),
                self.jetstream,
                _Link(self.connection),
                self,
                deliver_prefix=f"{prefix}.feed",
                headers=self.headers,
            )
            for name, patterns in settings.streams.items()
        )
        self.turns = self._new_turns()
        """The turns of replays to read each stream. One that doesn't answer delays no others."""
        self._idle: dict[Followed, tuple[Feed, asyncio.TimerHandle]] = {}
        self._scopes: dict[tuple[frozenset[Feed], IdLine], Scope] = {}
        """All scopes so far: at most 486, because an id has at most four of eight streams."""
        self._subscribers: dict[StreamSubscriber, None] = {}
        self.connected = False
        """True while the connection is established."""

    def _new_turns(self) -> dict[Feed, Turns]:
        # They belong to the event loop in which they are first waited for.
        return {feed: Turns(self.settings.max_replays, self.counters) for feed in self.feeds}

    # Patterns

    def find(self, pattern: str) -> Feed | None:
        """Return the feed of the first stream that holds a real pattern, or that may hold it as far as is known."""
        for feed in self.feeds:
            if feed.holds(pattern) if feed.is_known else feed.may_hold(pattern):
                return feed
        return None

    async def until_known(self, patterns: Sequence[str], deadline: float) -> None:
        """Wait until it is known which streams hold these real patterns, or a time of the event loop has passed."""
        for pattern in patterns:
            for feed in self.feeds:
                if not feed.is_known and feed.may_hold(pattern):
                    await feed.until_known(deadline - asyncio.get_running_loop().time())

    def follow(self, feed: Feed, pattern: str) -> Followed:
        """Claim a pattern of a stream. The caller must release it.

        Raises:
            SubscriptionLimitExceeded: The worker would follow more patterns than ``max_patterns``.
        """
        followed = feed.get(pattern)
        if followed is None:
            if sum(each.followed_count for each in self.feeds) >= self.settings.max_patterns:
                self._drop_idle()
            followed = Followed(pattern, self.memory, feed.seq)
            feed.add(followed)
        idle = self._idle.pop(followed, None)
        if idle is not None:
            idle[1].cancel()
        followed.claims += 1
        return followed

    def release(self, feed: Feed, followed: Followed) -> None:
        """Release a claim."""
        followed.claims -= 1
        if not followed.claims:
            loop = asyncio.get_running_loop()
            self._idle[followed] = feed, loop.call_later(_LINGER_SECONDS, self._drop, feed, followed)

    def _drop_idle(self) -> None:
        if not self._idle:
            raise SubscriptionLimitExceeded("This server has too many subjects (max_patterns); try again later")
        followed, (feed, timer) = next(iter(self._idle.items()))
        timer.cancel()
        self._drop(feed, followed)

    def _drop(self, feed: Feed, followed: Followed) -> None:
        self._idle.pop(followed, None)
        feed.remove(followed)

    def reader(self, feed: Feed, followed: list[Followed], point: Point) -> StreamReader:
        """Return a reader of these patterns of one stream."""
        return StreamReader(feed, followed, point, self.turns[feed], self.headers)

    def replay(self, patterns: Iterable[tuple[Feed, Followed]], cutoff: int | None) -> Replay:
        """Return a replay of claimed patterns, each on one stream.

        Args:
            patterns: The patterns.
            cutoff: The time before which no message may be sent to the client, in Unix milliseconds, or ``None``.
        """
        settings = self.settings
        limits = ReplayLimits(settings.max_replay_messages, settings.max_replay_bytes, settings.max_snapshot_subjects)
        by_feed: dict[Feed, dict[Followed, None]] = {}
        for feed, followed in patterns:
            by_feed.setdefault(feed, {})[followed] = None
        readers = [self.reader(feed, list(followed), feed.point) for feed, followed in by_feed.items()]
        return Replay(readers, limits, cutoff)

    async def position(self, patterns: Sequence[str]) -> str:
        """Return the present position in the streams that hold these real patterns, by the word of their leaders.

        Raises:
            LookupError: No stream holds one of the patterns.
            ValueError: They are on more streams than a session may follow.
            ConnectionError: NATS is disconnected, or doesn't answer.
        """
        infos: dict[Feed, StreamInfo | None] = {}
        found: set[Feed] = set()
        for pattern in patterns:
            for feed in self.feeds:
                if not feed.may_hold(pattern):
                    continue
                if feed not in infos:
                    infos[feed] = await self._present(feed)
                info = infos[feed]
                if info is not None and holds(feed.patterns, info, pattern):
                    found.add(feed)
                    break
            else:
                raise LookupError(f"no stream has the history of '{pattern}'")
        if len(found) > MAX_PARTS:
            raise ValueError(f"patterns must be on at most {MAX_PARTS} streams, got {len(found)}")
        parts = []
        for feed, info in infos.items():
            if info is not None and feed in found:
                parts.append(PointEncoder(stream_key(feed.name, info.created)).encode(info.last_seq, info.last_time))
        return join_parts(sorted(parts))

    async def _present(self, feed: Feed) -> StreamInfo | None:
        """Return the present state of a stream; ``None`` if it can't serve clients."""
        if feed.is_unavailable:
            return None
        try:
            info = await self.jetstream.stream_info(feed.name)
        except (StreamMissing, PermissionMissing):
            return None
        except JetStreamError as error:
            raise ConnectionError(str(error)) from error
        return info if problem_of(info, ()) is None else None

    # Subscribers

    def flush(self) -> None:
        """Write the messages gathered so far. It may end sessions."""
        self._broadcaster.flush()

    def attach(self, subscriber: Subscriber, followed: Followed, grant: Grant, scope: Scope) -> View:
        """Deliver the messages of a claimed pattern to a subscriber from now on.

        All messages that were received before must have been written to it.
        """
        self._broadcaster.flush()
        return followed.channel(scope).add(subscriber, grant)

    def detach(self, subscriber: Subscriber, view: View, *, cut: bool = False) -> None:
        """Deliver no more messages to a subscriber. With ``cut``, those that aren't written yet are dropped."""
        channel = view.interest
        assert isinstance(channel, Channel)
        if cut:
            self._broadcaster.drop(subscriber, frozenset([view]))
        else:
            self._broadcaster.flush_to(subscriber)
        if subscriber in view.subscribers:
            channel.remove(subscriber, view)
            channel.followed.drop_if_empty(channel)

    def scope(self, feeds: Collection[Feed], line: IdLine) -> Scope:
        """Return the scope of a session that follows these streams."""
        key = (frozenset(feeds), line)
        scope = self._scopes.get(key)
        if scope is None:
            scope = Scope(tuple(sorted(feeds, key=lambda feed: feed.key)), line)
            self._scopes[key] = scope
        return scope

    # Called by the feeds

    def deliver(self, feed: Feed, record: Record, followed: tuple[Followed, ...]) -> bool:
        """Keep a message in the windows, and add it to the views that show it.

        Returns:
            True if no more messages may be added in this turn of the event loop.
        """
        channel = followed[0].sole_channel if len(followed) == 1 else None
        view = None if channel is None else channel.sole_view
        if channel is None or view is None:
            return self._share(feed, record, followed)
        # The usual case: one pattern, and all subscribers see the same. Without `encode_record`, because a call here is
        # a tenth of a microsecond for each message.
        followed[0].window.add(record)
        scope = channel.scope
        if scope.line is _OWN and len(scope.streams) == 1:
            position = line = feed.life.encode(record.seq, record.time)
        else:
            position, line = ids_of(scope, feed, record)
        payload = record.payload
        message = StreamMessage(
            view.prefix,
            record.subject,
            record.headers,
            payload,
            seq=record.seq,
            position=position,
            event_id=line,
            operation=record.operation,
            stream=feed,
            time=record.time,
        )
        return self._broadcaster.add_alone(view, message, len(payload))

    def _share(self, feed: Feed, record: Record, followed: tuple[Followed, ...]) -> bool:
        broadcaster = self._broadcaster
        number = broadcaster.next_number()
        first: StreamMessage | None = None
        copies = 0
        ids: dict[Scope, tuple[str, str]] = {}
        for each in followed:
            each.window.add(record)
            for scope, channel in each.channels.items():
                if scope not in ids:
                    ids[scope] = ids_of(scope, feed, record)
                for alike in channel.views.values():
                    message: StreamMessage | None = None
                    for view in alike.values():
                        if view.excludes is not None and view.excludes(record.subject):
                            continue
                        if message is None:
                            message = encode_record(record, view.prefix, number, *ids[scope], first, feed=feed)
                            first = first or message
                        broadcaster.add(view, message)
                        copies += 1
        return bool(copies) and broadcaster.added(len(record.payload), copies)

    def lost(self, followed: tuple[Followed, ...]) -> None:
        """Notify the subscribers of these patterns that a fault of the bridge has lost a message."""
        self._broadcaster.flush()
        for each in followed:
            for channel in each.channels.values():
                for view, subscriber in channel.subscribers_by_view():
                    subscriber.messages_lost(view.pattern)

    def was_reset(self, feed: Feed) -> None:
        """Notify the subscribers of a stream that it isn't the same any more."""
        self.slices.clear()
        self._broadcaster.flush()
        for subscriber in self._subscribers_of(feed):
            subscriber.stream_was_reset(feed)

    def ended(self, feed: Feed, followed: list[Followed]) -> None:
        """Notify the subscribers of patterns that no stream holds any more."""
        self._broadcaster.flush()
        for subscriber in self._subscribers_of(feed):
            subscriber.patterns_ended(followed)
        for each in followed:
            feed.remove(each)

    def _subscribers_of(self, feed: Feed) -> list["StreamSubscriber"]:
        return [each for each in self._subscribers if each.follows(feed)]

    def add_subscriber(self, subscriber: "StreamSubscriber") -> None:
        """Notify a session of what happens to streams."""
        self._subscribers[subscriber] = None

    def remove_subscriber(self, subscriber: "StreamSubscriber") -> None:
        """Notify a session no more."""
        self._subscribers.pop(subscriber, None)

    def _denied(self, subject: str) -> None:
        for feed in self.feeds:
            feed.note_denied(subject)

    # The connection, as its listener

    def start(self) -> None:
        """Connect, and read the state of all streams."""
        self.turns = self._new_turns()
        for feed in self.feeds:
            feed.start()
        self.connection.start(self)

    async def stop(self) -> None:
        """Delete all consumers and close the connection."""
        for followed in tuple(self._idle):
            self._idle.pop(followed)[1].cancel()
        for feed in self.feeds:
            for each in feed.followed:
                feed.remove(each)
        await asyncio.gather(*(feed.stop() for feed in self.feeds))
        await self.connection.stop()

    def on_message(self, sink: Any, subject: bytes, headers: bytes, payload: bytes) -> bool:
        """Ignore a message: this connection has no subscriptions but those of feeds and requests."""
        return False

    @property
    def is_full(self) -> bool:
        """True while no message may be processed."""
        return self._broadcaster.is_full

    async def room(self) -> None:
        """Wait until messages may be processed."""
        await self._broadcaster.room()

    def delivery_failed(self, sink: Any) -> None:
        """Do nothing; see `on_message`."""

    def confirmed(self, sink: Any) -> None:
        """Do nothing; see `on_message`."""

    def refused(self, sink: Any) -> None:
        """Do nothing; see `on_message`."""

    def connection_established(self) -> None:
        """Let the feeds go on."""
        self.connected = True
        self.jetstream.established(self.connection.jetstream_domain)
        for feed in self.feeds:
            feed.wake()
        self._on_changed()

    async def subscribed(self) -> None:
        """Return at once, because nothing is subscribed here."""

    def connection_closed(self) -> None:
        """Let the feeds and requests wait for the next connection."""
        self.connected = False
        self.jetstream.closed()
        for feed in self.feeds:
            feed.wake()
        self._on_changed()


class StreamSubscriber(Protocol):
    """The streams' part of a session."""

    def follows(self, feed: Feed) -> bool:
        """Return whether a subscription of the session is on this stream."""

    def stream_was_reset(self, feed: Feed) -> None:
        """Note that the stream isn't the same any more. Its subscriptions go on with later messages."""

    def patterns_ended(self, followed: list[Followed]) -> None:
        """Note that no stream holds these patterns any more."""


class _Link:
    """The connection, as the feeds use it."""

    def __init__(self, connection: ConnectionSupervisor) -> None:
        self._connection = connection
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def client(self) -> NatsClient | None:
        return self._connection.client

    def subscribe_control(self, subject: str, listener: ControlListener) -> int | None:
        return self._connection.subscribe_control(subject, listener)

    def unsubscribe(self, sid: int) -> None:
        self._connection.unsubscribe(sid)

    def publish(self, subject: str) -> None:
        task = asyncio.create_task(self._publish(subject))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, subject: str) -> None:
        client = self._connection.client
        if client is not None:
            # A lost answer only delays the consumer, whose feed is then silent and begins again.
            with contextlib.suppress(Exception):
                await client.publish(subject)
