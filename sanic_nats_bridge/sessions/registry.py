"""The sessions of this worker."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from ..auth.expirations import ExpirationQueue
from ..auth.permissions import CONTROL_TOKEN, Permissions
from ..auth.policy import SubscriptionPolicy
from ..errors import BridgeError, CloseCode, RateLimitExceeded, UnknownSession
from ..hub.broadcast import Broadcaster
from ..hub.hub import Hub
from ..hub.interfaces import Link
from ..metrics.counters import Counters
from ..metrics.stats import Stats
from ..protocol.messages import Close, Command, NatsState, Outcome, close_frame
from ..protocol.session_ids import key_of, new_worker_id
from ..publishing.clients import ClientPublisher
from ..settings import Settings
from ..streams.hub import StreamHub
from ..transports.base import CLOSE_SECONDS, Transport
from .command_turns import CommandTurns
from .context import SessionContext
from .deadlines import Deadlines
from .pattern_shares import PatternShares
from .pending import PendingConnection, PendingConnections, limit_permissions_calls
from .request_limit import RequestLimiter
from .session import Session
from .spread import Spread

__all__ = ["SessionRegistry", "SessionsView"]

_FULL_RETRY_FACTOR = 5
_CLOSED_PER_TURN = 50
_NOTIFIED_PER_TURN = 250
_YOUNGEST_OLD = 0.75
"""The share of ``max_stream_age`` after which the first of the streams that were opened together end."""
_REVOKED = "Access was revoked"


class SessionRegistry:
    """All sessions of this worker, with the parts that they share, such as the hub.

    Args:
        settings: The options of the bridge.
        link: The connection to NATS.
        on_opened: Called with each new session, after its ``welcome`` frame was written.
        on_closed: Called with each session that has ended, and its WebSocket close code.
        streams_prefix: The first tokens of the subjects on which JetStream delivers to this worker.
        deadlines: The timeouts of the worker. By default the registry has its own.
        publishing: The publishes and requests of clients. By default they can send none.
    """

    def __init__(
        self,
        settings: Settings,
        link: Link,
        *,
        on_opened: Callable[[Session], None],
        on_closed: Callable[[Session, int], None],
        streams_prefix: str = f"{CONTROL_TOKEN}.streams",
        deadlines: Deadlines | None = None,
        publishing: ClientPublisher | None = None,
    ) -> None:
        self.settings = settings
        self.counters = Counters()
        self.expirations = ExpirationQueue(self._expire)
        self._stream_ages = ExpirationQueue(self._end_old_streams, _loop_time)
        broadcaster = Broadcaster(
            self.counters,
            self.expirations,
            settings.expose_headers,
            settings.flush_interval,
            settings.max_overlap,
        )
        self.streams: StreamHub | None = None
        """The streams whose messages clients can get later, if there are any."""
        if settings.streams:
            self.streams = StreamHub(
                settings, broadcaster, self.counters, prefix=streams_prefix, on_changed=self._streams_changed
            )
        self.hub = Hub(
            link,
            broadcaster,
            self.counters,
            on_disconnected=self._nats_disconnected,
            on_established=self._nats_established,
            on_connected=self._nats_connected,
            unsubscribe_delay=settings.unsubscribe_delay,
            max_patterns=settings.max_patterns,
            max_subscribe_rate=settings.max_subscribe_rate,
        )
        self.policy = SubscriptionPolicy(settings.max_subscriptions, settings.control_prefix or CONTROL_TOKEN)
        self.pending_connections = PendingConnections()
        self.permissions_calls = limit_permissions_calls(settings)
        self.request_limiter = RequestLimiter(settings)
        self.deadlines = deadlines or Deadlines()
        self.publishing = publishing
        self.stop_reason: str | None = None
        """The reason for which the worker stops; ``None`` while it accepts sessions."""
        self._context = SessionContext(
            settings=settings,
            hub=self.hub,
            policy=self.policy,
            shares=PatternShares(settings.max_patterns_per_client),
            turns=CommandTurns(),
            counters=self.counters,
            expirations=self.expirations,
            on_closed=self._remove,
            worker=new_worker_id(),
            reconnect_spread=settings.reconnect_spread,
            streams=self.streams,
            publishing=publishing,
        )
        self._on_opened = on_opened
        self._on_closed = on_closed
        self._sessions: dict[str, Session] = {}
        self._by_identity: dict[str, set[Session]] = {}
        self._by_address: Counter[str | None] = Counter()
        """The numbers of sessions without an identity."""
        self._by_transport = Counter(websocket=0, sse=0)
        self._closing: Spread[Session] | None = None
        self._expired = Spread[Session]([], Session.expire, _CLOSED_PER_TURN)
        """The sessions that have expired, and get nothing any more, but have not ended yet."""
        self._old_streams = Spread[Session]([], Session.end_old_stream, _CLOSED_PER_TURN)
        self._statuses: Spread[Session] | None = None
        """The sessions that are still to be notified of the last change of the connection to NATS."""
        self._stream_statuses: Spread[Session] | None = None
        """The same for the connection for streams."""

    @property
    def worker(self) -> str:
        """The id of this worker."""
        return self._context.worker

    @property
    def nats(self) -> NatsState:
        """The state of the connection to NATS, as reported to clients."""
        return self._context.nats

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def open(self, transport: Transport, permissions: Permissions, pending: PendingConnection) -> Session | None:
        """Open a session and write its ``welcome`` frame. Close the transport instead if the client is rejected.

        Args:
            transport: The transport of the client.
            permissions: The permissions that the app has returned for the client.
            pending: The client's entry in `pending_connections`.

        Returns:
            The session, or ``None`` if the client was rejected.
        """
        current = pending.current_permissions(permissions)
        if current is None:
            transport.close(self._close_frame(CloseCode.FORBIDDEN, _REVOKED), CLOSE_SECONDS)
            return None
        rejection = self.rejection_reason(permissions.identity, pending.address)
        if rejection is not None:
            transport.close(rejection, CLOSE_SECONDS)
            return None
        self.pending_connections.discard(pending)
        session = Session(self._context, transport, current, pending.address)
        session.start()
        self._sessions[session.key] = session
        self._by_transport[session.transport] += 1
        if session.identity is not None:
            self._by_identity.setdefault(session.identity, set()).add(session)
        else:
            self._by_address[session.address] += 1
        self._schedule_expiry(session)
        if session.transport == "sse" and self.settings.max_stream_age:
            # Jittered, so that the clients of a restarted server don't all reconnect at once.
            age = self.settings.max_stream_age * random.uniform(_YOUNGEST_OLD, 1)
            self._stream_ages.put(session.key, _loop_time() + age)
        self._on_opened(session)
        return session

    def rejection_reason(self, identity: str | None = None, address: str | None = None) -> Close | None:
        """Return the ``close`` frame for a new client if the worker stops or a limit is reached.

        Clients that the app is still asked about don't count. They have a limit of their own (`permissions_calls`).

        Args:
            identity: The identity of the client, if it is known already.
            address: The address of the client, if it is known that it has no identity.
        """
        if self.stop_reason is not None:
            return self._close_frame(CloseCode.GOING_AWAY, self.stop_reason)
        if len(self._sessions) >= self.settings.max_sessions:
            reason = "This server is full; try again later"
        elif len(self._sessions_of(identity)) >= self.settings.max_sessions_per_identity:
            reason = "Too many connections of this user; try again later"
        elif identity is None and self._by_address[address] >= self.settings.max_sessions_per_address:
            reason = "Too many connections from this address; try again later"
        else:
            return None
        return self._close_frame(CloseCode.TRY_AGAIN_LATER, reason, self.settings.retry * _FULL_RETRY_FACTOR)

    def close_frame_for(self, error: BridgeError) -> Close:
        """Return the ``close`` frame for a client that was rejected with this error."""
        if self.stop_reason is not None:
            return self._close_frame(CloseCode.GOING_AWAY, self.stop_reason)
        retry = None
        if isinstance(error, RateLimitExceeded):
            retry = max(self.settings.retry * _FULL_RETRY_FACTOR, error.retry_after)
        return self._close_frame(error.close_code or CloseCode.INTERNAL, error.message, retry)

    def _close_frame(self, code: CloseCode, reason: str, retry: float | None = None) -> Close:
        return close_frame(code, reason, retry=retry or self.settings.retry, spread=self._context.reconnect_spread)

    def get(self, key: str, identity: str | None) -> Session:
        """Return the session of this key, for a client of this identity.

        Raises:
            UnknownSession: There is no such session, or it belongs to another identity.
        """
        session = self._sessions.get(key)
        if session is None or session.identity not in (None, identity):
            raise UnknownSession("No such session")
        return session

    def holds(self, key: str) -> bool:
        """Return whether this worker has a session of this key."""
        return key in self._sessions

    async def execute(self, key: str, identity: str | None, command: Command) -> Outcome:
        """Execute a command that a client of this identity has sent by POST.

        Raises:
            UnknownSession: There is no such session on this worker, or it belongs to another identity.
        """
        return await self.get(key, identity).execute(command)

    def _remove(self, session: Session, code: int) -> None:
        del self._sessions[session.key]
        self._by_transport[session.transport] -= 1
        if session.identity is not None:
            others = self._by_identity[session.identity]
            others.discard(session)
            if not others:
                del self._by_identity[session.identity]
        else:
            self._by_address[session.address] -= 1
            if not self._by_address[session.address]:
                del self._by_address[session.address]
        self.expirations.drop(session.key)
        self._stream_ages.drop(session.key)
        self.counters.ended_bytes += session.sent_bytes
        self.counters.count_close(code)
        self._on_closed(session, code)

    def count_rejected(self, error: BridgeError) -> None:
        """Count a request that was rejected before it reached a session."""
        self.counters.refused[error.code] += 1

    def stats(self, loop_lag: float, control: NatsState = "connected") -> Stats:
        """Return the stats of this worker as of now. Takes about 0.1 µs per session.

        Args:
            loop_lag: The delay of the event loop, in seconds.
            control: Whether this worker and the others can reach each other.
        """
        counters, streams, publishing = self.counters, self.streams, self.publishing
        feeds = () if streams is None else streams.feeds
        return Stats(
            sessions=self._by_transport.copy(),
            patterns=len(self.hub.patterns),
            messages=counters.messages,
            deliveries=counters.deliveries,
            sent_bytes=counters.ended_bytes + sum([session.sent_bytes for session in self]),
            lost=counters.lost.copy(),
            gaps=counters.gaps.copy(),
            slow_consumers=counters.slow_consumers,
            status_messages=counters.status_messages,
            refused=counters.refused.copy(),
            closes=counters.closes.copy(),
            nats=self.nats,
            control=control,
            control_dropped=counters.control_dropped.copy(),
            nats_reconnects=max(0, counters.nats_connections - 1),
            published={} if publishing is None else publishing.published.copy(),
            answered_requests=0 if publishing is None else publishing.answered,
            current_publishes={} if publishing is None else publishing.in_progress_by_action,
            replays=counters.replays.copy(),
            replay_results=counters.replay_results.copy(),
            replayed=counters.replayed,
            current_replays={
                "running": counters.replays_running - counters.replays_waiting,
                "waiting": counters.replays_waiting,
            },
            feeds_reading={feed.name: feed.is_standing for feed in feeds},
            streams_available={feed.name: feed.is_known and not feed.is_unavailable for feed in feeds},
            feed_lag={feed.name: feed.lag for feed in feeds},
            history_bytes=0 if streams is None else streams.memory.bytes,
            jetstream_requests=0 if streams is None else streams.jetstream.requests,
            loop_lag=loop_lag,
        )

    def start(self, *, reconnect_spread: float | None = None) -> None:
        """Accept sessions, under a new worker id.

        Args:
            reconnect_spread: Replaces the setting of this name.
        """
        if reconnect_spread is not None:
            self._context.reconnect_spread = reconnect_spread
        self._context.worker = new_worker_id()
        # Commands may have waited when an earlier event loop ended.
        self._context.turns = CommandTurns()
        self.stop_reason = None
        self.deadlines.start()

    def close_all(self, reason: str) -> None:
        """End every session and accept no more, because the worker stops. `closed` waits for the last one."""
        self.stop_reason = reason
        self.deadlines.stop()
        self._closing = Spread(self, lambda session: session.close(CloseCode.GOING_AWAY, reason), _CLOSED_PER_TURN)

    async def closed(self) -> None:
        """Wait until `close_all` has ended every session."""
        if self._closing is not None:
            await self._closing.finish()
        await self._expired.finish()

    def check(self, permissions: Permissions) -> None:
        """Check permissions of the app against the settings.

        Raises:
            ValueError: They follow too many patterns, or name subjects of the bridge.
        """
        self.policy.followed(permissions)
        if self.publishing is not None:
            self.publishing.policy.check(permissions)

    # Called by the app, on this worker or another

    def revoke(self, identity: str | None, session: str | None) -> int:
        """End sessions as `NatsBridge.revoke` does; return their number."""
        selected = self._select(identity, session)
        if identity is not None:
            self.pending_connections.update_permissions(identity, None)
        for each in selected:
            each.close(CloseCode.FORBIDDEN, _REVOKED, self.settings.write_timeout)
        return len(selected)

    def update_permissions(self, permissions: Permissions, identity: str | None, session: str | None) -> int:
        """Replace the permissions of sessions as `NatsBridge.update_permissions` does; return their number."""
        if not isinstance(permissions, Permissions):
            raise TypeError(f"permissions must be Permissions, got {type(permissions).__name__}")
        selected = self._select(identity, session)
        identities = {identity, *(each.identity for each in selected)} - {None}
        if identities and permissions.identity not in {None, *identities}:
            message = f"permissions.identity must be None or the session's identity, got {permissions.identity!r}"
            raise ValueError(message)
        if identities and permissions.identity is None:
            # The app may omit it. What the session publishes carries it all the same.
            permissions = replace(permissions, identity=next(iter(identities)))
        self.check(permissions)
        if identity is not None:
            self.pending_connections.update_permissions(identity, permissions)
        for each in selected:
            each.update_permissions(permissions)
            if not each.closed:
                self._schedule_expiry(each)
        self.expirations.expire_due()
        return len(selected)

    def _expire(self, keys: list[str]) -> None:
        """End sessions whose permissions have expired, some in each turn. All of them get nothing from now on."""
        sessions = [self._sessions[key] for key in keys]
        for session in sessions:
            session.withhold()
        self._expired.add(sessions)

    def _end_old_streams(self, keys: list[str]) -> None:
        self._old_streams.add([self._sessions[key] for key in keys])

    def _schedule_expiry(self, session: Session) -> None:
        self.expirations.put(session.key, session.permissions.expires_at)

    def _select(self, identity: str | None, session: str | None) -> list[Session]:
        if (identity is None) == (session is None):
            raise ValueError("identity or session must be given, and not both")
        for name, value in (("identity", identity), ("session", session)):
            # A value of another type would match no session, so a revoke would silently do nothing.
            if not isinstance(value, str | None):
                raise TypeError(f"{name} must be a str, got {type(value).__name__}")
        if session is None:
            found = list(self._sessions_of(identity))
        else:
            found = [each for each in [self._sessions.get(key_of(session))] if each is not None]
        return [each for each in found if not each.closed]

    def _sessions_of(self, identity: str | None) -> Collection[Session]:
        return () if identity is None else self._by_identity.get(identity, ())

    # Called by the hub

    def _nats_disconnected(self) -> None:
        self.expirations.expire_due()
        if self.nats == "connected":
            self._context.nats = "disconnected"
            self._notify_all()

    def _nats_established(self, subscribe: Callable[[], None]) -> None:
        """Send the gaps, and then subscribe, so that no message of the new connection precedes the gap of a session."""
        losses = self.hub.losses

        def send_gaps(session: Session) -> None:
            # If the connection was lost again, the next one has a gap for both.
            if self.hub.losses == losses:
                session.send_gaps()

        def send_all_gaps() -> None:
            Spread(self, send_gaps, _NOTIFIED_PER_TURN).then(subscribe)

        self.expirations.expire_due()
        if self._statuses is None:
            send_all_gaps()
        else:
            # The status that NATS is disconnected comes first.
            self._statuses.then(send_all_gaps)

    def _nats_connected(self) -> None:
        self.expirations.expire_due()
        self._context.nats = "connected"
        self._notify_all()

    def _streams_changed(self) -> None:
        """Notify the sessions that have history of a change of the connection for streams."""
        assert self.streams is not None
        self.expirations.expire_due()
        self._context.streams_nats = "connected" if self.streams.connected else "disconnected"
        if self._stream_statuses is not None:
            self._stream_statuses.cancel()
        self._stream_statuses = Spread(self, Session.nats_changed, _NOTIFIED_PER_TURN)

    def _notify_all(self) -> None:
        """Notify every session of a change of the first connection, in place of the change before."""
        if self._statuses is not None:
            self._statuses.cancel()
        self._statuses = Spread(self, lambda session: session.nats_changed(core=True), _NOTIFIED_PER_TURN)


class SessionsView(Collection[Session]):
    """A read-only view of the sessions of this worker, for the app."""

    def __init__(self, sessions: SessionRegistry) -> None:
        self._sessions = sessions

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions)

    def __contains__(self, session: object) -> bool:
        return session in tuple(self._sessions)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
