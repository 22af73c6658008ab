"""What is wrong with a WebSocket's handshake that Sanic's own server would not stand well."""

import re
from typing import Final

from sanic import Request

from ..errors import CommandInvalid

__all__ = ["handshake_fault"]

_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, section 5.5


def handshake_fault(request: Request) -> CommandInvalid | None:
    """Why this request, which asks for a WebSocket at whatever route, is refused, if it is.

    Sanic has no timeout for what asks for a WebSocket, but waits for its body; and what `websockets` cannot
    read it writes into the log, whole cookies too.
    """
    headers = request.headers
    if headers.upgrade.lower() != "websocket":
        return None
    if "transfer-encoding" in headers or headers.getone("content-length", "0") != "0":
        return CommandInvalid("A WebSocket's handshake has no body")
    if not all(map(_FIELD_VALUE.fullmatch, headers.values())):
        return CommandInvalid("A header cannot be read")
    return None
