"""The interfaces of what gets the messages of subscriptions."""

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["ControlListener", "MessageListener"]


class MessageListener(Protocol):
    """Callbacks for the messages and the state of subscriptions.

    ``sink`` is the object that was passed to `Connection.add_subscription`.
    """

    @property
    def on_message(self) -> Callable[[Any, bytes, bytes, bytes], bool]:
        """Callback for each message: sink, subject, headers, payload. It returns true if the next one must wait."""

    @property
    def is_full(self) -> bool:
        """True while no message may be processed, because too many of those before aren't written yet."""

    async def room(self) -> None:
        """Wait until messages may be processed."""

    def delivery_failed(self, sink: Any) -> None:
        """Note that a message is lost, because `on_message` has raised."""

    def confirmed(self, sink: Any) -> None:
        """Note that the server has the subscription."""

    def refused(self, sink: Any) -> None:
        """Note that the server has refused or ended the subscription."""


class ControlListener(Protocol):
    """Callbacks for one subscription with reply subjects. They must not raise."""

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, /) -> bool | None:
        """Process a message; return true if the next one must wait until there is room.

        ``None`` lets it wait if there were many in this turn of the event loop.
        """

    def confirmed(self) -> None:
        """Note that the server has the subscription."""

    def refused(self) -> None:
        """Note that the server has refused or ended the subscription."""
