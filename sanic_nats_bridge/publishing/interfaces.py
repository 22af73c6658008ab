"""The interfaces of the connection to NATS, as publishing uses it."""

from typing import Protocol

from ..nats.interfaces import ControlListener

__all__ = ["Outlet", "PublishLink"]


class Outlet(Protocol):
    """One live connection to NATS, implemented by Connection."""

    @property
    def publish_limit(self) -> int:
        """The largest number of bytes, headers included, that the server accepts in a message."""

    @property
    def refused_subject_length(self) -> float:
        """The smallest length of a subject and its subject for answers that the server is known to refuse."""

    @property
    def unsent_bytes(self) -> int:
        """The number of bytes that were written, but not yet accepted by the network."""

    def send_message(self, subject: bytes, payload: bytes, headers: bytes = b"", reply: bytes = b"") -> None:
        """Write a message at once."""

    def send_question(
        self, subject: bytes, payload: bytes, headers: bytes, reply: str, listener: ControlListener
    ) -> int:
        """Write a message, whose first answer goes to the listener; return the number of the subscription to it."""

    def remove_subscription(self, sid: int) -> None:
        """Send UNSUB, unless the connection has ended."""

    def forget(self, sid: int) -> None:
        """Remove a subscription that NATS has ended."""


class PublishLink(Protocol):
    """The supervised connection to NATS, implemented by ConnectionSupervisor."""

    @property
    def connection(self) -> Outlet | None:
        """The live connection, or ``None`` while NATS is disconnected."""
