"""The OpenAPI descriptions of ``/publish`` and ``/request``, for people who call them over HTTP."""

from collections.abc import Callable
from typing import Any, get_args

from sanic_ext import openapi

from ..errors import (
    AuthExpired,
    AuthRequired,
    BridgeError,
    ForbiddenHost,
    ForbiddenOrigin,
    InternalError,
    InvalidCommand,
    InvalidSubject,
    NatsUnavailable,
    NoResponders,
    PublishForbidden,
    PublishInvalid,
    PublishRateExceeded,
    PublishUnknown,
    PublishUnstored,
    RateLimitExceeded,
    RequestFailed,
    RequestForbidden,
    RequestLimitExceeded,
    RequestTimedOut,
    SizeLimitExceeded,
    UnreachableSession,
    UnsupportedMediaType,
)
from ..protocol.headers import MAX_HEADERS, MAX_VALUE_BYTES
from ..protocol.publish import MAX_MESSAGE_ID_CHARACTERS, DataEncoding, PublishAction, PublishCommand
from ..protocol.publish_replies import answered_reply, stored_reply
from ..protocol.subjects import LITERAL_GRAMMAR, MAX_SUBJECT_BYTES
from ..settings import Settings
from .openapi_parts import (
    ID,
    MEANINGS,
    TAG,
    TRUE,
    Handler,
    Json,
    described_response,
    error_responses,
    json_content,
    reply_schema,
)

__all__ = ["describe_publish"]

_SUBJECTS: dict[PublishAction, str] = {"publish": "rooms.7.say", "request": "prices.get"}
_SUMMARIES: dict[PublishAction, str] = {"publish": "Publish a message", "request": "Send a request"}
_DESCRIPTIONS: dict[PublishAction, str] = {
    "publish": "Publishes a message to NATS, without a session. With an acknowledgement the response names the "
    "stream that has stored it. Messages of several requests at once have no order among themselves.",
    "request": "Sends a request to a service in NATS, without a session, and returns the first answer.",
}
_MEANINGS = MEANINGS | {
    InvalidSubject: "the subject is invalid, or has a wildcard",
    PublishForbidden: "the client may not publish to the subject, or may not set one of the headers",
    PublishInvalid: "the app refuses the data",
    PublishUnstored: "no stream has stored the message",
    PublishUnknown: "no acknowledgement has arrived, so the message may have been stored, and can be repeated with the "
    "same message id",
    RequestForbidden: "the client may not send requests to the subject",
    NoResponders: "no service answers on the subject",
    RequestTimedOut: "no answer has arrived in time",
    RequestFailed: "the service has answered with an error",
    SizeLimitExceeded: "the body, or the data in it, is too large",
    RateLimitExceeded: "too many requests over HTTP; the header Retry-After has the number of seconds to wait",
    PublishRateExceeded: "too many messages; the header Retry-After has the number of seconds to wait",
    RequestLimitExceeded: "too many requests that wait for their answer",
    NatsUnavailable: "NATS is disconnected, and nothing was sent",
    UnreachableSession: "the server is stopping",
}
_DATA = "Any JSON. It is published byte for byte. Without it the payload is empty"
_ENCODING: Json = {
    "type": "string",
    "enum": list(get_args(DataEncoding)),
    "description": "The data is a string: the text of the payload, or its bytes in base64",
}
_HEADERS: Json = {
    "type": "object",
    "maxProperties": MAX_HEADERS,
    "additionalProperties": {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_HEADERS,
        "items": {"type": "string", "maxLength": MAX_VALUE_BYTES, "pattern": "^[^\\r\\n\\u0000]*$"},
    },
    "description": f"The values of each header that the server allows, at most {MAX_HEADERS} in all",
}
_ANSWER: Json = {
    "subject": {"type": "string", "description": "The subject of the request"},
    "data": {"description": "The payload of the answer: JSON as it is, or a string"},
}


def describe_publish(action: PublishAction, settings: Settings) -> Callable[[Handler], Handler]:
    """Return a decorator that describes the route of publishes or of requests by POST."""
    subject = _SUBJECTS[action]
    body: Json = {"subject": subject, "id": "1"}
    if action == "publish":
        body |= {"data": {"text": "Hello"}, "ack": True, "msg_id": "f2c9a1b7e4d05c8836aa1e"}
    else:
        body |= {"data": {"sku": 7}, "timeout": 2}
    command = PublishCommand(action=action, subject=subject, payload=b"", id="1")
    reply = (
        stored_reply(command, "ROOMS", 42, duplicate=False)
        if action == "publish"
        else answered_reply(command, b'{"price":9.5}', None, frozenset())
    )
    return openapi.definition(
        summary=_SUMMARIES[action],
        description=_DESCRIPTIONS[action],
        tag=TAG,
        body=openapi.definitions.RequestBody(json_content(_command_schema(action), body), required=True),
        response=[
            described_response(200, _SUCCESSES[action], json_content(_success_schema(action), reply)),
            *error_responses(*_errors(action, settings), action, "1", _MEANINGS),
        ],
    )


_SUCCESSES: dict[PublishAction, str] = {
    "publish": "The message was handed to NATS; with an acknowledgement, a stream has stored it",
    "request": "The service has answered",
}


def _errors(action: PublishAction, settings: Settings) -> tuple[list[BridgeError], list[type[BridgeError]]]:
    """Return an example for each status, and the types of the other errors."""
    subject = [_SUBJECTS[action]]
    examples: list[BridgeError] = [
        InvalidCommand("Not a valid command: 'subject' is missing"),
        AuthRequired("Not authenticated"),
        SizeLimitExceeded(f"A command must be at most {settings.max_command_bytes} bytes"),
        UnsupportedMediaType("The body must be application/json"),
        PublishRateExceeded(
            f"At most {settings.publish_rate:g} publishes and requests per second (publish_rate); try again later",
            subject,
            0.05,
        ),
        InternalError("Internal error"),
        NatsUnavailable("NATS is disconnected", subject),
    ]
    others: list[type[BridgeError]] = [
        InvalidSubject,
        AuthExpired,
        ForbiddenOrigin,
        ForbiddenHost,
        RateLimitExceeded,
        UnreachableSession,
    ]
    if action == "publish":
        examples += [
            PublishForbidden(f"Not allowed to publish to: '{subject[0]}'", subject),
            PublishInvalid("The text must not be empty", subject),
            PublishUnstored("Not stored: JetStream has refused the message", subject, "maximum messages exceeded"),
        ]
        others.append(PublishUnknown)
    else:
        examples += [
            RequestForbidden(f"Not allowed to send requests to: '{subject[0]}'", subject),
            RequestFailed("The service has reported an error: no such product", subject, "404"),
        ]
        # A header that isn't allowed.
        others += [PublishForbidden, NoResponders, RequestTimedOut, RequestLimitExceeded]
    return examples, others


def _command_schema(action: PublishAction) -> Json:
    properties: Json = {
        "action": {"type": "string", "enum": [action], "description": "May be omitted, because the path implies it"},
        "subject": {
            "type": "string",
            "pattern": f"^{LITERAL_GRAMMAR}$",
            "maxLength": MAX_SUBJECT_BYTES,
            "description": "The subject, without wildcards",
            "example": _SUBJECTS[action],
        },
        "id": ID,
        "data": {"description": _DATA},
        "encoding": _ENCODING,
        "headers": _HEADERS,
    }
    if action == "publish":
        properties |= {
            "ack": {"type": "boolean", "description": "True to wait until a stream has stored the message"},
            "msg_id": {
                "type": "string",
                "pattern": f"^[A-Za-z0-9._~-]{{1,{MAX_MESSAGE_ID_CHARACTERS}}}$",
                "description": "With an acknowledgement: an id by which a stream drops the same message if it is "
                "repeated. Clients without an identity need 22 random characters",
            },
        }
    else:
        properties["timeout"] = {
            "type": "number",
            "minimum": 0,
            "exclusiveMinimum": True,
            "description": "The seconds to wait for the answer, if that is less than the server waits",
        }
    return {"type": "object", "properties": properties, "required": ["subject"]}


def _success_schema(action: PublishAction) -> Json:
    if action == "request":
        schema = reply_schema(action, {"success": TRUE, **_ANSWER})
        optional: dict[str, Any] = {
            "encoding": _ENCODING,
            "headers": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": "string"}},
                "description": "The values of the headers of the answer, of those that clients get",
            },
        }
    else:
        schema = reply_schema(action, {"success": TRUE})
        optional = {
            "stream": {"type": "string", "description": "With an acknowledgement: the stream that has the message"},
            "sequence": {"type": "integer", "minimum": 1, "description": "Its number in the stream"},
            "duplicate": {"type": "boolean", "description": "True if the stream had the message already"},
        }
    schema["properties"] |= optional
    return schema
