"""The messages: JSON documents of exact size that tell their number and when they were sent.

A server may wrap a document in whatever it likes, as long as its bytes arrive as they are.
"""

import re
from typing import Final

__all__ = ["MARKER", "SMALLEST_BYTES", "document", "stamps"]

MARKER: Final = b"~" * 20
"""Stands in each document once, and in nothing else that a server sends; of one byte, it is found fastest."""

_DOCUMENT: Final = b'{"%b":"%08d%018d%b"}'
# The blank is of a server that makes the JSON anew.
_STAMP: Final = re.compile(MARKER + rb'": ?"(\d{8})(\d{18})')
_STAMP_BYTES: Final = len(MARKER) + len('": "') + 8 + 18

SMALLEST_BYTES: Final = len(_DOCUMENT % (MARKER, 0, 0, b""))


def document(number: int, sent: int, size: int) -> bytes:
    """One message of this many bytes; ``sent`` is CLOCK_MONOTONIC in nanoseconds."""
    return _DOCUMENT % (MARKER, number, sent, b"." * (size - SMALLEST_BYTES))


def stamps(data: bytes) -> tuple[list[tuple[int, int]], bytes]:
    """Number and send time of each message in the data, and what may be the beginning of one more."""
    found = []
    end = 0
    for stamp in _STAMP.finditer(data):
        found.append((int(stamp[1]), int(stamp[2])))
        end = stamp.end()
    return found, data[max(end, len(data) - _STAMP_BYTES + 1) :]
