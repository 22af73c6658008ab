"""The messages of the client protocol: commands from clients, and frames to them.

`decode_command` and `query_command` read commands; `encode` writes frames. The protocol page of the documentation
is the specification.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..errors import BridgeError, CloseCode, InvalidCommand, UnsupportedCommand, UnsupportedQuery

__all__ = [
    "PROTOCOL_VERSION",
    "Action",
    "Close",
    "Command",
    "CommandId",
    "Frame",
    "Gap",
    "Heartbeat",
    "NatsState",
    "Outcome",
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
    "jittered_milliseconds",
    "query_command",
    "quoted",
    "success_reply",
]

PROTOCOL_VERSION = 1

Action: TypeAlias = Literal["subscribe", "unsubscribe", "ping"]
CommandId: TypeAlias = str | int
NatsState: TypeAlias = Literal["connected", "disconnected"]

_ACTIONS = ("subscribe", "unsubscribe", "ping")
_RESERVED_ACTIONS = ("publish", "request", "authenticate")
_RESERVED_FIELDS = ("from", "after")
# Other spellings of `subjects`, and the conventions of other libraries for lists.
_LIKE_SUBJECTS = re.compile(r"(?:subjects?|topics?)(?:\[\d{0,9}\])?", re.IGNORECASE | re.ASCII)


class Command(Struct, kw_only=True, frozen=True):
    """A command of a client. A command by POST names its ``session``.

    `decode_command` ensures that ``action`` is an `Action`.
    """

    action: str | UnsetType = UNSET
    subjects: list[str] | UnsetType = UNSET
    id: CommandId | UnsetType = UNSET
    session: str | UnsetType = UNSET

    @property
    def patterns(self) -> list[str]:
        """The patterns of the command; empty for a ping."""
        return [] if isinstance(self.subjects, UnsetType) else self.subjects


class _Reserved(Struct, frozen=True, rename={"from_": "from"}):
    from_: msgspec.Raw | UnsetType = UNSET
    after: msgspec.Raw | UnsetType = UNSET


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
    """The reply to one command. ``active`` is true if the bridge's NATS server has confirmed every subscription."""

    id: CommandId | UnsetType = UNSET
    action: Action | UnsetType = UNSET
    success: bool
    code: str | UnsetType = UNSET
    message: str
    subjects: Sequence[str] | UnsetType = UNSET
    active: bool | UnsetType = UNSET


class Gap(Struct, kw_only=True, frozen=True, tag="gap"):
    """A certain or possible loss of messages of these subscriptions. ``lost`` is ``None`` if the number is unknown."""

    subjects: Sequence[str]
    lost: int | None
    reason: Literal["nats_reconnect", "slow_consumer", "internal"]


class Unsubscribed(Struct, kw_only=True, frozen=True, tag="unsubscribed"):
    """The end of subscriptions that the client didn't end."""

    subjects: Sequence[str]
    code: str
    message: str


class Status(Struct, kw_only=True, frozen=True, tag="status"):
    """A change in the state of the connection to NATS."""

    nats: NatsState


class Heartbeat(Struct, frozen=True, tag="heartbeat"):
    """A frame sent if there was no other for one heartbeat interval."""


class Close(Struct, kw_only=True, frozen=True, tag="close"):
    """The last frame of a session that the bridge ends. ``retry`` is in milliseconds."""

    code: int
    reason: str
    reconnect: bool
    retry: int | UnsetType = UNSET


Frame: TypeAlias = Welcome | Reply | Gap | Unsubscribed | Status | Heartbeat | Close

encode = msgspec.json.Encoder().encode

_command_decoder = msgspec.json.Decoder(Command)
_reserved_decoder = msgspec.json.Decoder(_Reserved)
_any_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def event_name(frame: Frame) -> str:
    """Return the ``type`` of the frame, which is its event name on an event stream."""
    return str(frame.__struct_config__.tag)


def decode_command(data: bytes, action: Action | None = None) -> Command:
    """Decode a command from JSON.

    Args:
        data: The JSON text.
        action: The action that the path of a POST implies.

    Raises:
        InvalidCommand: The data isn't a JSON object, a field has the wrong type, or the action is unknown or
            contradicts the path.
        UnsupportedCommand: The protocol reserves the action or a field.
    """
    try:
        command = _command_decoder.decode(data)
        reserved = _reserved_decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidCommand(f"Not a valid command: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidCommand("Not a valid command: malformed JSON") from None
    except RecursionError:
        # msgspec raises it instead of a DecodeError at about 1,000 levels.
        raise InvalidCommand("Not a valid command: nested too deeply") from None
    if reserved.from_ is not UNSET or reserved.after is not UNSET:
        raise UnsupportedCommand("Not supported here: 'from' and 'after'")
    return _checked(command, action)


def check_query(query: Mapping[str, Sequence[str]]) -> None:
    """Check the query with which a session begins, on any transport.

    Raises:
        UnsupportedQuery: The protocol reserves a parameter, ``protocol`` isn't 1, or a parameter looks like a wrong
            spelling of ``subjects``. Other unknown parameters are ignored.
    """
    wrong = next((name for name in query if name != "subjects" and _LIKE_SUBJECTS.fullmatch(name)), None)
    if wrong is not None:
        raise UnsupportedQuery(f"The parameter is 'subjects', not {wrong!r}: one for each subject")
    if query.get("protocol", ["1"]) != [str(PROTOCOL_VERSION)]:
        raise UnsupportedQuery(f"protocol must be {PROTOCOL_VERSION}, the version that this server supports")
    if any(field in query for field in _RESERVED_FIELDS):
        raise UnsupportedQuery("Not supported here: 'from' and 'after'")


def check_websocket_query(query: Mapping[str, Sequence[str]]) -> None:
    """Check the query of a WebSocket.

    Raises:
        UnsupportedQuery: As in `check_query`, or it has ``subjects``, which would have no effect.
    """
    check_query(query)
    if "subjects" in query:
        raise UnsupportedQuery("'subjects' is a parameter of /events; on a WebSocket send a subscribe command")


def query_command(query: Mapping[str, Sequence[str]]) -> Command | None:
    """Return the subscribe command in the query of an event stream, or ``None`` if it has no subjects.

    Raises:
        UnsupportedQuery: As in `check_query`, or a subject has a comma.
    """
    check_query(query)
    patterns = query.get("subjects")
    if any("," in pattern for pattern in patterns or ()):
        # A subject may contain a comma, but this one most likely separates two subjects.
        raise UnsupportedQuery(
            "A subject in the query must not have a comma: one parameter 'subjects' for each subject. "
            "Send a command to subscribe to a subject with a comma"
        )
    return Command(action="subscribe", subjects=list(patterns)) if patterns else None


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


def jittered_milliseconds(seconds: float) -> int:
    """Return a random number of milliseconds, from once to twice the seconds, so that clients spread out."""
    return int(random.uniform(1, 2) * seconds * 1000)


def success_reply(command: Command, patterns: Sequence[str], active: bool | UnsetType = UNSET) -> Reply:
    """Return the reply to a subscribe or an unsubscribe that was executed."""
    action: Any = command.action
    done = "connected to" if action == "subscribe" else "disconnected from"
    message = f"Successfully {done} events: {quoted(patterns)}"
    return Reply(id=command.id, action=action, success=True, message=message, subjects=patterns, active=active)


def quoted(patterns: Iterable[str]) -> str:
    """Return the patterns for a message to people."""
    return ", ".join(f"'{pattern}'" for pattern in patterns)


def failure_reply(
    error: BridgeError,
    action: str | UnsetType = UNSET,
    id: CommandId | UnsetType = UNSET,  # noqa: A002 - the name on the wire
) -> Reply:
    """Return the failed reply for an error."""
    known: Any = action if action in _ACTIONS else UNSET
    return Reply(
        id=id,
        action=known,
        success=False,
        code=error.code,
        message=error.message,
        subjects=error.subjects or UNSET,
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


def _checked(command: Command, path_action: Action | None) -> Command:
    action = command.action if command.action is not UNSET else path_action or "subscribe"
    if path_action is not None and action != path_action:
        raise InvalidCommand(f"Not a valid command: the action is not '{path_action}'")
    if action in _RESERVED_ACTIONS:
        raise UnsupportedCommand(f"Not supported here: the action '{action}'")
    if action not in _ACTIONS:
        raise InvalidCommand("Not a valid command: unknown action")
    if action != "ping" and not command.subjects:
        raise InvalidCommand("Not a valid command: 'subjects' is missing or empty")
    return msgspec.structs.replace(command, action=action)
