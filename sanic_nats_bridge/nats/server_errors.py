"""Effects of a ``-ERR`` line of a NATS server on the subscriptions of a connection.

Only some lines name the subscription. For the others the position of the line identifies it: each SUB is followed by
its own PING, so an error before a PONG is about the SUB before that PING.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["ErrorEffect", "classify_error", "sub_length"]

_DENIAL = re.compile(
    r"""-ERR 'Permissions Violation for Subscription to (?P<pattern>"(?:[^"\\]|\\.)*")"""
    r"""(?: using queue "(?P<queue>(?:[^"\\]|\\.)*)")?(?: \(sid "(?P<sid>\d+)"\))?'"""
)
_NONE: Mapping[int, str] = {}
_VIOLATION = "permissions violation"
_TOO_MANY = "maximum subscriptions exceeded"
_TOO_LONG = "maximum control line"
_CAUSED_BY_SUBJECT = ("invalid subject", "parser error", "protocol operation")


class ErrorEffect(NamedTuple):
    """The effect of a ``-ERR`` line."""

    refused: list[int]
    """The numbers of the subscriptions that the server has refused or ended."""

    connection_survives: bool
    """True if the server keeps the connection open."""

    refused_length: float = math.inf
    """The smallest `sub_length` that the server is known to refuse."""


def classify_error(
    line: str, patterns: Mapping[int, str], unconfirmed: int | None, queues: Mapping[int, str] = _NONE
) -> ErrorEffect:
    """Return the effect of a ``-ERR`` line.

    Args:
        line: The line without CRLF.
        patterns: The bridge's own subscriptions on this connection, by their numbers.
        unconfirmed: The oldest of them without a PONG.
        queues: The queue groups of those that are in one, by their numbers.
    """
    denied = _denied(line, patterns, queues)
    if denied:
        return ErrorEffect(denied, connection_survives=True)
    lowered = line.lower()
    if _VIOLATION in lowered:
        # A denied publish, or a denied subscription of the app's own.
        return ErrorEffect([], connection_survives=True)
    suspects = [] if unconfirmed is None or unconfirmed not in patterns else [unconfirmed]
    if _TOO_MANY in lowered:
        # nats-py would close the connection, but the server has only refused this SUB.
        return ErrorEffect(suspects, connection_survives=True)
    if _TOO_LONG in lowered:
        return _refuse_long(suspects, patterns, queues)
    return ErrorEffect(
        suspects if any(cause in lowered for cause in _CAUSED_BY_SUBJECT) else [], connection_survives=False
    )


def _denied(line: str, patterns: Mapping[int, str], queues: Mapping[int, str]) -> list[int]:
    """Return the numbers of the subscriptions that the line denies.

    The server names the number only if it ends a subscription after a reload of its permissions.
    """
    denial = _DENIAL.fullmatch(line)
    if denial is None:
        return []
    if denial["sid"]:
        sid = int(denial["sid"])
        return [sid] if sid in patterns else []
    queue = denial["queue"] or ""
    return [
        sid
        for sid, pattern in patterns.items()
        if _quoted(pattern) == denial["pattern"] and queues.get(sid, "") == queue
    ]


def _refuse_long(suspects: list[int], patterns: Mapping[int, str], queues: Mapping[int, str]) -> ErrorEffect:
    """Refuse the suspects and all subscriptions with a SUB of at least their length.

    Each of these would end another connection if it were sent again.
    """
    if not suspects:
        return ErrorEffect([], connection_survives=False)
    lengths = {sid: sub_length(pattern, sid, queues.get(sid, "")) for sid, pattern in patterns.items()}
    limit = min(lengths[sid] for sid in suspects)
    return ErrorEffect([sid for sid, length in lengths.items() if length >= limit], False, limit)


def sub_length(pattern: str, sid: int, queue: str = "") -> int:
    """Return the length of a SUB line as the server measures it for ``max_control_line``."""
    return len(f"{pattern} {queue} {sid}") if queue else len(f"{pattern} {sid}")


def _quoted(pattern: str) -> str:
    """Return the pattern as the server quotes it, by Go's ``%q``."""
    return '"' + pattern.replace("\\", "\\\\").replace('"', '\\"') + '"'
