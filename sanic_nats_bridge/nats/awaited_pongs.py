"""The PONGs that a connection awaits, in the order of the PINGs."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["AwaitedPongs", "Confirmation", "HealthPing", "Removal"]


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The PONG that confirms a SUB."""

    sid: int


@dataclass(frozen=True, slots=True)
class Removal:
    """The PONG after which a subscription that was removed gets no more messages."""

    sid: int


class HealthPing:
    """The PONG for a PING that only checks the server."""


class AwaitedPongs(deque[Any]):
    """nats-py's list of awaited PONGs, to which the bridge adds entries of its own. nats-py's entries are futures.

    No method looks at all of them.

    Args:
        entries: nats-py's own entries so far.
    """

    def __init__(self, entries: Iterable[Any] = ()) -> None:
        super().__init__(entries)
        self._unconfirmed: deque[int] = deque()

    @property
    def unconfirmed(self) -> int | None:
        """The number of the oldest subscription whose confirmation is awaited."""
        return self._unconfirmed[0] if self._unconfirmed else None

    def await_confirmation(self, sid: int) -> None:
        """Add an entry for the PONG that confirms a SUB."""
        self.append(Confirmation(sid))
        self._unconfirmed.append(sid)

    def take(self) -> Any:
        """Remove and return the oldest entry; ``None`` if there is none."""
        entry = self.popleft() if self else None
        if isinstance(entry, Confirmation):
            self._unconfirmed.popleft()
        return entry
