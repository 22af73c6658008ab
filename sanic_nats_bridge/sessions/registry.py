"""All sessions of this worker."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final

from ..auth.expirations import Expiries
from ..auth.permissions import CONTROL_TOKEN, Permissions
from ..auth.policy import Admission
from ..errors import BridgeError, CloseCode, SessionUnknown
from ..hub.hub import Hub
from ..metrics.stats import Stats
from ..protocol import encoding as wire
from ..protocol.encoding import Form
from ..protocol.messages import Close, Command, NatsState, Reply, Status, farewell
from ..protocol.session_ids import key_of, new_worker_id
from ..settings import Settings
from ..transports.base import CLOSE_SECONDS, Outlet
from .deadlines import Patience
from .pending import Arrival, Arrivals
from .session import Session

__all__ = ["Sessions", "SessionsView"]

_FULL_RETRY_FACTOR: Final = 5
_REVOKED: Final = "Access was revoked"


class Sessions:
    """All sessions of this worker; tells them how the connection to NATS fares."""

    def __init__(self, settings: Settings, hub: Hub) -> None:
        self.settings: Final = settings
        self.hub: Final = hub
        self.worker = new_worker_id()
        self.admission: Final = Admission(settings.max_subscriptions, settings.control_prefix or CONTROL_TOKEN)
        self.arrivals: Final = Arrivals()
        self.patience: Final = Patience()
        self.nats: NatsState = "disconnected"
        self.going_away: str | None = None
        self.on_opened: Callable[[Session], None] | None = None
        self.on_closed: Callable[[Session, int], None] | None = None
        self.by_transport: Final = Counter(websocket=0, events=0)
        self._sessions: dict[str, Session] = {}
        self._by_identity: dict[str, set[Session]] = {}
        self._expiries = Expiries(self.expire)
        hub.batch.on_expired = self.expire
        hub.watch(self)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def open(self, outlet: Outlet, permissions: Permissions, arrival: Arrival) -> Session | None:
        """A new session, which has been welcomed; ``None`` where there can be none, as the client was told."""
        decided = arrival.up_to_date(permissions)
        if decided is None:
            outlet.finish(farewell(CloseCode.FORBIDDEN, _REVOKED, self.settings), CLOSE_SECONDS)
            return None
        refusal = self.refusal(permissions.identity)
        if refusal is not None:
            outlet.finish(refusal, CLOSE_SECONDS)
            return None
        self.arrivals.over(arrival)
        session = Session(self, outlet, decided)
        session.begin()
        self._sessions[session.key] = session
        self.by_transport[session.transport] += 1
        if session.identity is not None:
            self._by_identity.setdefault(session.identity, set()).add(session)
        self._note_expiry(session)
        if self.on_opened is not None:
            self.on_opened(session)
        return session

    def refusal(self, identity: str | None = None) -> Close | None:
        """Why none of those that have arrived can become a session for now, if so."""
        if self.going_away is not None:
            return farewell(CloseCode.GOING_AWAY, self.going_away, self.settings)
        if len(self._sessions) + len(self.arrivals) > self.settings.max_sessions:
            reason = "This server is full; come back later"
        elif len(self._of(identity)) >= self.settings.max_sessions_per_identity:
            reason = "Too many connections of one user; come back later"
        else:
            return None
        return farewell(CloseCode.TRY_AGAIN_LATER, reason, self.settings, _FULL_RETRY_FACTOR)

    def rejection(self, error: BridgeError) -> Close:
        """What one who has arrived hears of an error that keeps it out."""
        if self.going_away is not None:
            return farewell(CloseCode.GOING_AWAY, self.going_away, self.settings)
        return farewell(error.close_code or CloseCode.INTERNAL, error.message, self.settings)

    def find(self, key: str, identity: str | None) -> Session:
        """The session of that key, for a client of that identity.

        Raises:
            SessionUnknown: There is none, or it is another's.
        """
        session = self._sessions.get(key)
        if session is None or session.identity not in (None, identity):
            raise SessionUnknown("No such session")
        return session

    async def carry_out(self, key: str, identity: str | None, command: Command) -> Reply:
        """Carry out a command that a client of that identity has sent by POST.

        Raises:
            SessionUnknown: There is no such session here, or it is another's.
            BridgeError: It was refused, and nothing has changed.
        """
        session = self.find(key, identity)
        session.count_command()
        try:
            return await session.handle(command)
        except BridgeError as error:
            session.count_refusal(error)
            raise

    def left(self, session: Session, code: int) -> None:
        """Forget a session that has ended."""
        del self._sessions[session.key]
        self.by_transport[session.transport] -= 1
        if session.identity is not None:
            others = self._by_identity[session.identity]
            others.discard(session)
            if not others:
                del self._by_identity[session.identity]
        self._expiries.drop(session.key)
        self.hub.tally.ended_bytes += session.sent_bytes
        self.hub.tally.count_close(code)
        if self.on_closed is not None:
            self.on_closed(session, code)

    def count_refused(self, error: BridgeError | None) -> None:
        """Count a command that was refused here, if it was."""
        if error is not None:
            self.hub.tally.refused[error.code] += 1

    def stats(self, loop_lag: float) -> Stats:
        """The stats of this worker as of now; takes about a tenth of a microsecond for each session."""
        tally = self.hub.tally
        return Stats(
            sessions=self.by_transport.copy(),
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
        self.worker = new_worker_id()
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
        self.expire()
        return len(chosen)

    def expire(self) -> None:
        """End the sessions whose permissions have expired."""
        for key in self._expiries.take_due():
            self._sessions[key].expire()
        self.hub.batch.expires_at = self._expiries.next

    def _note_expiry(self, session: Session) -> None:
        self._expiries.put(session.key, session.permissions.expires_at)
        self.hub.batch.expires_at = self._expiries.next

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

    def nats_lost(self) -> None:
        """The connection to NATS has ended."""
        self.expire()
        for session in self:
            session.note_holes()
        if self.nats == "connected":
            self.nats = "disconnected"
            statuses = _statuses(self.nats)
            for session in self:
                session.write(statuses[session.form])

    def nats_returned(self) -> None:
        """A new connection stands, and no message of it has been delivered."""
        self.expire()
        for session in self:
            session.tell_holes()

    def nats_connected(self) -> None:
        """NATS has answered for every live pattern."""
        self.expire()
        self.nats = "connected"
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
