"""What a ``-ERR`` line of a NATS server means for the subscriptions of a connection.

The server names the subscription in some of its lines only. For the others the place of the line
tells: what stands before a PONG is about the SUB before its PING.
"""

import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = ["ErrorEffect", "classify_error", "sub_length"]

_DENIAL: Final = re.compile(
    r"""-ERR 'Permissions Violation for Subscription to (?P<pattern>"(?:[^"\\]|\\.)*")(?: \(sid "(?P<sid>\d+)"\))?'"""
)
_TOO_MANY: Final = "maximum subscriptions exceeded"
_TOO_LONG: Final = "maximum control line"
_CAUSED_BY_SUBJECT: Final = ("invalid subject", "parser error", "protocol operation")


class ErrorEffect(NamedTuple):
    """Which subscriptions the server does not have, and whether it goes on with the connection."""

    refused: list[int]
    connection_survives: bool
    too_long: float = math.inf
    """The least `sub_length` that is known to be too much for the server."""


def classify_error(line: str, patterns: Mapping[int, str], unconfirmed: int | None) -> ErrorEffect:
    """Read a ``-ERR`` line.

    Args:
        line: The line, without its end.
        patterns: Our subscriptions on this connection, by their numbers.
        unconfirmed: The first of them that the server has not answered for.
    """
    denied = _denied(line, patterns)
    if denied:
        return ErrorEffect(denied, connection_survives=True)
    text = line.lower()
    suspects = [] if unconfirmed is None or unconfirmed not in patterns else [unconfirmed]
    if _TOO_MANY in text:
        # nats-py would close for good; the server has only left that SUB out.
        return ErrorEffect(suspects, connection_survives=True)
    if _TOO_LONG in text:
        return _judge_length(suspects, patterns)
    return ErrorEffect(
        suspects if any(cause in text for cause in _CAUSED_BY_SUBJECT) else [], connection_survives=False
    )


def _denied(line: str, patterns: Mapping[int, str]) -> list[int]:
    """Which of them the line denies; after a reload of its permissions the server gives the number."""
    denial = _DENIAL.fullmatch(line)
    if denial is None:
        return []
    if denial["sid"]:
        sid = int(denial["sid"])
        return [sid] if sid in patterns else []
    return [sid for sid, pattern in patterns.items() if _quoted(pattern) == denial["pattern"]]


def _judge_length(suspects: list[int], patterns: Mapping[int, str]) -> ErrorEffect:
    """These, and all whose SUB is as long: asked for again, each would end one more connection."""
    if not suspects:
        return ErrorEffect([], connection_survives=False)
    least = min(sub_length(patterns[sid], sid) for sid in suspects)
    return ErrorEffect([sid for sid in patterns if sub_length(patterns[sid], sid) >= least], False, least)


def sub_length(pattern: str, sid: int) -> int:
    """How much of a line a SUB takes, of what the server measures."""
    return len(f"{pattern} {sid}")


def _quoted(pattern: str) -> str:
    """The pattern as the server quotes it, which is Go's way."""
    return '"' + pattern.replace("\\", "\\\\").replace('"', '\\"') + '"'
