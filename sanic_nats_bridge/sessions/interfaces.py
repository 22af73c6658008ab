"""The interfaces of a session that its history and its replays need."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from ..auth.permissions import Grant
from ..errors import BridgeError
from ..hub.interfaces import Subscriber
from ..protocol.encoding import WireFormat
from ..protocol.messages import Frame

__all__ = ["HistoryOwner", "ReplayTarget"]


class ReplayTarget(Protocol):
    """A session, as a resumption uses it."""

    closed: bool
    is_writable: bool

    @property
    def wire_format(self) -> WireFormat:
        """The encoding that the client's transport takes."""
        ...

    @property
    def pending(self) -> int:
        """The number of bytes that wait for the client."""
        ...

    def write(self, data: bytes) -> None:
        """Write bytes to the client's transport."""

    def send(self, frame: Frame) -> None:
        """Write a frame after all messages received so far."""

    def flush(self) -> None:
        """Write all live messages received so far. It may end the session, or make the client a slow one."""

    async def wait_until_writable(self) -> None:
        """Wait until the client has caught up or the session has ended."""

    def messages_lost(self, pattern: str) -> None:
        """Send a gap for messages that an internal error may have lost."""

    def expire_due(self) -> None:
        """End the session if its permissions have expired."""

    def charge_replay(self, messages: int) -> None:
        """Count messages of a replay as commands, because a client causes them."""

    def end_overlap(self, patterns: list[str]) -> None:
        """End subscriptions to patterns of which too many match one message."""


class HistoryOwner(ReplayTarget, Subscriber, Protocol):
    """A session, as its history uses it."""

    @property
    def client(self) -> str:
        """The client of the session: its identity, or else its address."""
        ...

    @property
    def transport(self) -> str:
        """The client's transport."""
        ...

    @property
    def command_lock(self) -> asyncio.Lock:
        """The lock that is held while a command is executed."""
        ...

    async def follow_live(self, patterns: Sequence[str], others: int) -> None:
        """Subscribe to patterns without history.

        Args:
            patterns: The patterns, as the client names them.
            others: The number of patterns with history that the session holds.

        Raises:
            BridgeError: A pattern was rejected. No subscription has changed.
        """

    def patterns_ended(self, patterns: list[str], error: BridgeError) -> None:
        """Report subscriptions to the client that were ended."""

    def nats_changed(self) -> None:
        """Report the status of NATS to the client if it isn't known to it."""

    def allows_history(self, grant: Grant) -> bool:
        """Return whether the client may read the past of a pattern."""
        ...
