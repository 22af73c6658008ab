"""Subjects and patterns: which are valid, which subject a pattern matches, which pattern covers which.

A subject is what a NATS message carries; a pattern is what one subscribes to, where ``*`` stands for
one token and ``>`` for one or more at the end (https://docs.nats.io/nats-concepts/subjects). The
grammar is narrower than NATS's: nats-py lets control characters, and subjects longer than the
server takes, through.

A first token that begins with ``$`` or ``_`` belongs to NATS itself. `matches` and `covers` open what
a client may see, and keep a wildcard in first place from reaching such a token; `includes` and
`overlaps` are NATS's own rules, for what shuts.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from ..errors import InvalidSubject

__all__ = [
    "GRAMMAR",
    "MAX_SUBJECT_BYTES",
    "MAX_TOKENS",
    "covers",
    "has_wildcard",
    "includes",
    "is_reserved",
    "is_valid",
    "matcher",
    "matches",
    "overlaps",
    "validate",
]

MAX_SUBJECT_BYTES: Final = 255
MAX_TOKENS: Final = 32

_LITERAL: Final = r"[\x21-\x29\x2B-\x2D\x2F-\x3D\x3F-\x7E]+"

GRAMMAR: Final = rf"(?:(?:{_LITERAL}|\*)\.){{0,{MAX_TOKENS - 1}}}(?:{_LITERAL}|\*|>)"
"""A regular expression for valid patterns, but for their length; JSON Schema reads it too."""

_PATTERN: Final = re.compile(GRAMMAR)


def validate(pattern: str) -> str:
    """Return the pattern when it is valid.

    Raises:
        InvalidSubject: It is not 1 to 255 bytes of 0x21-0x7E, has more than 32 tokens or an empty
            one, or has a wildcard that is not a whole token, or ``>`` before the end.
    """
    if not is_valid(pattern):
        raise InvalidSubject(f"Not a valid subject: {_shown(pattern)}", [pattern])
    return pattern


def is_valid(pattern: str) -> bool:
    """Whether `validate` lets it pass."""
    return len(pattern) <= MAX_SUBJECT_BYTES and _PATTERN.fullmatch(pattern) is not None


def is_reserved(subject: str) -> bool:
    """Whether it belongs to NATS itself (``$SYS``, ``$JS``, ``_INBOX``): open only where spelled out."""
    return subject[:1] in ("$", "_")


def has_wildcard(pattern: str) -> bool:
    """Whether it matches more than one subject."""
    return "*" in pattern or ">" in pattern


def matches(pattern: str, subject: str) -> bool:
    """Whether a message on the subject is delivered to a subscriber of the pattern.

    A wildcard in first place does not match a reserved first token.
    """
    if pattern[:1] in ("*", ">") and is_reserved(subject):
        return False
    return matcher((pattern,))(subject)


def covers(allowed: str, requested: str) -> bool:
    """Whether every subject that ``requested`` matches is one that ``allowed`` matches too."""
    if allowed[:1] in ("*", ">") and is_reserved(requested):
        return False
    return includes(allowed, requested)


def includes(wide: str, narrow: str) -> bool:
    """Whether, by NATS's own rules, every subject that ``narrow`` matches is one that ``wide`` matches too."""
    return _includes(wide.split("."), narrow.split("."))


def overlaps(one: str, other: str) -> bool:
    """Whether, by NATS's own rules, there is a subject that both match."""
    ones, others = one.split("."), other.split(".")
    for mine, its in zip(ones, others, strict=False):
        if ">" in (mine, its):
            return True
        if mine != its and "*" not in (mine, its):
            return False
    return len(ones) == len(others)


@lru_cache(maxsize=1024)
def matcher(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """A test whether a subject is matched by one of the patterns, by NATS's own rules.

    Subjects are taken as they come from NATS: a publisher may put a token ``*`` or ``>`` into one.
    """
    expression = re.compile("|".join(map(_expression, patterns)), re.DOTALL)
    return lambda subject: expression.fullmatch(subject) is not None


def _expression(pattern: str) -> str:
    wild = {"*": r"[^.]*", ">": r".+"}
    return r"\.".join(wild.get(token, re.escape(token)) for token in pattern.split("."))


def _includes(wide: list[str], narrow: list[str]) -> bool:
    for index, token in enumerate(wide):
        if token == ">":
            return len(narrow) > index
        if index == len(narrow) or narrow[index] == ">":
            return False
        if token not in ("*", narrow[index]):
            return False
    return len(wide) == len(narrow)


def _shown(pattern: str) -> str:
    short = pattern if len(pattern) <= 64 else pattern[:64] + "…"
    return ascii(short)
