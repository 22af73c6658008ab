"""The ``from`` and ``after`` of a subscribe: which stored messages a client gets before the live ones."""

import re
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ..errors import InvalidCommand

__all__ = ["MAX_ID_CHARACTERS", "From", "Last", "Start", "StartName", "possible_id", "read_after", "read_from"]

MAX_ID_CHARACTERS = 128
"""The most characters of the ``id`` of a message."""

StartName: TypeAlias = Literal["new", "all", "last_per_subject"]


class Last(Struct, frozen=True, forbid_unknown_fields=True):
    """The last messages of each pattern, as JSON: ``{"last": 10}``."""

    last: Annotated[int, Meta(ge=1)]


From: TypeAlias = StartName | Last
"""The value of ``from``, which is encoded as clients write it."""


class Start(Struct, frozen=True):
    """The first message of a subscription. ``count`` is the number of messages of each pattern, for "last" only."""

    kind: Literal["new", "all", "last_per_subject", "last"]
    count: int = 0

    @classmethod
    def of(cls, value: From) -> "Start":
        """Return the start that a ``from`` names."""
        return cls("last", value.last) if isinstance(value, Last) else cls(value)


_ID = re.compile(rf"[A-Za-z0-9._~-]{{1,{MAX_ID_CHARACTERS}}}", re.ASCII)
_NAMES: dict[str, StartName] = {"new": "new", "all": "all", "last_per_subject": "last_per_subject"}

_from_decoder: msgspec.json.Decoder[From] = msgspec.json.Decoder(From)
_string_decoder = msgspec.json.Decoder(str)


def read_from(text: str | bytes | msgspec.Raw) -> From:
    """Return the value of a ``from``, which is JSON. In a query, which is a string, a name needs no quotes.

    Raises:
        InvalidCommand: It is something else.
    """
    if isinstance(text, str):
        if text in _NAMES:
            return _NAMES[text]
        text = text.encode("utf-8", "replace")
    try:
        return _from_decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidCommand(
            "Not a valid command: 'from' must be 'new', 'all', 'last_per_subject' or an object with the number 'last'"
        ) from None


def read_after(document: bytes | msgspec.Raw) -> str:
    """Return the value of an ``after``, which is JSON, as `possible_id` does.

    Raises:
        InvalidCommand: It isn't a string.
    """
    try:
        return possible_id(_string_decoder.decode(document))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidCommand("Not a valid command: 'after' must be a string") from None


def possible_id(text: str) -> str:
    """Return a string that may be an ``id``, or an empty one, so that nothing else is kept or sent on."""
    return text if _ID.fullmatch(text) else ""
