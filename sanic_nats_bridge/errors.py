"""Everything the bridge can refuse, as one tree: each with its code, its HTTP status, and any close code.

    BridgeError
    ├── InvalidCommand            command.invalid
    │   └── UnsupportedMediaType  command.invalid, but HTTP 415
    ├── UnsupportedCommand        command.unsupported
    │   └── UnsupportedQuery      command.unsupported
    ├── AuthRequired              auth.required
    ├── AuthExpired               auth.expired
    ├── InvalidSubject            subject.invalid
    ├── ForbiddenSubject          subject.forbidden
    ├── ForbiddenOrigin           origin.forbidden
    ├── NotSubscribed             subject.not_subscribed
    ├── SizeLimitExceeded                 limit.size
    ├── SubscriptionLimitExceeded         limit.subscriptions
    ├── RateLimitExceeded                 limit.rate
    ├── UnknownSession            session.unknown
    ├── UnreachableSession        session.unreachable
    ├── NatsRefused               nats.refused
    ├── NatsUnavailable           nats.unavailable
    └── InternalError             internal

``SettingsError`` stands apart: it is the operator's, stops the start, and never reaches a client.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar

__all__ = [
    "AuthExpired",
    "AuthRequired",
    "BridgeError",
    "CloseCode",
    "ForbiddenOrigin",
    "ForbiddenSubject",
    "InternalError",
    "InvalidCommand",
    "InvalidSubject",
    "NatsRefused",
    "NatsUnavailable",
    "NotSubscribed",
    "RateLimitExceeded",
    "SettingsError",
    "SizeLimitExceeded",
    "SubscriptionLimitExceeded",
    "UnknownSession",
    "UnreachableSession",
    "UnsupportedCommand",
    "UnsupportedMediaType",
    "UnsupportedQuery",
    "error_from_code",
]


class CloseCode(IntEnum):
    """Why the bridge ends a session: WebSocket close codes, those below 4000 of RFC 6455, section 7.4."""

    GOING_AWAY = 1001
    TOO_BIG = 1009
    INTERNAL = 1011
    TRY_AGAIN_LATER = 1013
    UNSUPPORTED = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    TOO_MANY_COMMANDS = 4429

    @property
    def reconnect(self) -> bool:
        """Whether a client that comes back as it is may expect to be served."""
        return self not in (
            CloseCode.TOO_BIG,
            CloseCode.UNSUPPORTED,
            CloseCode.UNAUTHORIZED,
            CloseCode.FORBIDDEN,
        )

    @property
    def cuts(self) -> bool:
        """Whether messages that have come, and are not written yet, are kept from the client."""
        return self in (CloseCode.UNAUTHORIZED, CloseCode.FORBIDDEN)


class BridgeError(Exception):
    """What a client is told when something is refused.

    ``message`` is for people and shows no internals; ``subjects`` are those that it concerns. Where
    it has a ``close_code`` it ends the session.
    """

    code: ClassVar[str]
    http_status: ClassVar[int]
    close_code: ClassVar[CloseCode | None] = None

    def __init__(self, message: str, subjects: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.subjects = tuple(subjects)


class InvalidCommand(BridgeError):
    """Not a command: broken JSON, a missing or mistyped field, an action nobody knows."""

    code = "command.invalid"
    http_status = 400


class UnsupportedMediaType(InvalidCommand):
    """A POST whose body is not declared as JSON, or is compressed."""

    http_status = 415


class UnsupportedCommand(BridgeError):
    """An action, a field or a kind of frame that the protocol reserves for later."""

    code = "command.unsupported"
    http_status = 400


class UnsupportedQuery(UnsupportedCommand):
    """What the protocol reserves, in the query with which a session was to begin."""

    close_code = CloseCode.UNSUPPORTED


class AuthRequired(BridgeError):
    """The app's ``permissions`` function knows no such client."""

    code = "auth.required"
    http_status = 401
    close_code = CloseCode.UNAUTHORIZED


class AuthExpired(BridgeError):
    """The time of the client's permissions is over."""

    code = "auth.expired"
    http_status = 401
    close_code = CloseCode.UNAUTHORIZED


class InvalidSubject(BridgeError):
    """A pattern outside the grammar of `subjects`."""

    code = "subject.invalid"
    http_status = 400


class ForbiddenSubject(BridgeError):
    """A pattern that the operator has not opened."""

    code = "subject.forbidden"
    http_status = 403


class ForbiddenOrigin(BridgeError):
    """A page of an origin that the operator has not allowed."""

    code = "origin.forbidden"
    http_status = 403
    close_code = CloseCode.FORBIDDEN


class NotSubscribed(BridgeError):
    """An unsubscribe of what the session does not hold."""

    code = "subject.not_subscribed"
    http_status = 409


class SizeLimitExceeded(BridgeError):
    """A command larger than ``max_command_bytes``."""

    code = "limit.size"
    http_status = 413
    close_code = CloseCode.TOO_BIG


class SubscriptionLimitExceeded(BridgeError):
    """More patterns than ``max_subscriptions``, or than ``max_patterns`` for the worker."""

    code = "limit.subscriptions"
    http_status = 429


class RateLimitExceeded(BridgeError):
    """More commands than ``command_rate``; ``retry_after`` is in seconds."""

    code = "limit.rate"
    http_status = 429

    def __init__(self, message: str, subjects: Sequence[str] = (), retry_after: float = 0) -> None:
        super().__init__(message, subjects)
        self.retry_after = retry_after


class UnknownSession(BridgeError):
    """No session of that id lives, on whichever worker."""

    code = "session.unknown"
    http_status = 404


class UnreachableSession(BridgeError):
    """The worker that holds the session does not answer; the command may have been carried out all the same."""

    code = "session.unreachable"
    http_status = 503


class NatsRefused(BridgeError):
    """The NATS server does not let the bridge subscribe to that pattern."""

    code = "nats.refused"
    http_status = 403


class NatsUnavailable(BridgeError):
    """What was asked for needs NATS, which is away."""

    code = "nats.unavailable"
    http_status = 503


class InternalError(BridgeError):
    """A fault of the bridge; what it was stands in the operator's log."""

    code = "internal"
    http_status = 500
    close_code = CloseCode.INTERNAL


class SettingsError(ValueError):
    """A setting that the bridge cannot start with; the message is one line and names it."""


def error_from_code(code: str, message: str, subjects: Sequence[str] = (), retry_after: float = 0) -> BridgeError:
    """The error of this code that another worker has told of; an `InternalError` where there is none of it."""
    if code == RateLimitExceeded.code:
        return RateLimitExceeded(message, subjects, retry_after)
    kinds = {kind.code: kind for kind in BridgeError.__subclasses__()}
    return kinds.get(code, InternalError)(message, subjects)
