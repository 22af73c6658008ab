"""Subjects and patterns: which are valid, which subject a pattern matches, which pattern covers which.

A subject is what a NATS message carries; a pattern is what one subscribes to, where ``*`` stands for
one token and ``>`` for one or more at the end (https://docs.nats.io/nats-concepts/subjects). The
grammar is narrower than NATS's: nats-py lets control characters, and subjects longer than the
server takes, through.
"""

import re
from typing import Final

from .errors import SubjectInvalid

__all__ = ["MAX_SUBJECT_BYTES", "MAX_TOKENS", "covers", "is_reserved", "matches", "validate"]

MAX_SUBJECT_BYTES: Final = 255
MAX_TOKENS: Final = 32

_LITERAL: Final = r"[\x21-\x29\x2B-\x2D\x2F-\x3D\x3F-\x7E]+"
_PATTERN: Final = re.compile(rf"(?:(?:{_LITERAL}|\*)\.)*(?:{_LITERAL}|\*|>)")


def validate(pattern: str) -> str:
    """Return the pattern when it is valid.

    Raises:
        SubjectInvalid: It is not 1 to 255 bytes of 0x21-0x7E, has more than 32 tokens or an empty
            one, or has a wildcard that is not a whole token, or ``>`` before the end.
    """
    if not 0 < len(pattern) <= MAX_SUBJECT_BYTES or not _PATTERN.fullmatch(pattern) or pattern.count(".") >= MAX_TOKENS:
        raise SubjectInvalid(f"Not a valid subject: {_shown(pattern)}", [pattern])
    return pattern


def is_reserved(subject: str) -> bool:
    """Whether it belongs to NATS itself (``$SYS``, ``$JS``, ``_INBOX``): open only where spelled out."""
    return subject[:1] in ("$", "_")


def matches(pattern: str, subject: str) -> bool:
    """Whether a message on the subject is delivered to a subscriber of the pattern.

    A wildcard in first place does not match a reserved first token.
    """
    if pattern[:1] in ("*", ">") and is_reserved(subject):
        return False
    return _within(pattern.split("."), subject.split("."))


def covers(allowed: str, requested: str) -> bool:
    """Whether every subject that ``requested`` matches is one that ``allowed`` matches too."""
    if allowed[:1] in ("*", ">") and is_reserved(requested):
        return False
    return _within(allowed.split("."), requested.split("."))


def _within(wide: list[str], narrow: list[str]) -> bool:
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
