"""The numbers of different patterns that the clients hold, each in all of its sessions."""

from collections.abc import Iterable

from ..errors import SubscriptionLimitExceeded

__all__ = ["PatternShares"]


class PatternShares:
    """The patterns of each client: an identity, or else an address.

    The time of a change doesn't depend on the number of patterns that are held.

    Args:
        max_patterns: The largest number of different patterns of one client.
    """

    def __init__(self, max_patterns: int) -> None:
        self._max = max_patterns
        self._held: dict[str, dict[str, int]] = {}
        """By client and pattern, the number of times that sessions of the client hold it."""

    def __len__(self) -> int:
        return len(self._held)

    def count(self, client: str) -> int:
        """Return the number of different patterns that a client holds."""
        return len(self._held.get(client, ()))

    def add(self, client: str, patterns: Iterable[str], names: Iterable[str] = ()) -> None:
        """Add patterns of one session.

        Args:
            client: The client.
            patterns: The real patterns.
            names: The client's names for them, for the error.

        Raises:
            SubscriptionLimitExceeded: The client would hold too many. Nothing was added.
        """
        patterns = list(patterns)
        if not patterns:
            return
        held = self._held.get(client, {})
        if len(held) + len({pattern for pattern in patterns if pattern not in held}) > self._max:
            message = f"At most {self._max} different subjects for all sessions of a client (max_patterns_per_client)"
            raise SubscriptionLimitExceeded(message, list(names))
        self._held[client] = held
        for pattern in patterns:
            held[pattern] = held.get(pattern, 0) + 1

    def remove(self, client: str, patterns: Iterable[str]) -> None:
        """Remove patterns that were added before, once for each time."""
        held = self._held.get(client)
        if held is None:
            return
        for pattern in patterns:
            if held[pattern] > 1:
                held[pattern] -= 1
            else:
                del held[pattern]
        if not held:
            del self._held[client]
