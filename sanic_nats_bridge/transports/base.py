"""The interface between a session and the transport of its client."""

from typing import Protocol

from ..protocol.encoding import WireFormat
from ..protocol.messages import Close, Frame

__all__ = ["CLOSED_WITHOUT_CODE", "CLOSE_SECONDS", "Transport", "TransportListener"]

CLOSED_WITHOUT_CODE = 1006  # RFC 6455, section 7.1.5
CLOSE_SECONDS = 5.0
"""Seconds that a client has to receive its pending data after its session has ended."""


class TransportListener(Protocol):
    """Callbacks for changes in a transport's state, implemented by Session."""

    def pause_writing(self) -> None:
        """Note that the pending bytes exceed the high-water mark."""

    def resume_writing(self) -> None:
        """Note that the pending bytes are below the low-water mark again."""

    def control_frame_received(self) -> None:
        """Note that the client has sent a frame that isn't a command but costs as much, such as a ping."""

    def connection_lost(self, code: int) -> None:
        """Note that the connection has ended, or is being closed by the server, with this WebSocket close code."""


class Transport(Protocol):
    """The connection to one client, as a session uses it."""

    written: int
    """The number of bytes written so far, without those that were dropped before they left."""

    @property
    def reports_pending(self) -> bool:
        """True if `pending` counts all waiting bytes. If not, only the kernel knows that a client receives nothing."""

    @property
    def wire_format(self) -> WireFormat:
        """The encoding that the transport takes."""

    @property
    def pending(self) -> int:
        """The number of bytes that wait for the client."""

    def set_listener(self, listener: TransportListener | None) -> None:
        """Set or remove the listener."""

    def write(self, data: bytes) -> None:
        """Write bytes in the transport's wire format. Never waits and never raises."""

    def send(self, frame: Frame, retry: int | None = None) -> None:
        """Encode and write one frame."""

    def keepalive(self) -> None:
        """Keep the server from closing the connection as idle."""

    def close(self, frame: Close, timeout: float) -> None:
        """Write the last frame, then close the connection. Abort it after ``timeout`` seconds."""

    def abort(self) -> None:
        """Close the connection at once. Pending bytes are lost."""
