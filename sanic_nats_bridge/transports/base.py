"""How bytes leave to one client, as a session sees it."""

from typing import Final, Protocol

from ..protocol.encoding import WireFormat
from ..protocol.messages import Close, Frame

__all__ = ["CLOSED_WITHOUT_CODE", "CLOSE_SECONDS", "Transport", "TransportListener"]

CLOSED_WITHOUT_CODE: Final = 1006  # RFC 6455, section 7.1.5
CLOSE_SECONDS: Final = 5.0
"""How long a client has to take what waits for it, once its session has ended."""


class TransportListener(Protocol):
    """Who is told how the way to the client fares: its session."""

    def pause_writing(self) -> None:
        """More waits for the client than may."""

    def resume_writing(self) -> None:
        """The client has caught up."""

    def control_frame_received(self) -> None:
        """The client has sent a frame that is no command, but costs the server no less, such as a ping."""

    def connection_lost(self, code: int) -> None:
        """The server gives the connection up, with this WebSocket close code."""


class Transport(Protocol):
    """What a session needs of the way to its client."""

    written: int
    """How many bytes were handed over, so far, but for those that were dropped before they left."""

    @property
    def reports_pending(self) -> bool:
        """Whether `pending` is all that waits; otherwise the kernel alone tells when a client takes nothing."""

    @property
    def wire_format(self) -> WireFormat:
        """Which shape of bytes it takes."""

    @property
    def pending(self) -> int:
        """How many bytes wait for the client."""

    def set_listener(self, listener: TransportListener | None) -> None:
        """Report changes of the transport's state to this watcher, or to none."""

    def write(self, data: bytes) -> None:
        """Write bytes that are already in the outlet's form; never waits, never raises."""

    def send(self, frame: Frame, retry: int | None = None) -> None:
        """Write one frame."""

    def keepalive(self) -> None:
        """Keep the server from taking the connection for idle."""

    def close(self, close: Close, seconds: float) -> None:
        """Write the last frame, then end the connection as its transport does, after so many seconds by force."""

    def abort(self) -> None:
        """End the connection at once; what waits for the client is lost."""
