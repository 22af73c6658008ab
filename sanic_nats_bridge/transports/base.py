"""How bytes leave to one client, as a session sees it."""

from typing import Final, Protocol

from ..protocol.encoding import Form
from ..protocol.messages import Close, Frame

__all__ = ["CLOSED_WITHOUT_CODE", "CLOSE_SECONDS", "Outlet", "OutletWatcher"]

CLOSED_WITHOUT_CODE: Final = 1006  # RFC 6455, section 7.1.5
CLOSE_SECONDS: Final = 5.0
"""How long a client has to take what waits for it, once its session has ended."""


class OutletWatcher(Protocol):
    """Who is told how the way to the client fares: its session."""

    def filled(self) -> None:
        """More waits for the client than may."""

    def drained(self) -> None:
        """The client has caught up."""

    def pinged(self) -> None:
        """The client has sent a frame that is no command, but costs the server no less, such as a ping."""

    def gone(self, code: int) -> None:
        """The server gives the connection up, with this WebSocket close code."""


class Outlet(Protocol):
    """What a session needs of the way to its client."""

    written: int
    """How many bytes were handed over, so far, but for those that were dropped before they left."""

    @property
    def tells_pending(self) -> bool:
        """Whether `pending` is all that waits; otherwise the kernel alone tells when a client takes nothing."""

    @property
    def form(self) -> Form:
        """Which shape of bytes it takes."""

    @property
    def pending(self) -> int:
        """How many bytes wait for the client."""

    def set_watcher(self, watcher: OutletWatcher | None) -> None:
        """Report changes of the transport's state to this watcher, or to none."""

    def write(self, data: bytes) -> None:
        """Write bytes that are already in the outlet's form; never waits, never raises."""

    def send(self, frame: Frame, retry: int | None = None) -> None:
        """Write one frame."""

    def keep(self) -> None:
        """Keep the server from taking the connection for idle."""

    def finish(self, close: Close, seconds: float) -> None:
        """Write the last frame, then end the connection as its transport does, after so many seconds by force."""

    def abort(self) -> None:
        """End the connection at once; what waits for the client is lost."""
