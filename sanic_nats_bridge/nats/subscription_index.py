"""The patterns of the subscriptions on one connection."""

from collections.abc import Iterable

__all__ = ["SubscriptionIndex", "sub_length"]


class SubscriptionIndex:
    """The patterns of subscriptions by number, and the numbers by pattern and by length.

    The queue group, if there is one, follows the pattern after a space, as in a SUB line. No method looks at all of the
    subscriptions, because each ``-ERR`` line of a server calls one.

    Args:
        patterns: The first subscriptions: number and pattern.
    """

    def __init__(self, patterns: Iterable[tuple[int, str]] = ()) -> None:
        self._patterns: dict[int, str] = {}
        self._sids: dict[str, tuple[int, ...]] = {}
        self._by_length: dict[int, set[int]] = {}
        for sid, pattern in patterns:
            self.add(sid, pattern)

    def __contains__(self, sid: int) -> bool:
        return sid in self._patterns

    def __getitem__(self, sid: int) -> str:
        return self._patterns[sid]

    def add(self, sid: int, pattern: str) -> None:
        """Add a subscription with a new number."""
        self._patterns[sid] = pattern
        self._sids[pattern] = (*self._sids.get(pattern, ()), sid)
        self._by_length.setdefault(sub_length(pattern, sid), set()).add(sid)

    def discard(self, sid: int) -> bool:
        """Remove a subscription; return whether it existed."""
        pattern = self._patterns.pop(sid, None)
        if pattern is None:
            return False
        others = tuple(other for other in self._sids.pop(pattern) if other != sid)
        if others:
            self._sids[pattern] = others
        length = sub_length(pattern, sid)
        alike = self._by_length[length]
        alike.discard(sid)
        if not alike:
            del self._by_length[length]
        return True

    def clear(self) -> None:
        """Remove all subscriptions."""
        self._patterns.clear()
        self._sids.clear()
        self._by_length.clear()

    def of(self, pattern: str) -> list[int]:
        """Return the numbers of the subscriptions to exactly this pattern."""
        return list(self._sids.get(pattern, ()))

    def at_least(self, length: int) -> list[int]:
        """Return the numbers of the subscriptions whose `sub_length` is at least this, in their order."""
        # A pattern has 255 bytes at most, so there are few lengths.
        return sorted(sid for each, sids in self._by_length.items() if each >= length for sid in sids)


def sub_length(pattern: str, sid: int) -> int:
    """Return the length of a SUB line as the server measures it for ``max_control_line``."""
    return len(f"{pattern} {sid}")
