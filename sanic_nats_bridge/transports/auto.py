"""Which way leads back to a client: that of the server through which its request came."""

import contextlib
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from sanic import HTTPResponse, Request, Websocket
from sanic.models.asgi import MockTransport

from ..settings import Settings
from .asgi import QueuedEventStreamOutlet, QueuedWebSocketOutlet
from .sanic import EventStreamOutlet, WebSocketOutlet

__all__ = ["EventStreamDoor", "WebSocketDoor", "event_stream_outlet", "is_asgi", "is_misdirected", "websocket_outlet"]

WebSocketDoor: TypeAlias = WebSocketOutlet | QueuedWebSocketOutlet
EventStreamDoor: TypeAlias = EventStreamOutlet | QueuedEventStreamOutlet


def is_asgi(request: Request) -> bool:
    """Whether it came by an ASGI server."""
    return isinstance(request.transport, MockTransport)


def is_misdirected(request: Request) -> bool:
    """Whether it came by Sanic's own HTTP/3, over which the bridge cannot serve.

    That gives a stream a header that HTTP/3 forbids, never tells that a client has gone, and runs a handler
    before the body of its request is there.
    """
    return request.version == "3" and not is_asgi(request)


def websocket_outlet(
    request: Request, websocket: Websocket, settings: Settings
) -> AbstractAsyncContextManager[WebSocketDoor]:
    """The way to the client of a WebSocket; the handler serves it in this context."""
    if is_asgi(request):
        return QueuedWebSocketOutlet(request, settings).serving()
    return contextlib.nullcontext(WebSocketOutlet(websocket, settings))


def event_stream_outlet(
    request: Request, response: HTTPResponse, settings: Settings
) -> AbstractAsyncContextManager[EventStreamDoor]:
    """The way to the client of an event stream whose response has begun; the handler serves it in this context."""
    if is_asgi(request):
        return QueuedEventStreamOutlet(request, response, settings).serving()
    return contextlib.nullcontext(EventStreamOutlet(request, settings))
