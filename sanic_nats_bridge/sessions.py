"""All sessions of this worker."""

from collections.abc import Callable, Iterator
from typing import Final

from . import wire
from .errors import BridgeError, CloseCode, SessionUnknown, WorkerFull
from .hub import Hub
from .outlet import Outlet
from .permissions import Admission, Permissions
from .protocol import Close, NatsState, Status
from .session import Session, jittered
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
        self.on_opened: Callable[[Session], None] | None = None
        self.on_closed: Callable[[Session, int], None] | None = None
        self._sessions: dict[str, Session] = {}
        hub.watch(self)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def require_room(self) -> None:
        """Let one more session in.

        Raises:
            WorkerFull: ``max_sessions`` are open already.
        """
        if len(self._sessions) >= self.settings.max_sessions:
            raise WorkerFull("This server is full; come back later")

    def open(self, outlet: Outlet) -> Session:
        """A new session, which has been welcomed.

        Raises:
            WorkerFull: ``max_sessions`` are open already.
        """
        self.require_room()
        session = Session(self, outlet)
        self._sessions[session.id] = session
        session.begin()
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

    def close_all(self, code: CloseCode, reason: str) -> None:
        """End every session."""
        for session in self:
            session.close(code, reason)

    def refusal(self, error: BridgeError) -> Close:
        """The only frame of a connection that does not become a session; its ``retry`` is long."""
        code = error.close_code or CloseCode.INTERNAL
        retry = jittered(self.settings.retry * _FULL_RETRY_FACTOR)
        return Close(code=code, reason=error.message, reconnect=code.reconnect, retry=retry)

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
