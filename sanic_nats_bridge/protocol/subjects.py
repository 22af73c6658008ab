"""Subjects and patterns: their grammar, and the relations between them.

A NATS message has a subject. A client subscribes to a pattern, in which ``*`` matches one token, and ``>`` at the
end matches one or more (https://docs.nats.io/nats-concepts/subjects). The grammar is narrower than that of NATS,
because nats-py accepts control characters, and subjects longer than the server takes.

A first token that begins with ``$`` or ``_`` is reserved for NATS. `matches` and `covers` decide what is allowed:
for them a wildcard in first place doesn't match a reserved token. `includes` and `overlaps` decide what is denied:
they follow the rules of NATS.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from ..errors import InvalidSubject

__all__ = [
    "GRAMMAR",
    "LITERAL_GRAMMAR",
    "MAX_SUBJECT_BYTES",
    "MAX_TOKENS",
    "covers",
    "encoded_matcher",
    "has_wildcard",
    "includes",
    "is_reserved",
    "is_valid",
    "matcher",
    "matches",
    "matches_encoded",
    "overlaps",
    "validate",
    "validate_literal",
]

MAX_SUBJECT_BYTES = 255
MAX_TOKENS = 32

_LITERAL = r"[\x21-\x29\x2B-\x2D\x2F-\x3D\x3F-\x7E]+"

GRAMMAR = rf"(?:(?:{_LITERAL}|\*)\.){{0,{MAX_TOKENS - 1}}}(?:{_LITERAL}|\*|>)"
"""A regular expression for valid patterns of any length, also valid in JSON Schema."""

LITERAL_GRAMMAR = rf"(?:{_LITERAL}\.){{0,{MAX_TOKENS - 1}}}{_LITERAL}"
"""A regular expression for valid subjects without wildcards, also valid in JSON Schema."""

_PATTERN = re.compile(GRAMMAR)


def validate(pattern: str) -> str:
    """Return the pattern if it is valid.

    Raises:
        InvalidSubject: The pattern isn't 1 to 255 bytes of 0x21-0x7E, has an empty token or more than 32 tokens,
            or has a wildcard that isn't a whole token, or ``>`` before the end.
    """
    if not is_valid(pattern):
        raise InvalidSubject(f"Not a valid subject: {_shown(pattern)}", [pattern])
    return pattern


def validate_literal(subject: str) -> str:
    """Return the subject if it is valid and has no wildcard.

    Raises:
        InvalidSubject: As in `validate`, or it has a wildcard.
    """
    if has_wildcard(validate(subject)):
        raise InvalidSubject(f"Not a subject without wildcards: {_shown(subject)}", [subject])
    return subject


def is_valid(pattern: str) -> bool:
    """Return whether `validate` accepts the pattern."""
    return len(pattern) <= MAX_SUBJECT_BYTES and _PATTERN.fullmatch(pattern) is not None


def is_reserved(subject: str) -> bool:
    """Return whether the first token is reserved for NATS (``$SYS``, ``$JS``, ``_INBOX``)."""
    return subject[:1] in ("$", "_")


def has_wildcard(pattern: str) -> bool:
    """Return whether the pattern has a wildcard."""
    return "*" in pattern or ">" in pattern


def matches(pattern: str, subject: str) -> bool:
    """Return whether the pattern matches the subject. A wildcard in first place doesn't match a reserved token."""
    if pattern[:1] in ("*", ">") and is_reserved(subject):
        return False
    return matcher((pattern,))(subject) is not None


def covers(allowed: str, requested: str) -> bool:
    """Return whether ``allowed`` matches every subject that ``requested`` matches."""
    if allowed[:1] in ("*", ">") and is_reserved(requested):
        return False
    return includes(allowed, requested)


def includes(wide: str, narrow: str) -> bool:
    """Return whether, by the rules of NATS, ``wide`` matches every subject that ``narrow`` matches."""
    return _includes(wide.split("."), narrow.split("."))


def overlaps(one: str, other: str) -> bool:
    """Return whether, by the rules of NATS, both patterns match a common subject."""
    ones, others = one.split("."), other.split(".")
    for mine, its in zip(ones, others, strict=False):
        if ">" in (mine, its):
            return True
        if mine != its and "*" not in (mine, its):
            return False
    return len(ones) == len(others)


@lru_cache(maxsize=1024)
def matcher(patterns: tuple[str, ...]) -> Callable[[str], object]:
    """Return a function that tests whether, by the rules of NATS, one of the patterns matches a subject.

    Its result is true or false. A subject from a publisher may contain a token ``*`` or ``>``, which is then literal.
    """
    return re.compile("|".join(map(_expression, patterns)), re.DOTALL).fullmatch


def encoded_matcher(pattern: str) -> Callable[[bytes], object]:
    """Return a function that tests whether a pattern matches a subject in bytes; its result is true or false.

    A wildcard in first place doesn't match a reserved token. The function is part of the message path, so it is one
    method of a compiled expression, and doesn't look at what ``>`` matches beyond its first byte.
    """
    expression = ("(?![$_])" if pattern[0] in "*>" else "") + _expression(pattern)
    if pattern.endswith(">"):
        return re.compile(expression.removesuffix("+").encode(), re.DOTALL).match
    return re.compile(expression.encode(), re.DOTALL).fullmatch


def matches_encoded(pattern: bytes, subject: bytes) -> bool:
    """Return whether a pattern matches a subject, both in bytes, as the function of `encoded_matcher` does.

    It takes longer than that function, but less than making one.
    """
    if pattern[:1] in (b"*", b">") and subject[:1] in (b"$", b"_"):
        return False
    tokens = pattern.split(b".")
    is_open = tokens[-1] == b">"
    # The last part may be the rest of the subject, which isn't split further.
    parts = subject.split(b".", len(tokens) - is_open)
    if len(parts) != len(tokens) or (is_open and not parts[-1]):
        return False
    for token, part in zip(tokens, parts, strict=True):
        if token != part and token != b"*" and token != b">":
            return False
    return True


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
