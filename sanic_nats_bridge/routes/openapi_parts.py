"""The parts of OpenAPI descriptions that several routes share: schemas of replies, and the responses of errors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec
from sanic_ext import openapi

from ..errors import (
    AuthExpired,
    AuthRequired,
    BridgeError,
    ForbiddenHost,
    ForbiddenOrigin,
    ForbiddenSubject,
    HistoryForbidden,
    HistoryUnavailable,
    InternalError,
    InvalidCommand,
    InvalidSubject,
    NatsRefused,
    NatsUnavailable,
    NotSubscribed,
    PublishRateExceeded,
    PublishUnstored,
    RateLimitExceeded,
    RequestFailed,
    RequestLimitExceeded,
    SizeLimitExceeded,
    SubscriptionLimitExceeded,
    UnknownSession,
    UnreachableSession,
    UnsupportedCommand,
    UnsupportedMediaType,
    UnsupportedQuery,
)
from ..protocol.messages import Action, Command, CommandId, Frame, failure_reply
from ..protocol.subjects import GRAMMAR, MAX_SUBJECT_BYTES

__all__ = [
    "FALSE",
    "ID",
    "MEANINGS",
    "PATTERN",
    "REPLY_FIELDS",
    "TAG",
    "TRUE",
    "Handler",
    "Json",
    "described_response",
    "error_responses",
    "json_content",
    "object_schema",
    "reply_schema",
    "schemas",
    "subjects_schema",
]

Handler = TypeVar("Handler", bound=Callable[..., Any])
Json: TypeAlias = dict[str, Any]

schemas: Any = openapi  # its classes have no annotations

TAG = "NATS bridge"
_JSON = "application/json"


PATTERN: Json = {
    "type": "string",
    "pattern": f"^{GRAMMAR}$",
    "maxLength": MAX_SUBJECT_BYTES,
    "example": "orders.new",
}
ID: Json = {
    "anyOf": [{"type": "string"}, {"type": "integer"}],
    "description": "An id of the client's choice, which the reply repeats",
}
TRUE: Json = {"type": "boolean", "enum": [True]}
FALSE: Json = {"type": "boolean", "enum": [False]}
REPLY_FIELDS = {
    "id": "The id of the command, if it had one",
    "action": "The command",
    "code": "The error, for programs",
    "message": "The result, for people",
    "active": "True if NATS has confirmed every subscription. Otherwise NATS is disconnected or slow, and the stream "
    "announces when the subscriptions are confirmed, or that they have ended",
    "resumable": "True if a stream holds each of the subjects. Absent for a command without history, and as long as "
    "the server does not know",
    "resumable_subjects": "The subjects that a stream holds, if it does not hold all",
    "recovered": "True if nothing is missing after the id that the client has sent",
}
_RETRY: Json = {"retry": {"type": "integer", "description": "The milliseconds after which the client may try again"}}
_ERROR_FIELDS: dict[type[BridgeError], Json] = {
    PublishUnstored: {"description": {"type": "string", "description": "The reason that JetStream gives"}},
    RequestFailed: {"service_code": {"type": "string", "description": "The code that the service gives"}},
    PublishRateExceeded: _RETRY,
    RequestLimitExceeded: _RETRY,
}
"""The fields of the failed reply for one error only."""
MEANINGS: dict[type[BridgeError], str] = {
    InvalidCommand: "the request is malformed, or a field is missing or invalid",
    UnsupportedMediaType: "the body is not declared as JSON, or is compressed",
    UnsupportedCommand: "the command has an action or a field that this server does not support",
    UnsupportedQuery: "the query has a parameter that this server does not support, or a wrong spelling of subjects",
    InvalidSubject: "a subject is invalid",
    AuthRequired: "the client is not authenticated",
    AuthExpired: "the permissions of the client have expired",
    ForbiddenSubject: "the client may not subscribe to one of the subjects",
    ForbiddenOrigin: "the origin of the page is not allowed",
    ForbiddenHost: "the host of the request is not allowed",
    HistoryForbidden: "the client may not get these old messages",
    HistoryUnavailable: "no stream of the server holds one of the subjects as a whole",
    NatsRefused: "NATS does not let the server subscribe to one of the subjects",
    UnknownSession: "the session does not exist, or belongs to another client",
    NotSubscribed: "the session is not subscribed to one of the subjects",
    SizeLimitExceeded: "the body is too large",
    RateLimitExceeded: "too many commands or requests; the header Retry-After has the number of seconds to wait",
    SubscriptionLimitExceeded: "too many subjects",
    InternalError: "a fault in the server",
    NatsUnavailable: "another server holds the session, and NATS is disconnected; the command can be repeated",
    UnreachableSession: "the server that holds the session does not answer; the command may have been executed, "
    "and can be repeated",
}
"""The meaning of each error to the caller."""


def _failure_schema(action: Action, errors: Iterable[type[BridgeError]]) -> Json:
    errors = list(errors)
    codes = [error.code for error in errors]
    schema = reply_schema(
        action, {"success": FALSE, "code": {"type": "string", "enum": codes, "description": REPLY_FIELDS["code"]}}
    )
    # A rejection that precedes the command has no subjects, and on an event stream no action either.
    schema["properties"]["subjects"] = subjects_schema("The subjects that the error concerns")
    schema["properties"] |= {name: field for error in errors for name, field in _ERROR_FIELDS.get(error, {}).items()}
    schema["required"].remove("action")
    return schema


def reply_schema(action: Action, properties: Mapping[str, Any]) -> Json:
    """Return the schema of a reply with these properties, all of which it always has."""
    known: Json = {
        "type": {"type": "string", "enum": ["reply"]},
        "action": {"type": "string", "enum": [action], "description": REPLY_FIELDS["action"]},
        **properties,
        "message": {"type": "string", "description": REPLY_FIELDS["message"]},
    }
    identified = known | {"id": ID | {"description": REPLY_FIELDS["id"]}}
    return {"type": "object", "properties": identified, "required": list(known)}


def subjects_schema(description: str) -> Json:
    """Return the schema of a list of subjects."""
    return {"type": "array", "items": {"type": "string"}, "description": description}


def object_schema(**properties: Json) -> Json:
    """Return the schema of an object that always has these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


# Responses


def error_responses(
    examples: Iterable[BridgeError],
    others: Sequence[type[BridgeError]],
    action: Action,
    command_id: CommandId | msgspec.UnsetType = msgspec.UNSET,
    meanings: Mapping[type[BridgeError], str] = MEANINGS,
) -> list[Any]:
    """Return a response for each example, with the codes of the other errors that have the same status."""
    return [
        _error_response(
            example,
            [error for error in others if error.http_status == example.http_status],
            action,
            command_id,
            meanings,
        )
        for example in sorted(examples, key=lambda example: example.http_status)
    ]


def _error_response(
    example: BridgeError,
    others: Iterable[type[BridgeError]],
    action: Action,
    command_id: CommandId | msgspec.UnsetType,
    meanings: Mapping[type[BridgeError], str],
) -> Any:
    errors = [type(example), *others]
    # The id is in the body, which is not read then.
    known_id = msgspec.UNSET if isinstance(example, UnsupportedMediaType | SizeLimitExceeded) else command_id
    return described_response(
        example.http_status,
        "; ".join(f"{error.code}: {meanings[error]}" for error in errors),
        json_content(_failure_schema(action, errors), failure_reply(example, action, known_id)),
    )


def json_content(schema: Json, example: Command | Frame | Json) -> Json:
    """Return the content of a body, with an example of it."""
    return {_JSON: {"schema": schema, "example": msgspec.json.decode(msgspec.json.encode(example))}}


def described_response(status: int, description: str, content: Json) -> Any:
    """Return a response of a route."""
    return openapi.definitions.Response(content, status=status, description=description)
