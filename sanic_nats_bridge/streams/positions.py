"""Positions in streams, which clients receive as opaque ids.

An id has one part for each stream: the key of the stream, and the sequence and the time of a message in it. All
numbers have base 36. An id with four parts has at most 128 characters of ``[A-Za-z0-9._~-]``.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["MAX_PARTS", "MAX_POSITION_LENGTH", "Point", "PointEncoder", "decode_position", "join_parts", "same_name",
           "stream_key"]  # fmt: skip

MAX_PARTS = 4
"""The largest number of streams in an id."""
MAX_POSITION_LENGTH = 128
"""The largest number of characters of an id."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASE = 36
_TWO_DIGITS = _BASE * _BASE
_PADDED = tuple(first + second for first in _DIGITS for second in _DIGITS)
_PLAIN = tuple(pair.removeprefix("0") for pair in _PADDED)
_NAME_LENGTH = 5
_CREATED_LENGTH = 4
# A sequence of 11 digits exceeds 2**56, and a time of 9 digits the year 5000.
_PART = re.compile(r"([0-9a-z]{9})\.(0|[1-9a-z][0-9a-z]{0,10})\.(0|[1-9a-z][0-9a-z]{0,8})").fullmatch


class Point(NamedTuple):
    """The position of a message in a stream: its sequence, and its time in milliseconds since 1970."""

    seq: int
    time: int


def stream_key(name: str, created: str) -> str:
    """Return the 9 characters that represent a stream in ids.

    Args:
        name: The name of the stream.
        created: The time of its creation, as JetStream writes it.
    """
    return _hashed(name, _NAME_LENGTH) + _hashed(created, _CREATED_LENGTH)


def _hashed(text: str, length: int) -> str:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return _base36(int.from_bytes(digest, "big") % _BASE**length).rjust(length, "0")


def same_name(key: str, other: str) -> bool:
    """Return whether two keys are of streams with the same name. The stream was recreated if they differ."""
    return key[:_NAME_LENGTH] == other[:_NAME_LENGTH]


def decode_position(text: str) -> dict[str, Point] | None:
    """Return the points of an id by the keys of their streams; ``None`` if it is unreadable.

    A client may send any string, so nothing in an id is trusted.
    """
    if len(text) > MAX_POSITION_LENGTH:
        return None
    parts = text.split("~")
    points: dict[str, Point] = {}
    for part in parts:
        found = _PART(part)
        if found is None:
            return None
        points[found[1]] = Point(int(found[2], _BASE), int(found[3], _BASE))
    return points if len(points) == len(parts) <= MAX_PARTS else None


def join_parts(parts: Iterable[str]) -> str:
    """Return an id of several parts."""
    return "~".join(parts)


class PointEncoder:
    """The encoder for the points of one stream.

    Points that follow each other differ in their last digits only. The other digits are kept, and the last two are
    looked up. The more messages in a second, the more have the time of the one before.

    Args:
        key: The key of the stream.
    """

    __slots__ = (
        "_key",
        "_seq_base",
        "_seq_digits",
        "_seq_head",
        "_time",
        "_time_base",
        "_time_digits",
        "_time_head",
        "_time_text",
    )

    def __init__(self, key: str) -> None:
        self._key = key
        self._time = -1
        self._time_text = ""
        self._move_seq(0)
        self._move_time(0)

    def encode(self, seq: int, time: int) -> str:
        """Return the part of an id for a message. ``time`` is in milliseconds since 1970."""
        seq_rest = seq - self._seq_base
        if not 0 <= seq_rest < _TWO_DIGITS:
            seq_rest = self._move_seq(seq)
        if time != self._time:
            time_rest = time - self._time_base
            if not 0 <= time_rest < _TWO_DIGITS:
                time_rest = self._move_time(time)
            self._time = time
            self._time_text = f"{self._time_head}{self._time_digits[time_rest]}"
        return f"{self._seq_head}{self._seq_digits[seq_rest]}{self._time_text}"

    def _move_seq(self, seq: int) -> int:
        high, low = divmod(seq, _TWO_DIGITS)
        self._seq_base = seq - low
        self._seq_digits = _PADDED if high else _PLAIN
        self._seq_head = f"{self._key}.{_base36(high) if high else ''}"
        return low

    def _move_time(self, time: int) -> int:
        high, low = divmod(time, _TWO_DIGITS)
        self._time_base = time - low
        self._time_digits = _PADDED if high else _PLAIN
        self._time_head = f".{_base36(high) if high else ''}"
        return low


def _base36(number: int) -> str:
    digits = _PADDED[number % _TWO_DIGITS]
    while number := number // _TWO_DIGITS:
        digits = _PADDED[number % _TWO_DIGITS] + digits
    return digits.lstrip("0") or "0"
