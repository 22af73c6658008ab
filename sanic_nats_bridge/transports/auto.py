"""Which way leads back to a client: that of the server through which its request came."""

import contextlib
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from sanic import HTTPResponse, Request, Websocket
from sanic.models.asgi import MockTransport

from ..settings import Settings
from .asgi import AsgiSseTransport, AsgiWebSocketTransport
from .sanic import SanicSseTransport, SanicWebSocketTransport

__all__ = ["SseTransport", "WebSocketTransport", "is_asgi", "is_misdirected", "sse_transport", "websocket_transport"]

WebSocketTransport: TypeAlias = SanicWebSocketTransport | AsgiWebSocketTransport
SseTransport: TypeAlias = SanicSseTransport | AsgiSseTransport


def is_asgi(request: Request) -> bool:
    """Whether it came by an ASGI server."""
    return isinstance(request.transport, MockTransport)


def is_misdirected(request: Request) -> bool:
    """Whether it came by Sanic's own HTTP/3, over which the bridge cannot serve.

    That gives a stream a header that HTTP/3 forbids, never tells that a client has gone, and runs a handler
    before the body of its request is there.
    """
    return request.version == "3" and not is_asgi(request)


def websocket_transport(
    request: Request, websocket: Websocket, settings: Settings
) -> AbstractAsyncContextManager[WebSocketTransport]:
    """The way to the client of a WebSocket; the handler serves it in this context."""
    if is_asgi(request):
        return AsgiWebSocketTransport(request, settings).serving()
    return contextlib.nullcontext(SanicWebSocketTransport(websocket, settings))


def sse_transport(
    request: Request, response: HTTPResponse, settings: Settings
) -> AbstractAsyncContextManager[SseTransport]:
    """The way to the client of an event stream whose response has begun; the handler serves it in this context."""
    if is_asgi(request):
        return AsgiSseTransport(request, response, settings).serving()
    return contextlib.nullcontext(SanicSseTransport(request, settings))
