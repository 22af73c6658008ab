"""The interface of a session that its history needs."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from ..auth.permissions import Grant
from ..errors import BridgeError
from ..hub.interfaces import Subscriber
from .resumption import ReplayTarget

__all__ = ["HistoryOwner"]


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
