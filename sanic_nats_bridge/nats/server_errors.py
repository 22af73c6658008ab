"""Effects of a ``-ERR`` line of a NATS server on the subscriptions of a connection.

Only some lines name the subscription. For the others the position of the line identifies it: each SUB is followed by
its own PING, so an error before a PONG is about the SUB before that PING.
"""

import math
import re
from typing import NamedTuple

from .subscription_index import SubscriptionIndex, sub_length

__all__ = ["ErrorEffect", "classify_error"]

_DENIAL = re.compile(
    r"""-ERR 'Permissions Violation for Subscription to (?P<pattern>"(?:[^"\\]|\\.)*")"""
    r"""(?: using queue (?P<queue>"(?:[^"\\]|\\.)*"))?(?: \(sid "(?P<sid>[0-9]{1,19})"\))?'"""
)
_DENIED_PUBLISH = re.compile(r"""-ERR 'Permissions Violation for Publish to ("(?:[^"\\]|\\.)*")'""")
_ESCAPED = re.compile(r"\\(.)")
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

    denied_publish: str = ""
    """The subject of a message that the server hasn't accepted."""

    line_too_long: bool = False
    """True if a line was longer than the server accepts: that of a subscription, or of a message."""


def classify_error(line: str, patterns: SubscriptionIndex, unconfirmed: int | None) -> ErrorEffect:
    """Return the effect of a ``-ERR`` line.

    Args:
        line: The line without CRLF.
        patterns: The bridge's own subscriptions on this connection.
        unconfirmed: The oldest of them without a PONG.
    """
    denied = _denied(line, patterns)
    if denied:
        return ErrorEffect(denied, connection_survives=True)
    lowered = line.lower()
    if _VIOLATION in lowered:
        # A denied publish, or a denied subscription of the app's own.
        publish = _DENIED_PUBLISH.fullmatch(line)
        return ErrorEffect([], True, denied_publish="" if publish is None else _unquoted(publish[1]))
    suspects = [] if unconfirmed is None or unconfirmed not in patterns else [unconfirmed]
    if _TOO_MANY in lowered:
        # nats-py would close the connection, but the server has only refused this SUB.
        return ErrorEffect(suspects, connection_survives=True)
    if _TOO_LONG in lowered:
        return _refuse_long(suspects, patterns)
    return ErrorEffect(
        suspects if any(cause in lowered for cause in _CAUSED_BY_SUBJECT) else [], connection_survives=False
    )


def _denied(line: str, patterns: SubscriptionIndex) -> list[int]:
    """Return the numbers of the subscriptions that the line denies.

    The server names the number only if it ends a subscription after a reload of its permissions.
    """
    denial = _DENIAL.fullmatch(line)
    if denial is None:
        return []
    if denial["sid"]:
        sid = int(denial["sid"])
        return [sid] if sid in patterns else []
    name = _unquoted(denial["pattern"])
    return patterns.of(name if denial["queue"] is None else f"{name} {_unquoted(denial['queue'])}")


def _refuse_long(suspects: list[int], patterns: SubscriptionIndex) -> ErrorEffect:
    """Refuse the suspects and all subscriptions with a SUB of at least their length.

    Each of these would end another connection if it were sent again.
    """
    if not suspects:
        return ErrorEffect([], connection_survives=False, line_too_long=True)
    limit = min(sub_length(patterns[sid], sid) for sid in suspects)
    return ErrorEffect(patterns.at_least(limit), False, limit, line_too_long=True)


def _unquoted(quoted: str) -> str:
    """Return a name that the server has quoted by Go's ``%q``. A valid one has no other escapes."""
    return _ESCAPED.sub(r"\1", quoted[1:-1])
