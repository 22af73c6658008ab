"""The OpenAPI descriptions of the routes, for people who call them over HTTP.

sanic-ext writes OpenAPI 3.0, which has no ``const``. It drops ``examples`` and the headers of a response. Each body
therefore has one ``example``, and an ``enum`` has the other codes of its status. sanic-ext lists HEAD only if the app
sets ``OAS_IGNORE_HEAD`` to false.
"""

from collections.abc import Callable, Sequence
from typing import Any, get_args

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
    RateLimitExceeded,
    SizeLimitExceeded,
    SubscriptionLimitExceeded,
    UnknownSession,
    UnreachableSession,
    UnsupportedCommand,
    UnsupportedMediaType,
    UnsupportedQuery,
)
from ..protocol.encoding import event_text
from ..protocol.messages import (
    PROTOCOL_VERSION,
    Action,
    Command,
    Welcome,
    encode,
    event_name,
    features_of,
    success_reply,
)
from ..protocol.start import MAX_ID_CHARACTERS, StartName
from ..settings import Settings
from ..streams.interfaces import FeedState
from .openapi_parts import (
    FALSE,
    ID,
    PATTERN,
    REPLY_FIELDS,
    TAG,
    TRUE,
    Handler,
    Json,
    described_response,
    error_responses,
    json_content,
    object_schema,
    reply_schema,
    schemas,
    subjects_schema,
)

__all__ = ["describe_command", "describe_events", "describe_live", "describe_metrics", "describe_ready"]

_SESSION = "kX3vR9wLmB7ZrcT1sYdE8uJ6pFgA4oKxRi5VqCtWnDb0M2Hh"
_PATTERNS = [PATTERN["example"], "invoices.>"]

_SUMMARIES: dict[Action, str] = {"subscribe": "Subscribe to subjects", "unsubscribe": "Unsubscribe from subjects"}
_DESCRIPTIONS: dict[Action, str] = {
    "subscribe": "Adds subscriptions to an open session: one for each subject, or none after an error. The messages "
    "arrive on the stream of the session. The reply is the response, and is not sent on the stream. Subscribing to a "
    "subject again changes nothing.",
    "unsubscribe": "Ends subscriptions of an open session: the one for each subject, or none after an error. The reply "
    "is the response, and is not sent on the stream.",
}
_EVENTS = (
    "Opens a session, and streams its frames as Server-Sent Events. The data of each event is a JSON object. The first "
    "event is the welcome, with the id of the session. If the query has subjects, the second event is the reply to a "
    "subscribe. A message has no event name; the other frames have their type as the event name. The stream does not "
    "end by itself, so a tool that waits for the whole response shows nothing. A temporary problem, such as a full "
    "server, is not an HTTP error: the stream has a close event, and ends. HEAD returns the status of a GET, and opens "
    "no session."
)

_WILDCARDS = "The wildcard * matches one token, and > at the end matches one or more"
_AFTER: Json = {
    "type": "string",
    "maxLength": MAX_ID_CHARACTERS,
    "description": "The id of the last message that the client has received. The messages since then come first, if "
    "the server still has them",
    "example": "k3f9x2.m2k.sz3k1x",
}
_FROM: Json = {
    "anyOf": [
        {"type": "string", "enum": list(get_args(StartName))},
        {
            "type": "object",
            "properties": {"last": {"type": "integer", "minimum": 1}},
            "required": ["last"],
            "additionalProperties": False,
        },
    ],
    "description": "The messages that come first, without an id from which to continue: only new ones, all, the last "
    "of each subject, or the last ones of each pattern",
}
_NATS: Json = {"type": "string", "enum": ["connected", "disconnected"]}

_METRIC = """\
# HELP natsbridge_sessions Open sessions
# TYPE natsbridge_sessions gauge
natsbridge_sessions{transport="sse",worker="Sanic-Server-0-0"} 3.0
natsbridge_sessions{transport="websocket",worker="Sanic-Server-0-0"} 12.0
"""


def describe_command(action: Action, settings: Settings, *, history: bool = False) -> Callable[[Handler], Handler]:
    """Return a decorator that describes the route of a command by POST.

    Args:
        action: The command.
        settings: The settings of the bridge.
        history: True if a subscribe may ask for old messages.
    """
    history = history and action == "subscribe"
    patterns = _patterns(settings)
    command = Command(subjects=patterns, id="1", session=_SESSION)
    executed = msgspec.structs.replace(command, action=action)
    reply = success_reply(executed, patterns, True if action == "subscribe" else msgspec.UNSET)
    return openapi.definition(
        summary=_SUMMARIES[action],
        description=_DESCRIPTIONS[action],
        tag=TAG,
        body=openapi.definitions.RequestBody(
            json_content(_command_schema(action, settings, history), command), required=True
        ),
        response=[
            described_response(200, "The command was executed", json_content(_success_schema(action, history), reply)),
            *_command_errors(action, settings, history),
        ],
    )


def describe_events(settings: Settings, *, history: bool = False) -> Callable[[Handler], Handler]:
    """Return a decorator that describes the route of event streams.

    Args:
        settings: The settings of the bridge.
        history: True if the query may ask for old messages.
    """
    patterns = _patterns(settings)
    subjects = schemas.Array(
        schemas.Schema(**PATTERN),
        maxItems=settings.max_subscriptions,
        example=patterns,
    )
    examples = [
        InvalidSubject("Not a valid subject: 'orders..new'", ["orders..new"]),
        AuthRequired("Not authenticated"),
        _forbidden_subject(patterns),
        SubscriptionLimitExceeded(f"At most {settings.max_subscriptions} subjects for a session"),
    ]
    others = [UnsupportedQuery, InvalidCommand, AuthExpired, ForbiddenOrigin, ForbiddenHost, RateLimitExceeded]
    if history:
        examples.append(_unavailable_history(patterns))
        others.append(HistoryForbidden)
    stream = {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": _stream_example(patterns, features_of(has_history=history, can_publish=True)),
        }
    }
    return openapi.definition(
        summary="Open an event stream",
        description=_EVENTS,
        tag=TAG,
        parameter=[
            {
                "name": "subjects",
                "location": "query",
                "schema": subjects,
                "description": f"A subject to subscribe to, repeated for each one. {_WILDCARDS}. Without it, or for a "
                "subject that contains a comma, subscribe by POST",
            },
            {
                "name": "protocol",
                "location": "query",
                "schema": schemas.Integer(enum=[PROTOCOL_VERSION], default=PROTOCOL_VERSION),
                "description": "The version of the protocol",
            },
            *(_start_parameters() if history else ()),
        ],
        response=[
            described_response(200, "The stream is open", stream),
            *error_responses(examples, others, "subscribe"),
        ],
    )


def describe_live() -> Callable[[Handler], Handler]:
    """Return a decorator that describes the liveness probe."""
    schema = object_schema(live=TRUE | {"description": "True whenever the worker answers"})
    return openapi.definition(
        summary="Check that a worker is alive",
        description="For a supervisor that restarts a worker which no longer answers.",
        tag=TAG,
        response=[described_response(200, "The worker is alive", json_content(schema, {"live": True}))],
    )


def describe_ready() -> Callable[[Handler], Handler]:
    """Return a decorator that describes the readiness probe."""

    def content(ready: Json, example: Json) -> Json:
        schema = object_schema(
            ready=ready | {"description": "True if the worker takes new clients"},
            stopping={"type": "boolean", "description": "True while the worker stops"},
            nats=_NATS | {"description": "The connection of the worker to NATS"},
            control=_NATS | {"description": "The connection of the worker to the other workers, over NATS"},
        )
        schema["properties"]["streams"] = {
            "type": "object",
            "additionalProperties": {"type": "string", "enum": list(get_args(FeedState))},
            "description": "The state of each stream, if the app has any",
        }
        return json_content(schema, example)

    connected = {"nats": "connected", "control": "connected"}
    return openapi.definition(
        summary="Check that a worker takes new clients",
        description="For a load balancer that chooses a worker for new clients.",
        tag=TAG,
        response=[
            described_response(
                200, "The worker takes new clients", content(TRUE, {"ready": True, "stopping": False} | connected)
            ),
            described_response(
                503,
                "The worker is stopping, or NATS is disconnected and the app needs it",
                content(FALSE, {"ready": False, "stopping": True} | connected),
            ),
        ],
    )


def describe_metrics() -> Callable[[Handler], Handler]:
    """Return a decorator that describes the route of the metrics."""
    text = {"type": "string"}
    return openapi.definition(
        summary="Read the metrics",
        description="The metrics of all workers of this server. The header Accept of the request decides the format.",
        tag=TAG,
        response=[
            described_response(
                200,
                "The metrics, in the text format of Prometheus or in that of OpenMetrics",
                {
                    "text/plain": {"schema": text, "example": _METRIC},
                    "application/openmetrics-text": {"schema": text, "example": f"{_METRIC}# EOF\n"},
                },
            )
        ],
    )


def _start_parameters() -> list[Json]:
    return [
        {
            "name": "after",
            "location": "query",
            "schema": schemas.Schema(type="string", maxLength=MAX_ID_CHARACTERS, example=_AFTER["example"]),
            "description": f"{_AFTER['description']}. The header Last-Event-ID replaces it",
        },
        {
            "name": "from",
            "location": "query",
            "schema": schemas.Schema(type="string", example="new"),
            "description": f"As in a subscribe by POST: a name, or the object as JSON. {_FROM['description']}",
        },
    ]


def _command_errors(action: Action, settings: Settings, history: bool) -> list[Any]:
    """Return the responses of the errors of a command."""
    patterns = _patterns(settings)
    examples: list[BridgeError] = [
        InvalidCommand("Not a valid command: 'subjects' is missing or empty"),
        AuthRequired("Not authenticated"),
        UnknownSession("No such session"),
        SizeLimitExceeded(f"A command must be at most {settings.max_command_bytes} bytes"),
        UnsupportedMediaType("The body must be application/json"),
        RateLimitExceeded(f"At most {settings.command_rate:g} commands per second"),
        InternalError("Internal error"),
        NatsUnavailable("This session is on another server, but NATS is disconnected"),
    ]
    others: list[type[BridgeError]] = [
        UnsupportedCommand,
        InvalidSubject,
        SubscriptionLimitExceeded,
        UnreachableSession,
        ForbiddenHost,
    ]
    if action == "subscribe":
        examples.append(_forbidden_subject(patterns))
        others += [NatsRefused, ForbiddenOrigin]
        if history:
            examples.append(_unavailable_history(patterns))
            others.append(HistoryForbidden)
    else:
        examples.append(ForbiddenOrigin("This origin is not allowed to use this server"))
        examples.append(NotSubscribed(f"Not subscribed to: '{patterns[-1]}'", patterns[-1:]))
    return error_responses(examples, others, action, "1")


def _patterns(settings: Settings) -> list[str]:
    """Return the subjects of the examples, not more than the bridge allows."""
    return _PATTERNS[: settings.max_subscriptions]


def _forbidden_subject(patterns: Sequence[str]) -> BridgeError:
    return ForbiddenSubject(f"Not allowed: '{patterns[-1]}'", patterns[-1:])


def _unavailable_history(patterns: Sequence[str]) -> BridgeError:
    return HistoryUnavailable(f"No configured stream holds: '{patterns[-1]}'", patterns[-1:])


def _stream_example(patterns: list[str], features: Sequence[str]) -> str:
    welcome = Welcome(session=_SESSION, features=features, heartbeat=15, nats="connected")
    reply = success_reply(Command(action="subscribe", subjects=patterns), patterns, active=True)
    message = b'{"type":"message","subject":"orders.new","data":{"order":42}}'
    frames = event_text(encode(welcome), event_name(welcome), 2718) + event_text(encode(reply), event_name(reply))
    return (frames + event_text(message)).decode()


# Schemas


def _command_schema(action: Action, settings: Settings, history: bool) -> Json:
    return {
        "type": "object",
        "properties": {
            "action": {
                "type": "string",
                "enum": [action],
                "description": "May be omitted, because the path implies it",
            },
            "subjects": {
                "type": "array",
                "items": PATTERN,
                "minItems": 1,
                "maxItems": settings.max_subscriptions,
                "description": f"The subjects to which the command applies. {_WILDCARDS}",
            },
            "id": ID,
            "session": {
                "type": "string",
                "description": "The id of the session, from the first frame of its stream, the welcome",
                "example": _SESSION,
            },
            **({"after": _AFTER, "from": _FROM} if history else {}),
        },
        "required": ["session", "subjects"],
    }


def _success_schema(action: Action, history: bool) -> Json:
    properties: Json = {
        "success": TRUE,
        "subjects": subjects_schema("The subjects of the command, each once"),
    }
    if action == "subscribe":
        properties["active"] = {"type": "boolean", "description": REPLY_FIELDS["active"]}
    schema = reply_schema(action, properties)
    if history:
        schema["properties"] |= {
            "resumable": {"type": "boolean", "description": REPLY_FIELDS["resumable"]},
            "resumable_subjects": subjects_schema(REPLY_FIELDS["resumable_subjects"]),
            "recovered": {"type": "boolean", "description": REPLY_FIELDS["recovered"]},
        }
    return schema
