"""All sessions of this worker."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final

from ..auth.expirations import Expiries
from ..auth.permissions import CONTROL_TOKEN, Permissions
from ..auth.policy import Admission
from ..errors import BridgeError, CloseCode, SessionUnknown
from ..hub.broadcast import Batch
from ..hub.hub import Hub
from ..hub.interfaces import Link
from ..metrics.counters import Tally
from ..metrics.stats import Stats
from ..protocol import encoding as wire
from ..protocol.encoding import Form
from ..protocol.messages import Close, Command, NatsState, Outcome, Status, farewell
from ..protocol.session_ids import key_of, new_worker_id
from ..settings import Settings
from ..transports.base import CLOSE_SECONDS, Outlet
from .deadlines import Patience
from .pending import Arrival, Arrivals
from .session import Session, SessionContext

__all__ = ["Sessions", "SessionsView"]

_FULL_RETRY_FACTOR: Final = 5
_REVOKED: Final = "Access was revoked"


class Sessions:
    """All sessions of this worker, and the hub that they share.

    Args:
        settings: The options of the bridge.
        link: The connection to NATS.
        on_opened: Called with each session when it has been welcomed.
        on_closed: Called with each session when it has ended, and its WebSocket close code.
    """

    def __init__(
        self,
        settings: Settings,
        link: Link,
        *,
        on_opened: Callable[[Session], None],
        on_closed: Callable[[Session, int], None],
    ) -> None:
        self.settings = settings
        self.tally = Tally()
        self.expiries = Expiries(self._expire)
        self.hub = Hub(
            link,
            Batch(self.tally, self.expiries, settings.headers, settings.flush_interval),
            self.tally,
            on_lost=self._nats_lost,
            on_returned=self._nats_returned,
            on_connected=self._nats_connected,
            linger=settings.linger,
            max_patterns=settings.max_patterns,
            max_sub_rate=settings.max_sub_rate,
        )
        self.admission = Admission(settings.max_subscriptions, settings.control_prefix or CONTROL_TOKEN)
        self.arrivals = Arrivals()
        self.patience = Patience()
        self.going_away: str | None = None
        """The reason why the worker stops, once it does."""
        self._context = SessionContext(
            settings=settings,
            hub=self.hub,
            admission=self.admission,
            tally=self.tally,
            expiries=self.expiries,
            on_closed=self._remove,
            worker=new_worker_id(),
        )
        self._on_opened = on_opened
        self._on_closed = on_closed
        self._sessions: dict[str, Session] = {}
        self._by_identity: dict[str, set[Session]] = {}
        self._by_transport = Counter(websocket=0, events=0)

    @property
    def worker(self) -> str:
        """The id of this worker."""
        return self._context.worker

    @property
    def nats(self) -> NatsState:
        """The state of the connection to NATS, as clients are told."""
        return self._context.nats

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def open(self, outlet: Outlet, permissions: Permissions, arrival: Arrival) -> Session | None:
        """A new session, which has been welcomed; ``None`` where there can be none, as the client was told."""
        decided = arrival.up_to_date(permissions)
        if decided is None:
            outlet.finish(self._farewell(CloseCode.FORBIDDEN, _REVOKED), CLOSE_SECONDS)
            return None
        refusal = self.refusal(permissions.identity)
        if refusal is not None:
            outlet.finish(refusal, CLOSE_SECONDS)
            return None
        self.arrivals.over(arrival)
        session = Session(self._context, outlet, decided)
        session.begin()
        self._sessions[session.key] = session
        self._by_transport[session.transport] += 1
        if session.identity is not None:
            self._by_identity.setdefault(session.identity, set()).add(session)
        self._note_expiry(session)
        self._on_opened(session)
        return session

    def refusal(self, identity: str | None = None) -> Close | None:
        """Why none of those that have arrived can become a session for now, if so."""
        if self.going_away is not None:
            return self._farewell(CloseCode.GOING_AWAY, self.going_away)
        if len(self._sessions) + len(self.arrivals) > self.settings.max_sessions:
            reason = "This server is full; come back later"
        elif len(self._of(identity)) >= self.settings.max_sessions_per_identity:
            reason = "Too many connections of one user; come back later"
        else:
            return None
        return self._farewell(CloseCode.TRY_AGAIN_LATER, reason, self.settings.retry * _FULL_RETRY_FACTOR)

    def rejection(self, error: BridgeError) -> Close:
        """What one who has arrived hears of an error that keeps it out."""
        if self.going_away is not None:
            return self._farewell(CloseCode.GOING_AWAY, self.going_away)
        return self._farewell(error.close_code or CloseCode.INTERNAL, error.message)

    def _farewell(self, code: CloseCode, reason: str, retry: float | None = None) -> Close:
        return farewell(code, reason, retry=retry or self.settings.retry, spread=self.settings.drain)

    def find(self, key: str, identity: str | None) -> Session:
        """The session of that key, for a client of that identity.

        Raises:
            SessionUnknown: There is none, or it is another's.
        """
        session = self._sessions.get(key)
        if session is None or session.identity not in (None, identity):
            raise SessionUnknown("No such session")
        return session

    async def execute(self, key: str, identity: str | None, command: Command) -> Outcome:
        """Execute a command that a client of that identity has sent by POST.

        Raises:
            SessionUnknown: There is no such session on this worker, or it belongs to another client.
        """
        return await self.find(key, identity).execute(command)

    def _remove(self, session: Session, code: int) -> None:
        del self._sessions[session.key]
        self._by_transport[session.transport] -= 1
        if session.identity is not None:
            others = self._by_identity[session.identity]
            others.discard(session)
            if not others:
                del self._by_identity[session.identity]
        self.expiries.drop(session.key)
        self.tally.ended_bytes += session.sent_bytes
        self.tally.count_close(code)
        self._on_closed(session, code)

    def count_refused(self, error: BridgeError) -> None:
        """Count a request that was rejected before it reached a session."""
        self.tally.refused[error.code] += 1

    def stats(self, loop_lag: float) -> Stats:
        """The stats of this worker as of now; takes about a tenth of a microsecond for each session."""
        tally = self.tally
        return Stats(
            sessions=self._by_transport.copy(),
            patterns=len(self.hub.patterns),
            messages=tally.messages,
            deliveries=tally.deliveries,
            sent_bytes=tally.ended_bytes + sum([session.sent_bytes for session in self]),
            lost=tally.lost.copy(),
            gaps=tally.gaps.copy(),
            slow_consumers=tally.slow_consumers,
            refused=tally.refused.copy(),
            closes=tally.closes.copy(),
            nats=self.nats,
            nats_reconnects=max(0, tally.nats_connections - 1),
            loop_lag=loop_lag,
        )

    def start(self) -> None:
        """Let sessions in, as those of a new worker."""
        self._context.worker = new_worker_id()
        self.going_away = None
        self.patience.begin()

    def close_all(self, reason: str) -> None:
        """End every session, and let none in: the server is going away."""
        self.going_away = reason
        self.patience.end()
        for session in self:
            session.close(CloseCode.GOING_AWAY, reason)

    # What the app decides about sessions that live

    def revoke(self, identity: str | None, session: str | None) -> int:
        """End sessions, as `NatsBridge.revoke` says; returns how many."""
        chosen = self._chosen(identity, session)
        if identity is not None:
            self.arrivals.decide(identity, None)
        for each in chosen:
            each.close(CloseCode.FORBIDDEN, _REVOKED, self.settings.write_timeout)
        return len(chosen)

    def repermit(self, permissions: Permissions, identity: str | None, session: str | None) -> int:
        """Have sessions go by other permissions, as `NatsBridge.repermit` says; returns how many."""
        if not isinstance(permissions, Permissions):
            raise TypeError(f"permissions must be Permissions, not {type(permissions).__name__}")
        chosen = self._chosen(identity, session)
        known = {identity, *(each.identity for each in chosen)} - {None}
        if known and permissions.identity not in {None, *known}:
            raise ValueError("A session keeps its identity; the permissions have another")
        if identity is not None:
            self.arrivals.decide(identity, permissions)
        for each in chosen:
            each.repermit(permissions)
            if not each.closed:
                self._note_expiry(each)
        self.expiries.expire_due()
        return len(chosen)

    def _expire(self, key: str) -> None:
        self._sessions[key].expire()

    def _note_expiry(self, session: Session) -> None:
        self.expiries.put(session.key, session.permissions.expires_at)

    def _chosen(self, identity: str | None, session: str | None) -> list[Session]:
        if (identity is None) == (session is None):
            raise ValueError("Either an identity or a session must be given")
        for name, value in (("identity", identity), ("session", session)):
            # One of another type would be nobody's, and end no session without a word.
            if not isinstance(value, str | None):
                raise TypeError(f"{name} must be a str, not {type(value).__name__}")
        if session is None:
            return list(self._of(identity))
        found = self._sessions.get(key_of(session))
        return [] if found is None else [found]

    def _of(self, identity: str | None) -> Collection[Session]:
        return () if identity is None else self._by_identity.get(identity, ())

    # The connection to NATS

    def _nats_lost(self) -> None:
        self.expiries.expire_due()
        for session in self:
            session.note_holes()
        if self.nats == "connected":
            self._context.nats = "disconnected"
            statuses = _statuses(self.nats)
            for session in self:
                session.write(statuses[session.form])

    def _nats_returned(self) -> None:
        self.expiries.expire_due()
        for session in self:
            session.tell_holes()

    def _nats_connected(self) -> None:
        self.expiries.expire_due()
        self._context.nats = "connected"
        statuses = _statuses(self.nats)
        for session in self:
            session.tell_connected(statuses[session.form])


class SessionsView(Collection[Session]):
    """The sessions of this worker, as the app may see them."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions)

    def __contains__(self, session: object) -> bool:
        return session in tuple(self._sessions)


def _statuses(nats: NatsState) -> dict[Form, bytes]:
    return {form: wire.encode_frame(Status(nats=nats), form) for form in Form}
