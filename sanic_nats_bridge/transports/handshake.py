"""Checks of a WebSocket handshake that Sanic's own server doesn't make."""

import re
from http import HTTPStatus

from sanic import Request
from sanic.server.protocols.websocket_protocol import WebSocketProtocol
from websockets.server import ServerProtocol

from ..errors import InvalidCommand

__all__ = ["check_handshake", "check_opening"]

_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, section 5.5


def check_handshake(request: Request) -> None:
    """Reject an invalid WebSocket handshake on any route; accept any other request.

    Sanic waits for the body of such a request without a timeout. `websockets` logs headers that it can't parse, whole
    cookies included.

    Raises:
        InvalidCommand: The handshake has a body or an invalid header.
    """
    headers = request.headers
    if headers.upgrade.lower() != "websocket":
        return
    if "transfer-encoding" in headers or headers.getone("content-length", "0") != "0":
        raise InvalidCommand("A WebSocket handshake must not have a body")
    if not all(map(_FIELD_VALUE.fullmatch, headers.values())):
        raise InvalidCommand("A header has invalid characters")


def check_opening(request: Request) -> None:
    """Reject a request to a WebSocket route from which Sanic can't open a WebSocket.

    Sanic would log it as an error with a traceback.

    Raises:
        InvalidCommand: The request isn't a WebSocket handshake, or `websockets` rejects it.
    """
    answer = ServerProtocol().accept(WebSocketProtocol.sanic_request_to_ws_request(request))
    if answer.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        raise InvalidCommand("Not a valid WebSocket handshake")
