"""The interfaces that the feed of a stream needs of its neighbours."""

from typing import Literal, Protocol, TypeAlias, TypeVar

from ..nats.interfaces import ControlListener
from .followed import Followed
from .window import Record

__all__ = ["FeedLink", "FeedListener", "FeedState"]

Feed_contra = TypeVar("Feed_contra", contravariant=True)
FeedState: TypeAlias = Literal["reading", "idle", "waiting", "unavailable"]
"""The feed reads its stream, or has no followers, or can't read now, or not before the operator changes something."""


class FeedLink(Protocol):
    """The connection to NATS, as a feed uses it."""

    @property
    def client(self) -> object | None:
        """The connected client, or ``None`` while NATS is disconnected."""

    def subscribe_control(self, subject: str, listener: ControlListener) -> int | None:
        """Send SUB; return the number of the subscription, or ``None`` while NATS is disconnected."""

    def unsubscribe(self, sid: int) -> None:
        """Send UNSUB."""

    def publish(self, subject: str) -> None:
        """Publish an empty message without waiting; do nothing while NATS is disconnected."""


class FeedListener(Protocol[Feed_contra]):
    """Callbacks for the messages and the state of a feed. They must not raise."""

    def deliver(self, feed: Feed_contra, record: Record, followed: tuple[Followed, ...]) -> bool:
        """Deliver a message to the followers of all patterns that match it.

        Args:
            feed: The feed, whose position is still the one before the message.
            record: The message.
            followed: The patterns.

        Returns:
            True if no more messages may be delivered in this turn of the event loop.
        """

    def lost(self, followed: tuple[Followed, ...]) -> None:
        """Note that a message of these patterns is lost by a fault of the bridge."""

    def was_reset(self, feed: Feed_contra) -> None:
        """Note that the stream isn't the same any more. The feed goes on after its present end."""

    def ended(self, feed: Feed_contra, followed: list[Followed]) -> None:
        """Note that the stream doesn't hold these patterns any more."""
