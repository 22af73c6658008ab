"""The connection to NATS as the control channel uses it, and one subscription on it."""

from collections.abc import Callable
from typing import Protocol

from ..nats.connection import NatsClient
from ..nats.interfaces import ControlListener

__all__ = ["ControlConnection", "ControlSubscription"]


class ControlConnection(Protocol):
    """The connection to NATS of one worker, implemented by ConnectionSupervisor."""

    @property
    def client(self) -> NatsClient | None:
        """The connected nats-py client, or ``None``."""

    def subscribe_control(self, subject: str, listener: ControlListener) -> int | None:
        """Send SUB; return the subscription's number, or ``None`` while NATS is disconnected."""

    def unsubscribe(self, sid: int) -> None:
        """Send UNSUB."""


class ControlSubscription:
    """A subscription to one of the control subjects, on one connection."""

    def __init__(
        self, subject: str, handler: Callable[[bytes, bytes, bytes, bytes], None], on_answered: Callable[[], None]
    ) -> None:
        self.subject = subject
        self.on_message = handler
        self.sid: int | None = None
        self.is_pending = True
        self.is_refused = False
        self._on_answered = on_answered

    def confirmed(self) -> None:
        """Note that the server has the subscription."""
        self.is_pending = False
        self._on_answered()

    def refused(self) -> None:
        """Note that the server has refused or ended the subscription."""
        self.is_pending = False
        self.is_refused = True
        self._on_answered()
