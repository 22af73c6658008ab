"""A set of patterns that finds those that match a subject, or overlap a pattern.

The patterns are numbered, and a set of numbers is an integer with one bit for each. There is such a set for each token
in each place, and a search intersects one of them per token: at most 32 steps of about 10 ns for each thousand
patterns. A walk through a trie would visit up to two branches for each token, so patterns with wildcards in all
combinations of places could make one search visit all of them.
"""

from itertools import compress, count
from typing import TypeAlias

__all__ = ["PatternSet"]

_Numbers: TypeAlias = int | set[int]

_FEW = 32
"""The size up to which the patterns of a token are a `set`. An integer takes memory for all patterns."""
_DIGITS = bytes.maketrans(b"01", b"\0\1")


class PatternSet:
    """A set of valid patterns. `add` numbers them; the number of a removed pattern is used again."""

    __slots__ = ("_free", "_places", "_sizes", "_tokens")

    def __init__(self) -> None:
        self._tokens: list[list[str]] = []
        """The tokens of the patterns, by their numbers; empty if the number is free."""
        self._free: list[int] = []
        self._places: list[_Place] = []
        self._sizes: list[int] = [0]
        """The patterns of each number of tokens, without those that end in ``>``."""

    def __len__(self) -> int:
        return len(self._tokens) - len(self._free)

    def add(self, pattern: str) -> int:
        """Add a pattern, and return its number."""
        tokens = pattern.split(".")
        if self._free:
            number = self._free.pop()
            self._tokens[number] = tokens
        else:
            number = len(self._tokens)
            self._tokens.append(tokens)
        while len(self._places) < len(tokens):
            self._places.append(_Place())
            self._sizes.append(0)
        for place, token in zip(self._places, tokens, strict=False):
            place.add(token, number)
        if tokens[-1] != ">":
            self._sizes[len(tokens)] |= 1 << number
        return number

    def discard(self, number: int) -> None:
        """Remove the pattern of this number."""
        tokens, self._tokens[number] = self._tokens[number], []
        self._free.append(number)
        for place, token in zip(self._places, tokens, strict=False):
            place.discard(token, number)
        if tokens[-1] != ">":
            self._sizes[len(tokens)] ^= 1 << number

    def overlapping(self, pattern: str, candidates: int) -> int:
        """Return the number of patterns that, by the rules of NATS, match a common subject with this one.

        Args:
            pattern: A valid pattern.
            candidates: The patterns of interest, one bit for each number.
        """
        tokens = pattern.split(".")
        found = 0
        for place, token in zip(self._places, tokens, strict=False):
            found |= candidates & place.rest
            if token == ">":
                return (found | candidates & place.single).bit_count()
            candidates = candidates & place.single if token == "*" else place.matching(token, candidates)
            if not candidates:
                break
        if len(tokens) < len(self._sizes):
            found |= candidates & self._sizes[len(tokens)]
        return found.bit_count()

    def matching(self, subject: str, candidates: int) -> list[int]:
        """Return the numbers of the patterns that match a subject by the rules of NATS.

        Args:
            subject: The subject of a message. Its tokens ``*`` and ``>`` are literal.
            candidates: The patterns of interest, one bit for each number.
        """
        tokens = subject.split(".")
        found = 0
        for place, token in zip(self._places, tokens, strict=False):
            found |= candidates & place.rest
            candidates = place.matching(token, candidates)
            if not candidates:
                break
        if len(tokens) < len(self._sizes):
            found |= candidates & self._sizes[len(tokens)]
            if not tokens[-1]:
                # The last token may be empty: `*` matches it, but `>` doesn't.
                found &= ~self._places[len(tokens) - 1].rest
        return _numbers(found)


class _Place:
    """The patterns by their tokens in one place."""

    __slots__ = ("_literal", "_star", "rest", "single")

    def __init__(self) -> None:
        self.rest = 0
        """The patterns with ``>`` here."""
        self.single = 0
        """The patterns with another token here."""
        self._star = 0
        self._literal: dict[str, _Numbers] = {}

    def add(self, token: str, number: int) -> None:
        """Add a pattern with this token."""
        bit = 1 << number
        if token == ">":
            self.rest |= bit
            return
        self.single |= bit
        if token == "*":
            self._star |= bit
            return
        members = self._literal.setdefault(token, set())
        if isinstance(members, int):
            self._literal[token] = members | bit
            return
        members.add(number)
        if len(members) > _FEW:
            self._literal[token] = sum(1 << each for each in members)

    def discard(self, token: str, number: int) -> None:
        """Remove a pattern with this token."""
        bit = 1 << number
        if token == ">":
            self.rest ^= bit
            return
        self.single ^= bit
        if token == "*":
            self._star ^= bit
            return
        members = self._literal[token]
        if isinstance(members, int):
            members = self._literal[token] = members ^ bit
        else:
            members.discard(number)
        if not members:
            del self._literal[token]

    def matching(self, token: str, candidates: int) -> int:
        """Return the candidates that have ``*`` or this very token here, which is literal."""
        found = candidates & self._star
        members = self._literal.get(token)
        if members is None:
            return found
        if isinstance(members, int):
            return found | candidates & members
        for number in members:
            found |= candidates & 1 << number
        return found


def _numbers(bits: int) -> list[int]:
    if bits.bit_count() > _FEW:
        return list(compress(count(), bin(bits)[:1:-1].encode().translate(_DIGITS)))
    numbers = []
    while bits:
        lowest = bits & -bits
        numbers.append(lowest.bit_length() - 1)
        bits ^= lowest
    return numbers
