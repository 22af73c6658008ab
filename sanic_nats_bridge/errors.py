"""Every error that a client can get, as one tree: its code, its HTTP status and its close code.

    BridgeError
    ├── InvalidCommand               command.invalid
    │   └── UnsupportedMediaType     command.invalid, but HTTP 415
    ├── UnsupportedCommand           command.unsupported
    │   └── UnsupportedQuery         command.unsupported
    ├── AuthRequired                 auth.required
    ├── AuthExpired                  auth.expired
    ├── InvalidSubject               subject.invalid
    ├── ForbiddenSubject             subject.forbidden
    ├── ForbiddenOrigin              origin.forbidden
    ├── ForbiddenHost                host.forbidden
    ├── HistoryForbidden             history.forbidden
    ├── HistoryUnavailable           history.unavailable
    ├── PublishForbidden             publish.forbidden
    ├── PublishInvalid               publish.invalid
    ├── PublishUnstored              publish.unstored
    ├── PublishUnknown               publish.unknown
    ├── RequestForbidden             request.forbidden
    ├── NoResponders                 request.no_responders
    ├── RequestTimedOut              request.timeout
    ├── RequestFailed                request.failed
    ├── NotSubscribed                subject.not_subscribed
    ├── SizeLimitExceeded            limit.size
    ├── SubscriptionLimitExceeded    limit.subscriptions
    ├── OverlapLimitExceeded         limit.overlap
    ├── RateLimitExceeded            limit.rate
    ├── PublishRateExceeded          limit.publish
    ├── RequestLimitExceeded         limit.requests
    ├── UnknownSession               session.unknown
    ├── UnreachableSession           session.unreachable
    ├── NatsRefused                  nats.refused
    ├── NatsUnavailable              nats.unavailable
    └── InternalError                internal

``SettingsError`` is separate: it stops the start, and no client gets it.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar

__all__ = [
    "AuthExpired",
    "AuthRequired",
    "BridgeError",
    "CloseCode",
    "ForbiddenHost",
    "ForbiddenOrigin",
    "ForbiddenSubject",
    "HistoryForbidden",
    "HistoryUnavailable",
    "InternalError",
    "InvalidCommand",
    "InvalidSubject",
    "NatsRefused",
    "NatsUnavailable",
    "NoResponders",
    "NotSubscribed",
    "OverlapLimitExceeded",
    "PublishForbidden",
    "PublishInvalid",
    "PublishRateExceeded",
    "PublishUnknown",
    "PublishUnstored",
    "RateLimitExceeded",
    "RequestFailed",
    "RequestForbidden",
    "RequestLimitExceeded",
    "RequestTimedOut",
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
    """The WebSocket close codes of the bridge. RFC 6455, section 7.4, defines those below 4000."""

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
        """True if the client may reconnect without a change on its side."""
        return self not in (
            CloseCode.TOO_BIG,
            CloseCode.UNSUPPORTED,
            CloseCode.UNAUTHORIZED,
            CloseCode.FORBIDDEN,
        )

    @property
    def drops_pending(self) -> bool:
        """True if messages that were received, but not written yet, are dropped."""
        return self in (CloseCode.UNAUTHORIZED, CloseCode.FORBIDDEN)


class BridgeError(Exception):
    """A rejection that a client gets, as a failed reply, an HTTP status or a close code.

    Args:
        message: The reason, for people. It must not show internals.
        subjects: The subjects that the error concerns.
        retry_after: Seconds until the command may be repeated, after an error of a rate or of a limit.
    """

    code: ClassVar[str]
    """The error's code on the wire."""
    http_status: ClassVar[int]
    """The status of the HTTP response to a POST, or to ``/events``."""
    close_code: ClassVar[CloseCode | None] = None
    """The code with which the error ends a session, if it does."""

    def __init__(self, message: str, subjects: Sequence[str] = (), retry_after: float = 0) -> None:
        super().__init__(message)
        self.message = message
        self.subjects = tuple(subjects)
        self.retry_after = retry_after


class InvalidCommand(BridgeError):
    """A command with malformed JSON, a missing field, a field of the wrong type or an unknown action."""

    code = "command.invalid"
    http_status = 400


class UnsupportedMediaType(InvalidCommand):
    """A POST whose body isn't declared as JSON, or is compressed."""

    http_status = 415


class UnsupportedCommand(BridgeError):
    """An action, a field or a kind of frame that the protocol reserves for later."""

    code = "command.unsupported"
    http_status = 400


class UnsupportedQuery(UnsupportedCommand):
    """A query parameter that the protocol reserves, or another protocol version, at the start of a session."""

    close_code = CloseCode.UNSUPPORTED


class AuthRequired(BridgeError):
    """A client that the app's ``permissions`` function doesn't know."""

    code = "auth.required"
    http_status = 401
    close_code = CloseCode.UNAUTHORIZED


class AuthExpired(BridgeError):
    """A client whose permissions have expired."""

    code = "auth.expired"
    http_status = 401
    close_code = CloseCode.UNAUTHORIZED


class InvalidSubject(BridgeError):
    """A pattern outside the grammar of `subjects`."""

    code = "subject.invalid"
    http_status = 400


class ForbiddenSubject(BridgeError):
    """A pattern that the client's permissions don't allow."""

    code = "subject.forbidden"
    http_status = 403


class ForbiddenOrigin(BridgeError):
    """A page of an origin that ``allowed_origins`` doesn't name."""

    code = "origin.forbidden"
    http_status = 403
    close_code = CloseCode.FORBIDDEN


class ForbiddenHost(BridgeError):
    """A request to a host that ``allowed_hosts`` doesn't name."""

    code = "host.forbidden"
    http_status = 403
    close_code = CloseCode.FORBIDDEN


class HistoryForbidden(BridgeError):
    """A ``from`` that the client's permissions don't allow."""

    code = "history.forbidden"
    http_status = 403


class HistoryUnavailable(BridgeError):
    """A ``from`` for a pattern that no configured stream holds as a whole, or a stream that no longer does."""

    code = "history.unavailable"
    http_status = 409


class PublishForbidden(BridgeError):
    """A subject to which the client's permissions don't allow to publish, or a header that isn't allowed."""

    code = "publish.forbidden"
    http_status = 403


class PublishInvalid(BridgeError):
    """Data that the app's own check refuses. The message is the app's, and the client gets it."""

    code = "publish.invalid"
    http_status = 422


class PublishUnstored(BridgeError):
    """A publish that no stream has stored: JetStream has refused it, or nothing in NATS receives its subject.

    Args:
        message: The reason, for people.
        subjects: The subjects that the error concerns.
        description: JetStream's own reason, if it gave one.
    """

    code = "publish.unstored"
    http_status = 424

    def __init__(self, message: str, subjects: Sequence[str] = (), description: str | None = None) -> None:
        super().__init__(message, subjects)
        self.description = description


class PublishUnknown(BridgeError):
    """A publish without an acknowledgement in time. It may have been stored."""

    code = "publish.unknown"
    http_status = 424


class RequestForbidden(BridgeError):
    """A subject to which the client's permissions don't allow to send requests."""

    code = "request.forbidden"
    http_status = 403


class NoResponders(BridgeError):
    """A request on a subject to which nothing in NATS subscribes."""

    code = "request.no_responders"
    http_status = 424


class RequestTimedOut(BridgeError):
    """A request without an answer in time. It may have had an effect."""

    code = "request.timeout"
    http_status = 424


class RequestFailed(BridgeError):
    """A request that a service has answered with an error.

    Args:
        message: The reason, for people.
        subjects: The subjects that the error concerns.
        service_code: The service's own code, of its header ``Nats-Service-Error-Code``.
    """

    code = "request.failed"
    http_status = 424

    def __init__(self, message: str, subjects: Sequence[str] = (), service_code: str | None = None) -> None:
        super().__init__(message, subjects)
        self.service_code = service_code


class NotSubscribed(BridgeError):
    """An unsubscribe from a pattern to which the session isn't subscribed."""

    code = "subject.not_subscribed"
    http_status = 409


class SizeLimitExceeded(BridgeError):
    """A command larger than ``max_command_bytes``, or data larger than ``max_publish_bytes``.

    A session is closed for the former only.
    """

    code = "limit.size"
    http_status = 413
    close_code = CloseCode.TOO_BIG


class SubscriptionLimitExceeded(BridgeError):
    """More patterns than a session, a client or the worker may have."""

    code = "limit.subscriptions"
    http_status = 429


class OverlapLimitExceeded(BridgeError):
    """More patterns of a session that match one message than ``max_overlap``. It ends the newest of them."""

    code = "limit.overlap"
    http_status = 429


class RateLimitExceeded(BridgeError):
    """More commands than ``command_rate`` and ``command_burst`` allow, or more requests than ``request_rate``."""

    code = "limit.rate"
    http_status = 429
    close_code = CloseCode.TRY_AGAIN_LATER


class PublishRateExceeded(BridgeError):
    """More publishes and requests than ``publish_rate`` and ``publish_burst`` allow."""

    code = "limit.publish"
    http_status = 429


class RequestLimitExceeded(BridgeError):
    """More requests in progress than ``max_requests`` or ``max_requests_per_worker``."""

    code = "limit.requests"
    http_status = 429


class UnknownSession(BridgeError):
    """A session id that no worker knows, or that belongs to another client."""

    code = "session.unknown"
    http_status = 404


class UnreachableSession(BridgeError):
    """A session whose worker doesn't answer. The command may have been executed all the same."""

    code = "session.unreachable"
    http_status = 503


class NatsRefused(BridgeError):
    """A pattern to which the NATS server doesn't let the bridge subscribe."""

    code = "nats.refused"
    http_status = 403


class NatsUnavailable(BridgeError):
    """A command that needs NATS while it is disconnected."""

    code = "nats.unavailable"
    http_status = 503


class InternalError(BridgeError):
    """A fault of the bridge or of the app. Its cause is logged, and not shown to clients."""

    code = "internal"
    http_status = 500
    close_code = CloseCode.INTERNAL


class SettingsError(ValueError):
    """A setting with which the bridge cannot start. The message is one line and names the setting."""


def error_from_code(code: str, message: str, subjects: Sequence[str] = (), retry_after: float = 0) -> BridgeError:
    """Return the error that another worker has reported; an `InternalError` if its code is unknown."""
    kinds = {kind.code: kind for kind in BridgeError.__subclasses__()}
    error = kinds.get(code, InternalError)(message, subjects)
    error.retry_after = retry_after
    return error
