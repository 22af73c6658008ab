"""The patterns of one stream that sessions follow, and which of them match a subject."""

from collections.abc import Iterator
from typing import TypeAlias

from ..protocol.pattern_set import PatternSet
from ..protocol.subjects import MAX_SUBJECT_BYTES
from .followed import Followed

__all__ = ["Route", "Routes"]

Route: TypeAlias = tuple[str, tuple[Followed, ...]]
"""A subject as a string, and the patterns that match it."""

_MAX_KNOWN = 4096
_ALL = -1
"""Every pattern, as the bits of an integer."""


class Routes:
    """The patterns that are followed, and the subjects that are known to match them."""

    def __init__(self) -> None:
        self.known: dict[bytes, Route] = {}
        """The routes of the last subjects, as NATS sends them."""
        self._set = PatternSet()
        self._numbers: dict[str, int] = {}
        self._followed: dict[int, Followed] = {}

    def __len__(self) -> int:
        return len(self._followed)

    def __iter__(self) -> Iterator[Followed]:
        return iter(tuple(self._followed.values()))

    def get(self, pattern: str) -> Followed | None:
        """Return a pattern if it is followed."""
        number = self._numbers.get(pattern)
        return None if number is None else self._followed[number]

    def add(self, followed: Followed) -> None:
        """Add a pattern that isn't followed yet."""
        number = self._set.add(followed.pattern)
        self._numbers[followed.pattern] = number
        self._followed[number] = followed
        self.known.clear()

    def discard(self, followed: Followed) -> None:
        """Remove a pattern if it is followed."""
        if self.get(followed.pattern) is followed:
            number = self._numbers.pop(followed.pattern)
            del self._followed[number]
            self._set.discard(number)
            self.known.clear()

    def find(self, subject: bytes) -> Route:
        """Return the route of a subject that isn't in `known`, and remember it. No client gets one that isn't UTF-8."""
        try:
            text = subject.decode()
        except UnicodeDecodeError:
            return "", ()
        route = text, tuple([self._followed[number] for number in self._set.matching(text, _ALL)])
        if len(subject) <= MAX_SUBJECT_BYTES:
            if len(self.known) >= _MAX_KNOWN:
                self.known.clear()
            self.known[subject] = route
        return route
