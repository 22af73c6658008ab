"""All sessions of this worker."""

from collections.abc import Callable, Iterator
from typing import Final

from . import wire
from .errors import CloseCode, SessionUnknown
from .hub import Hub
from .outlet import CLOSE_SECONDS, Outlet
from .permissions import Admission, Permissions
from .protocol import Close, NatsState, Status
from .session import Session, farewell
from .settings import Settings
from .wire import Form

__all__ = ["Sessions"]

_FULL_RETRY_FACTOR: Final = 5


class Sessions:
    """All sessions of this worker, by their ids; tells them how the connection to NATS fares."""

    def __init__(self, settings: Settings, hub: Hub, permissions: Permissions) -> None:
        self.settings: Final = settings
        self.hub: Final = hub
        self.admission: Final = Admission(permissions, settings.max_subscriptions)
        self.nats: NatsState = "disconnected"
        self.going_away: str | None = None
        self.on_opened: Callable[[Session], None] | None = None
        self.on_closed: Callable[[Session, int], None] | None = None
        self._sessions: dict[str, Session] = {}
        hub.watch(self)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def open(self, outlet: Outlet) -> Session | None:
        """A new session, which has been welcomed; ``None`` where there is no room, as the client was told."""
        refusal = self._refusal()
        if refusal is not None:
            outlet.finish(refusal, CLOSE_SECONDS)
            return None
        session = Session(self, outlet)
        session.begin()
        self._sessions[session.id] = session
        if self.on_opened is not None:
            self.on_opened(session)
        return session

    def find(self, session_id: str) -> Session:
        """The session of that id.

        Raises:
            SessionUnknown: There is none.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionUnknown("No such session")
        return session

    def left(self, session: Session, code: int) -> None:
        """Forget a session that has ended."""
        del self._sessions[session.id]
        if self.on_closed is not None:
            self.on_closed(session, code)

    def close_all(self, reason: str) -> None:
        """End every session, and let none in: the server is going away."""
        self.going_away = reason
        for session in self:
            session.close(CloseCode.GOING_AWAY, reason)

    def _refusal(self) -> Close | None:
        if self.going_away is not None:
            return farewell(CloseCode.GOING_AWAY, self.going_away, self.settings.retry)
        if len(self._sessions) >= self.settings.max_sessions:
            reason = "This server is full; come back later"
            return farewell(CloseCode.TRY_AGAIN_LATER, reason, self.settings.retry * _FULL_RETRY_FACTOR)
        return None

    def nats_lost(self) -> None:
        """The connection to NATS has ended."""
        for session in self:
            session.note_holes()
        if self.nats == "connected":
            self.nats = "disconnected"
            statuses = _statuses(self.nats)
            for session in self:
                session.write(statuses[session.form])

    def nats_returned(self) -> None:
        """A new connection stands, and no message of it has been delivered."""
        for session in self:
            session.tell_holes()

    def nats_connected(self) -> None:
        """NATS has answered for every live pattern."""
        self.nats = "connected"
        statuses = _statuses(self.nats)
        for session in self:
            session.tell_connected(statuses[session.form])


def _statuses(nats: NatsState) -> dict[Form, bytes]:
    return {form: wire.encode_frame(Status(nats=nats), form) for form in Form}
