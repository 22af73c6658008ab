"""The messages of the client protocol: commands from clients, and frames to them.

`decode_command` and `query_command` read commands; `encode` writes frames. The protocol page of the documentation
is the specification.
"""

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeAlias, overload

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..errors import (
    BridgeError,
    CloseCode,
    InvalidCommand,
    PublishRateExceeded,
    PublishUnstored,
    RequestFailed,
    RequestLimitExceeded,
    UnsupportedCommand,
    UnsupportedQuery,
)
from .publish import DataEncoding, PublishAction, PublishCommand, decode_publish
from .start import From, Start, possible_id, read_after, read_from

__all__ = [
    "PROTOCOL_VERSION",
    "Action",
    "CaughtUp",
    "Close",
    "Command",
    "CommandId",
    "Frame",
    "Gap",
    "GapReason",
    "Heartbeat",
    "NatsState",
    "Outcome",
    "ReplayGapReason",
    "Reply",
    "Status",
    "Unsubscribed",
    "Welcome",
    "check_query",
    "check_websocket_query",
    "close_frame",
    "command_id_of",
    "decode_command",
    "encode",
    "event_name",
    "failure_reply",
    "features_of",
    "jittered_milliseconds",
    "query_command",
    "query_has_start",
    "quoted",
    "success_reply",
]

PROTOCOL_VERSION = 1

Action: TypeAlias = Literal["subscribe", "unsubscribe", "ping", "publish", "request"]
CommandId: TypeAlias = str | int
NatsState: TypeAlias = Literal["connected", "disconnected"]
ReplayGapReason: TypeAlias = Literal["unknown", "reset", "expired", "backlog"]
"""The reason for which a replay can't show all messages."""
GapReason: TypeAlias = Literal["slow_consumer", "nats_reconnect", "internal", ReplayGapReason]

_ACTIONS = ("subscribe", "unsubscribe", "ping")
_PUBLISH_ACTIONS: dict[object, PublishAction] = {"publish": "publish", "request": "request"}
_RESERVED_ACTIONS = (*_PUBLISH_ACTIONS, "authenticate")
_WITH_RETRY = (PublishRateExceeded, RequestLimitExceeded)
_START_FIELDS = ("from", "after")
# Other spellings of `subjects`, and the conventions of other libraries for lists.
_LIKE_SUBJECTS = re.compile(r"(?:subjects?|topics?)(?:\[\d{0,9}\])?", re.IGNORECASE | re.ASCII)


class Command(Struct, kw_only=True, frozen=True, rename={"from_": "from"}):
    """A command of a client. A command by POST names its ``session``.

    `decode_command` ensures that ``action`` is "subscribe", "unsubscribe" or "ping", that only a subscribe has
    ``after`` and ``from_``, and that ``after`` may be an id. It is empty if the client has sent anything else.
    """

    action: str | UnsetType = UNSET
    subjects: list[str] | UnsetType = UNSET
    id: CommandId | UnsetType = UNSET
    session: str | UnsetType = UNSET
    after: str | UnsetType = UNSET
    from_: From | UnsetType = UNSET

    @property
    def patterns(self) -> list[str]:
        """The patterns of the command; empty for a ping."""
        return [] if isinstance(self.subjects, UnsetType) else self.subjects

    @property
    def start(self) -> Start | None:
        """The first message, if it isn't to follow ``after``, or can't; ``None`` for a subscription without history."""
        if not isinstance(self.from_, UnsetType):
            return Start.of(self.from_)
        return None if self.after is UNSET else Start("new")


class _Received(Struct, kw_only=True, frozen=True, rename={"from_": "from"}):
    action: str | UnsetType = UNSET
    subjects: list[str] | UnsetType = UNSET
    id: CommandId | UnsetType = UNSET
    session: str | UnsetType = UNSET
    after: msgspec.Raw | UnsetType = UNSET
    from_: msgspec.Raw | UnsetType = UNSET


class Welcome(Struct, kw_only=True, frozen=True, tag="welcome"):
    """The first frame of every session. ``session`` is the session's secret id, ``heartbeat`` is in seconds."""

    success: bool = True
    data: str = "Successfully connected"
    session: str
    protocol: int = PROTOCOL_VERSION
    features: Sequence[str] = ()
    heartbeat: float
    nats: NatsState


class Reply(Struct, kw_only=True, frozen=True, tag="reply"):
    """The reply to one command.

    ``active`` is true if the bridge's NATS server has confirmed every subscription. ``resumable`` is true if a stream
    holds every pattern; otherwise ``resumable_subjects`` has those that one holds. ``recovered`` is true if the client
    gets all that it has missed.

    The reply to a request has a ``subject``, and ``data``, ``encoding`` and ``headers`` as a message has them. That to
    a publish with ``ack`` has the ``stream`` and the ``sequence`` at which the message is stored. ``description`` is
    JetStream's reason, and ``service_code`` that of a service. ``retry`` is in milliseconds.
    """

    id: CommandId | UnsetType = UNSET
    action: Action | UnsetType = UNSET
    success: bool
    code: str | UnsetType = UNSET
    message: str
    subjects: Sequence[str] | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    resumable: bool | UnsetType = UNSET
    resumable_subjects: Sequence[str] | UnsetType = UNSET
    recovered: bool | UnsetType = UNSET
    subject: str | UnsetType = UNSET
    headers: msgspec.Raw | UnsetType = UNSET
    data: msgspec.Raw | UnsetType = UNSET
    encoding: DataEncoding | UnsetType = UNSET
    stream: str | UnsetType = UNSET
    sequence: int | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    description: str | UnsetType = UNSET
    service_code: str | UnsetType = UNSET
    retry: int | UnsetType = UNSET


class CaughtUp(Struct, kw_only=True, frozen=True, tag="caught_up"):
    """The end of the old messages of one command. ``position`` is an id after all of them."""

    subjects: Sequence[str]
    replayed: int
    recovered: bool
    position: str


class Gap(Struct, kw_only=True, frozen=True, tag="gap"):
    """A certain or possible loss of messages of these subscriptions. ``lost`` is ``None`` if the number is unknown."""

    subjects: Sequence[str]
    lost: int | None
    reason: GapReason


class Unsubscribed(Struct, kw_only=True, frozen=True, tag="unsubscribed"):
    """The end of subscriptions that the client didn't end."""

    subjects: Sequence[str]
    code: str
    message: str


class Status(Struct, kw_only=True, frozen=True, tag="status"):
    """A change in the state of the connection to NATS."""

    nats: NatsState


class Heartbeat(Struct, frozen=True, tag="heartbeat"):
    """A frame sent if there was no other for one heartbeat interval, or to give the client a newer ``id``."""

    id: str | UnsetType = UNSET


class Close(Struct, kw_only=True, frozen=True, tag="close"):
    """The last frame of a session that the bridge ends. ``retry`` is in milliseconds."""

    code: int
    reason: str
    reconnect: bool
    retry: int | UnsetType = UNSET


Frame: TypeAlias = Welcome | Reply | CaughtUp | Gap | Unsubscribed | Status | Heartbeat | Close

encode = msgspec.json.Encoder().encode

_command_decoder = msgspec.json.Decoder(_Received)
_any_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def event_name(frame: Frame) -> str:
    """Return the ``type`` of the frame, which is its event name on an event stream."""
    return str(frame.__struct_config__.tag)


@overload
def decode_command(data: bytes, action: Action | None = None, *, history: bool = False) -> Command: ...


@overload
def decode_command(
    data: bytes, action: Action | None = None, *, history: bool = False, publish: Literal[True]
) -> Command | PublishCommand: ...


def decode_command(
    data: bytes, action: Action | None = None, *, history: bool = False, publish: bool = False
) -> Command | PublishCommand:
    """Decode a command from JSON.

    Args:
        data: The JSON text.
        action: The action that the path of a POST implies.
        history: True if this server has the feature, so that ``from`` and ``after`` are allowed.
        publish: True for a WebSocket, on which clients also publish and send requests. Their commands by POST have
            paths of their own: see `decode_publish`.

    Raises:
        InvalidCommand: The data isn't a JSON object, a field is missing or has the wrong type, or the action is unknown
            or contradicts the path.
        UnsupportedCommand: The protocol reserves the action or a field.
    """
    try:
        received = _command_decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidCommand(f"Not a valid command: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidCommand("Not a valid command: malformed JSON") from None
    except RecursionError:
        # msgspec raises it instead of a DecodeError at about 1,000 levels.
        raise InvalidCommand("Not a valid command: nested too deeply") from None
    if received.action not in _ACTIONS and publish and received.action in _PUBLISH_ACTIONS:
        # Decoded once more, so that the fields of these two cost the other commands nothing.
        return decode_publish(data, _PUBLISH_ACTIONS[received.action], needs_id=True)
    if not history and (received.from_ is not UNSET or received.after is not UNSET):
        raise UnsupportedCommand("Not supported here: 'from' and 'after'")
    return _checked(received, action)


def check_query(query: Mapping[str, Sequence[str]], *, history: bool = False) -> None:
    """Check the query with which a session begins, on any transport.

    Args:
        query: The parameters.
        history: True if ``from`` and ``after`` are allowed.

    Raises:
        UnsupportedQuery: The protocol reserves a parameter, ``protocol`` isn't 1, a parameter looks like a wrong
            spelling of ``subjects``, or ``from`` or ``after`` is repeated. Other unknown parameters are ignored.
    """
    wrong = next((name for name in query if name != "subjects" and _LIKE_SUBJECTS.fullmatch(name)), None)
    if wrong is not None:
        raise UnsupportedQuery(f"The parameter is 'subjects', not {wrong!r}: one for each subject")
    if query.get("protocol", ["1"]) != [str(PROTOCOL_VERSION)]:
        raise UnsupportedQuery(f"protocol must be {PROTOCOL_VERSION}, the version that this server supports")
    if not query_has_start(query):
        return
    if not history:
        raise UnsupportedQuery("Not supported here: 'from' and 'after'")
    if any(len(query[field]) > 1 for field in _START_FIELDS if field in query):
        raise UnsupportedQuery("'from' and 'after' must not be repeated in the query")


def query_has_start(query: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a query has ``from`` or ``after``, so that the events of the stream have an ``id:`` line."""
    return any(field in query for field in _START_FIELDS)


def check_websocket_query(query: Mapping[str, Sequence[str]]) -> None:
    """Check the query of a WebSocket.

    Raises:
        UnsupportedQuery: As in `check_query`, or it has ``subjects``, which would have no effect.
    """
    check_query(query)
    if "subjects" in query:
        raise UnsupportedQuery("'subjects' is a parameter of /events; on a WebSocket send a subscribe command")


def query_command(
    query: Mapping[str, Sequence[str]], last_event_id: str | None = None, *, history: bool = False
) -> Command | None:
    """Return the subscribe command in the query of an event stream, or ``None`` if it has no subjects.

    Args:
        query: The parameters.
        last_event_id: The header ``Last-Event-ID``, which replaces ``after`` if the query has that or ``from``.
        history: True if ``from`` and ``after`` are allowed.

    Raises:
        UnsupportedQuery: As in `check_query`, or a subject has a comma.
        InvalidCommand: The value of ``from`` is invalid.
    """
    check_query(query, history=history)
    patterns = query.get("subjects")
    if any("," in pattern for pattern in patterns or ()):
        # A subject may contain a comma, but this one most likely separates two subjects.
        raise UnsupportedQuery(
            "A subject in the query must not have a comma: one parameter 'subjects' for each subject. "
            "Send a command to subscribe to a subject with a comma"
        )
    after, start = _query_start(query, last_event_id)
    return Command(action="subscribe", subjects=list(patterns), after=after, from_=start) if patterns else None


def command_id_of(data: bytes) -> CommandId | UnsetType:
    """Return the ``id`` of data that isn't a valid command, if it can be read."""
    try:
        raw = _any_decoder.decode(data).get("id")
        return UNSET if raw is None else msgspec.json.decode(raw, type=CommandId)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return UNSET


def close_frame(code: CloseCode, reason: str, *, retry: float, spread: float) -> Close:
    """Return the last frame of a session that the bridge ends.

    Args:
        code: The close code; `CloseCode.reconnect` is true if the client may reconnect.
        reason: The reason, for people.
        retry: Seconds before the client reconnects, at least; twice as long at most.
        spread: Seconds over which the clients of a worker that stops are to reconnect.
    """
    if not code.reconnect:
        return Close(code=code, reason=reason, reconnect=False)
    wait = int(random.uniform(0, spread) * 1000) if code is CloseCode.GOING_AWAY else jittered_milliseconds(retry)
    return Close(code=code, reason=reason, reconnect=True, retry=wait)


def features_of(*, has_history: bool, can_publish: bool) -> tuple[str, ...]:
    """Return the parts of the protocol that a server has, and that not every server has, as ``welcome`` lists them."""
    return ("history",) * has_history + ("publish", "request") * can_publish


def jittered_milliseconds(seconds: float) -> int:
    """Return a random number of milliseconds, from once to twice the seconds, so that clients spread out."""
    return int(random.uniform(1, 2) * seconds * 1000)


def success_reply(
    command: Command,
    patterns: Sequence[str],
    active: bool | UnsetType = UNSET,
    *,
    resumable: Sequence[str] | UnsetType = UNSET,
    recovered: bool | UnsetType = UNSET,
) -> Reply:
    """Return the reply to a subscribe or an unsubscribe that was executed.

    Args:
        command: The command.
        patterns: Its patterns, each once.
        active: True if the NATS server has confirmed every subscription.
        resumable: The patterns that a stream holds, if the command has a start, and the streams are known.
        recovered: True if the client gets all that it has missed.
    """
    action: Any = command.action
    done = "connected to" if action == "subscribe" else "disconnected from"
    message = f"Successfully {done} events: {quoted(patterns)}"
    some = not isinstance(resumable, UnsetType) and 0 < len(resumable) < len(patterns)
    return Reply(
        id=command.id,
        action=action,
        success=True,
        message=message,
        subjects=patterns,
        active=active,
        resumable=UNSET if isinstance(resumable, UnsetType) else len(resumable) == len(patterns),
        resumable_subjects=resumable if some else UNSET,
        recovered=recovered,
    )


def quoted(patterns: Iterable[str]) -> str:
    """Return the patterns for a message to people."""
    return ", ".join(f"'{pattern}'" for pattern in patterns)


def failure_reply(
    error: BridgeError,
    action: str | UnsetType = UNSET,
    id: CommandId | UnsetType = UNSET,  # noqa: A002 - the name on the wire
) -> Reply:
    """Return the failed reply for an error."""
    known: Any = action if action in _ACTIONS or action in _PUBLISH_ACTIONS else UNSET
    return Reply(
        id=id,
        action=known,
        success=False,
        code=error.code,
        message=error.message,
        subjects=error.subjects or UNSET,
        description=error.description or UNSET if isinstance(error, PublishUnstored) else UNSET,
        service_code=error.service_code or UNSET if isinstance(error, RequestFailed) else UNSET,
        retry=math.ceil(error.retry_after * 1000) if isinstance(error, _WITH_RETRY) else UNSET,
    )


class Outcome(NamedTuple):
    """The reply to a command, and the error if it was rejected."""

    reply: Reply
    error: BridgeError | None = None

    @classmethod
    def rejected(
        cls,
        error: BridgeError,
        action: str | UnsetType = UNSET,
        id: CommandId | UnsetType = UNSET,  # noqa: A002 - the name on the wire
    ) -> Self:
        """Return the outcome of a command that was rejected with this error."""
        return cls(failure_reply(error, action, id), error)


def _query_start(
    query: Mapping[str, Sequence[str]], last_event_id: str | None
) -> tuple[str | UnsetType, From | UnsetType]:
    """Return the ``after`` and the ``from`` of a query that `check_query` allows."""
    if not query_has_start(query):
        return UNSET, UNSET
    # An empty id is none (WHATWG HTML, section 9.2.5).
    after = last_event_id or next(iter(query.get("after", ())), None)
    return (
        UNSET if after is None else possible_id(after),
        read_from(query["from"][0]) if "from" in query else UNSET,
    )


def _checked(received: _Received, path_action: Action | None) -> Command:
    action = received.action if received.action is not UNSET else path_action or "subscribe"
    if path_action is not None and action != path_action:
        raise InvalidCommand(f"Not a valid command: the action is not '{path_action}'")
    if action not in _ACTIONS:
        if action in _RESERVED_ACTIONS:
            raise UnsupportedCommand(f"Not supported here: the action '{action}'")
        raise InvalidCommand("Not a valid command: unknown action")
    if action != "ping" and not received.subjects:
        raise InvalidCommand("Not a valid command: 'subjects' is missing or empty")
    after = UNSET if isinstance(received.after, UnsetType) else read_after(received.after)
    start = UNSET if isinstance(received.from_, UnsetType) else read_from(received.from_)
    if action != "subscribe":
        # Like every field that an action doesn't have, they are checked and then ignored.
        after = start = UNSET
    return Command(
        action=action, subjects=received.subjects, id=received.id, session=received.session, after=after, from_=start
    )
