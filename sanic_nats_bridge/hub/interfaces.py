"""The interfaces that the hub needs of its neighbours: the connection to NATS and the sessions."""

from collections.abc import Collection
from typing import Any, Protocol

from ..errors import BridgeError
from ..protocol.encoding import WireFormat
from .skipped import SkippedMessages

__all__ = ["Link", "Subscriber"]


class Link(Protocol):
    """The connection to NATS, as the hub uses it."""

    def subscribe(self, pattern: str, sink: object, group: int = 0) -> int | None:
        """Send SUB for the pattern, whose messages go to `sink`; in a queue group if its number isn't 0.

        Returns:
            The subscription's number, or ``None`` while NATS is disconnected.
        """

    def unsubscribe(self, sid: int) -> None:
        """Send UNSUB for the subscription of this number.

        One in a queue group keeps its sink until NATS has taken it out of the group.
        """


class Subscriber(Protocol):
    """A session, as the hub uses it."""

    is_writable: bool
    """True if the client's buffer is below its limit; otherwise its messages are skipped."""

    @property
    def wire_format(self) -> WireFormat:
        """The encoding that the client's transport takes."""

    @property
    def views(self) -> Collection[Any]:
        """The views (`interest.View`) of the subscriptions that the session holds."""

    def skip(self, skipped: SkippedMessages) -> None:
        """Skip messages that arrive while the client is too slow."""

    def write(self, data: bytes) -> None:
        """Write bytes to the client's transport. Must not raise."""

    def messages_lost(self, pattern: str) -> None:
        """Note that messages of the subscription were lost by a fault of the bridge."""

    def subscription_active(self, pattern: str) -> None:
        """Note that NATS has confirmed a subscription that was reported as not yet active."""

    def limit_overlap(self, subject: str) -> None:
        """End the newest subscriptions that match a subject, if they are more than a session may have.

        Messages for these subscriptions that aren't written yet are dropped.
        """

    def subscription_ended(self, pattern: str, error: BridgeError) -> None:
        """Note that the hub has ended the subscription."""
