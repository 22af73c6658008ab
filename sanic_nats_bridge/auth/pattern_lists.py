"""The lists of patterns in `Permissions`, validated and indexed once for all clients that get the same list.

Apps build `Permissions` for each connection and each POST, often from the same lists.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Literal, NamedTuple, TypeAlias, get_args

from ..protocol import subjects
from ..protocol.pattern_index import PatternIndex, lowest
from .exclusions import DeniedIndex

__all__ = ["CONTROL_TOKEN", "LIST_NAMES", "AllowedIndex", "ClientList", "ListName", "PatternList", "PatternListCache"]

CONTROL_TOKEN = "_NATSBRIDGE"
"""The first token of the subjects on which workers communicate. No client may use them."""

ListName: TypeAlias = Literal["subscribe", "deny", "history", "publish", "request", "follow"]
"""The argument of `Permissions`."""

LIST_NAMES: tuple[ListName, ...] = get_args(ListName)

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_OVERHEAD = 16
"""The memory of a list and its index beside its patterns, as a number of patterns."""


class PatternList:
    """The patterns of one list, with placeholders as the app has written them."""

    def __init__(self, name: ListName, patterns: tuple[str, ...]) -> None:
        self._name = name
        self.patterns = patterns
        self._templates = [
            (number, text) for number, text in enumerate(patterns) if "{" in text and _PLACEHOLDER.search(text)
        ]
        templates = {number for number, _ in self._templates}
        numbers = range(len(patterns))
        self.numbers = [number for number in numbers if number not in templates] if templates else numbers
        """The numbers of the patterns without placeholders."""

    @property
    def _constant(self) -> Sequence[str]:
        return [self.patterns[number] for number in self.numbers] if self._templates else self.patterns

    @cached_property
    def reserved(self) -> list[str]:
        """The patterns without placeholders whose first token is reserved for NATS."""
        return list(filter(subjects.is_reserved, self._constant))

    @cached_property
    def allowed(self) -> PatternIndex:
        """The index of the patterns without placeholders, in their order."""
        return PatternIndex(self._constant)

    @cached_property
    def denied(self) -> DeniedIndex:
        """The index of the patterns without placeholders, in alphabetical order."""
        return DeniedIndex({*self._constant})

    def validate(self, variables: Mapping[str, str]) -> None:
        """Validate all patterns, in their order.

        Raises:
            ValueError: A pattern is invalid, or would be with these variables.
        """
        for pattern in self.patterns:
            _filled(self._name, pattern, variables)

    def fill(self, variables: Mapping[str, str]) -> list[tuple[int, str]]:
        """Return the patterns with placeholders, replaced by the variables of a client, and their numbers.

        Raises:
            ValueError: A variable is missing, or a pattern is invalid with its values.
        """
        return [(number, _filled(self._name, pattern, variables)) for number, pattern in self._templates]


class PatternListCache:
    """The lists that were valid when they were used last.

    Args:
        max_patterns: The number of patterns in all lists. Each takes about 200 bytes, with its index.
    """

    def __init__(self, max_patterns: int = 100_000) -> None:
        self._max_patterns = max_patterns
        self._lists: OrderedDict[tuple[ListName, tuple[str, ...]], PatternList] = OrderedDict()
        self._size = 0
        # Apps may build permissions in threads.
        self._lock = Lock()

    def get(self, name: ListName, patterns: tuple[str, ...], variables: Mapping[str, str]) -> PatternList:
        """Return a list, which is validated with these variables if it isn't known yet.

        Raises:
            ValueError: A pattern is invalid, or would be with these variables.
        """
        key = name, patterns
        with self._lock:
            found = self._lists.get(key)
            if found is not None:
                self._lists.move_to_end(key)
                return found
        found = PatternList(name, patterns)
        found.validate(variables)
        size = len(patterns) + _OVERHEAD
        with self._lock:
            if size <= self._max_patterns and self._lists.setdefault(key, found) is found:
                self._size += size
                while self._size > self._max_patterns:
                    (_, oldest), _ = self._lists.popitem(last=False)
                    self._size -= len(oldest) + _OVERHEAD
        return found


_lists = PatternListCache()


class ClientList(NamedTuple):
    """The patterns of one list of a client."""

    shared: PatternList
    filled: Sequence[tuple[int, str]]
    """The patterns whose placeholders are replaced, with their numbers."""

    @classmethod
    def of(cls, name: ListName, patterns: tuple[str, ...], variables: Mapping[str, str]) -> "ClientList":
        """Return a list.

        Raises:
            ValueError: A pattern is invalid, or a variable is missing.
        """
        shared = _lists.get(name, patterns, variables)
        return cls(shared, shared.fill(variables))

    def real_patterns(self) -> list[str]:
        """Return all patterns, in their order."""
        filled = dict(self.filled)
        return [filled.get(number, pattern) for number, pattern in enumerate(self.shared.patterns)]

    def reserved_patterns(self) -> list[str]:
        """Return the patterns whose first token is reserved for NATS."""
        return [*self.shared.reserved, *(pattern for _, pattern in self.filled if subjects.is_reserved(pattern))]

    def indexed(self) -> "AllowedIndex":
        """Return the index of the patterns."""
        indexes: list[tuple[PatternIndex, Sequence[int]]] = []
        if self.shared.numbers:
            indexes.append((self.shared.allowed, self.shared.numbers))
        if self.filled:
            numbers, own = zip(*self.filled, strict=True)
            indexes.append((PatternIndex(own), numbers))
        return AllowedIndex(indexes)


class AllowedIndex:
    """The patterns of one list of a client, in two indexes: that for all clients, and that of the client's own.

    Args:
        indexes: The indexes, with the numbers of their patterns in the list.
    """

    __slots__ = ("_indexes",)

    def __init__(self, indexes: Sequence[tuple[PatternIndex, Sequence[int]]]) -> None:
        self._indexes = indexes

    def first_covering(self, real: str) -> str | None:
        """Return the first pattern that covers a real pattern."""
        covering = []
        for index, numbers in self._indexes:
            found = index.covering(real)
            if found:
                first = lowest(found)
                covering.append((numbers[first], index.patterns[first]))
        return min(covering)[1] if covering else None


NO_PATTERNS = ClientList(PatternList("subscribe", ()), ())


def _filled(name: ListName, pattern: str, variables: Mapping[str, str]) -> str:
    """Return the valid pattern with its placeholders replaced."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in variables:
            raise ValueError(f"{name} has {pattern!a}, but variables has no '{found[1]}'")
        return variables[found[1]]

    filled = _PLACEHOLDER.sub(value, pattern) if "{" in pattern else pattern
    if not subjects.is_valid(filled):
        raise ValueError(f"{name} must be a list of valid patterns, got {filled!a}")
    if name != "deny" and subjects.is_reserved(filled):
        if not subjects.is_reserved(pattern):
            raise ValueError(
                f"{name} has {pattern!a}: a variable must not make its first token reserved, got {filled!a}"
            )
        if filled.partition(".")[0] == CONTROL_TOKEN:
            raise ValueError(f"{name} must not allow the bridge's own subjects, got {filled!a}")
    return filled
