"""The headers of the messages that clients publish: their names, their values, and the block in which they go to NATS.

A block is ``NATS/1.0`` and one line for each value (ADR-4). NATS and its clients split it at the line ends, so a line
end in a name or a value would add a header.
"""

import re
from collections.abc import Iterable
from typing import TypeAlias
from urllib.parse import quote

__all__ = [
    "MAX_HEADERS",
    "MAX_NAME_CHARACTERS",
    "MAX_VALUE_BYTES",
    "Header",
    "author",
    "header_block",
    "is_header_name",
    "is_header_value",
    "is_reserved_header",
]

MAX_HEADERS = 16
"""The most header values in one message of a client."""
MAX_NAME_CHARACTERS = 64
MAX_VALUE_BYTES = 1024

Header: TypeAlias = tuple[str, str]
"""The name of a header and one of its values."""

_TOKEN = re.compile(rf"[!#$%&'*+.^_`|~0-9A-Za-z-]{{1,{MAX_NAME_CHARACTERS}}}", re.ASCII)
_LINE_ENDS = re.compile(r"[\r\n\0]")
_VERSION = b"NATS/1.0\r\n"


def is_header_name(name: str) -> bool:
    """Return whether a string is a token of HTTP (RFC 9110, section 5.6.2) of at most 64 characters."""
    return _TOKEN.fullmatch(name) is not None


def is_header_value(value: str) -> bool:
    """Return whether a string stays within its line of a header block."""
    return _LINE_ENDS.search(value) is None


def is_reserved_header(name: str) -> bool:
    """Return whether NATS gives a header a meaning, so that no client may set it.

    Clients of NATS read ``Status`` and ``Description`` as those of the first line, as of a request without responders.
    """
    name = name.lower()
    return name.startswith("nats-") or name in ("status", "description")


def author(identity: str) -> str:
    """Return an identity as the value of a header: percent-encoded (RFC 3986, section 2).

    All but unreserved characters are encoded. A plus sign, for example, is a space for some decoders, and so another
    identity.
    """
    return quote(identity, safe="")


def header_block(headers: Iterable[Header]) -> bytes:
    """Return the header block of a message; empty if it has no headers.

    Raises:
        ValueError: A name isn't a token, or a value has a line end or a NUL. `header_block` is the last that looks at
            them, so it doesn't trust its callers.
    """
    lines = []
    for name, value in headers:
        if not is_header_name(name) or not is_header_value(value):
            raise ValueError("a header must have a token as name, and a value without CR, LF and NUL")
        lines.append(f"{name}: {value}\r\n")
    return b"%b%b\r\n" % (_VERSION, "".join(lines).encode()) if lines else b""
