"""The messages: JSON documents of exact size that contain their number and the time of sending.

A server may wrap a document, as long as its bytes arrive unchanged.
"""

import re

__all__ = ["MARKER", "SMALLEST_BYTES", "document", "find_stamps"]

MARKER = b"~" * 20
"""A string that each document contains once, and other output of a server doesn't. Equal bytes are found fastest."""

_DOCUMENT = b'{"%b":"%08d%018d%b"}'
# A server that serializes the JSON again adds a space.
_STAMP = re.compile(MARKER + rb'": ?"(\d{8})(\d{18})')
_STAMP_BYTES = len(MARKER) + len('": "') + 8 + 18

SMALLEST_BYTES = len(_DOCUMENT % (MARKER, 0, 0, b""))


def document(number: int, sent: int, size: int) -> bytes:
    """Return a message of ``size`` bytes that was sent at this time (CLOCK_MONOTONIC, in nanoseconds)."""
    return _DOCUMENT % (MARKER, number, sent, b"." * (size - SMALLEST_BYTES))


def find_stamps(data: bytes) -> tuple[list[tuple[int, int]], bytes]:
    """Return the number and the sending time of each message in the data, and a possible beginning of another one."""
    found = []
    end = 0
    for stamp in _STAMP.finditer(data):
        found.append((int(stamp[1]), int(stamp[2])))
        end = stamp.end()
    return found, data[max(end, len(data) - _STAMP_BYTES + 1) :]
