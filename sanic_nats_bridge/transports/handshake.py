"""What is wrong with a WebSocket's handshake that Sanic's own server would not stand well."""

import re
from http import HTTPStatus
from typing import Final

from sanic import Request
from sanic.server.protocols.websocket_protocol import WebSocketProtocol
from websockets.server import ServerProtocol

from ..errors import InvalidCommand

__all__ = ["check_handshake", "check_opening"]

_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, section 5.5


def check_handshake(request: Request) -> None:
    """Let a request pass, whatever its route, unless it asks for a WebSocket in a bad way.

    Sanic has no timeout for what asks for a WebSocket, but waits for its body; and what `websockets` cannot
    read it writes into the log, whole cookies too.

    Raises:
        InvalidCommand: It has a body, or a header that cannot be read.
    """
    headers = request.headers
    if headers.upgrade.lower() != "websocket":
        return
    if "transfer-encoding" in headers or headers.getone("content-length", "0") != "0":
        raise InvalidCommand("A WebSocket's handshake has no body")
    if not all(map(_FIELD_VALUE.fullmatch, headers.values())):
        raise InvalidCommand("A header cannot be read")


def check_opening(request: Request) -> None:
    """Let a request that has come to a WebSocket's route pass if Sanic can open one for it.

    Whatever asks for none, and whatever asks in a way that `websockets` refuses, Sanic would log as an error,
    with a traceback.

    Raises:
        InvalidCommand: It cannot.
    """
    answer = ServerProtocol().accept(WebSocketProtocol.sanic_request_to_ws_request(request))
    if answer.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        raise InvalidCommand("Not a WebSocket's handshake")
