"""Denied patterns that overlap a granted one: the client gets the grant, but not the subjects that they match."""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Self, TypeAlias

from ..protocol import subjects
from ..protocol.pattern_index import PatternIndex, lowest

__all__ = ["NO_EXCLUSIONS", "DeniedIndex", "Exclusions"]

_Source: TypeAlias = tuple[PatternIndex, int]
"""An index, and the set of its patterns that are excluded."""

_MAX_REMEMBERED = 64
_MAX_EXPRESSION = 64
"""The most patterns for which a regular expression is faster than the index."""
_CALLS_PER_PATTERN = 32
"""Subjects that the index checks, for each pattern, before an expression is compiled. That takes about as long."""


class Exclusions(tuple[str, ...]):
    """Patterns whose subjects a client must not see.

    Args:
        patterns: The patterns.
        sources: The indexes in which they are, and which of their patterns they are; by default a new index.
    """

    def __new__(cls, patterns: Iterable[str] = (), sources: Sequence[_Source] | None = None) -> Self:
        """Create the tuple of the patterns."""
        return super().__new__(cls, patterns)

    def __init__(self, patterns: Iterable[str] = (), sources: Sequence[_Source] | None = None) -> None:
        self.sources = ((PatternIndex(self), (1 << len(self)) - 1),) if sources is None else tuple(sources)
        # A tuple computes its hash from all of its items each time.
        self._hash = super().__hash__()
        self._combined: tuple[Exclusions, bool, Exclusions] | None = None

    def __hash__(self) -> int:
        return self._hash

    def combined(self, others: "Exclusions", *, in_order: bool) -> "Exclusions":
        """Return the exclusions of both.

        Args:
            others: The others.
            in_order: Whether the result is sorted, with each pattern once; otherwise the others follow.
        """
        if not self or not others:
            return self or others
        # The patterns of one command often have the same exclusions.
        if self._combined is None or self._combined[:2] != (others, in_order):
            patterns = sorted({*self, *others}) if in_order else (*self, *others)
            self._combined = others, in_order, Exclusions(patterns, (*self.sources, *others.sources))
        return self._combined[2]

    def matcher(self) -> Callable[[str], object]:
        """Return a function that tests whether a subject is excluded; its result is true or false.

        It is part of the message path. A regular expression is faster for few patterns, but takes long to compile. So
        it is made only for a subscription that has received messages.
        """
        sources = self.sources
        expression: Callable[[str], object] | None = None
        # Spread, so that a client with many patterns doesn't cause many compilations by one message.
        calls_left = len(self) * (_CALLS_PER_PATTERN + self._hash % _CALLS_PER_PATTERN)

        def matches_by_index(subject: str) -> object:
            for index, numbers in sources:  # noqa: SIM110 - a generator would take longer
                if index.matching(subject) & numbers:
                    return True
            return False

        def matches(subject: str) -> object:
            nonlocal expression, calls_left
            if expression is not None:
                return expression(subject)
            calls_left -= 1
            if calls_left == 0:
                # A plain tuple, because the cache would keep the indexes.
                expression = subjects.matcher(tuple(self))
            return matches_by_index(subject)

        return matches if len(self) <= _MAX_EXPRESSION else matches_by_index


NO_EXCLUSIONS = Exclusions()


class DeniedIndex:
    """An index of denied patterns, in alphabetical order."""

    __slots__ = ("_index", "_remembered")

    def __init__(self, patterns: AbstractSet[str]) -> None:
        self._index = PatternIndex(sorted(patterns))
        self._remembered: dict[int, Exclusions] = {}

    def first_including(self, pattern: str) -> str | None:
        """Return the first denied pattern that includes another one."""
        found = self._index.including(pattern)
        return self._index.patterns[lowest(found)] if found else None

    def overlapping(self, pattern: str) -> Exclusions:
        """Return the denied patterns that overlap another one."""
        found = self._index.overlapping(pattern)
        if not found:
            return NO_EXCLUSIONS
        exclusions = self._remembered.get(found)
        if exclusions is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            exclusions = self._remembered[found] = Exclusions(self._index.select(found), [(self._index, found)])
        return exclusions
