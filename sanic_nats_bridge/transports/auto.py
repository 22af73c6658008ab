"""Choice of the transport by the server through which a request came: Sanic's own or an ASGI server."""

import contextlib
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from sanic import HTTPResponse, Request, Websocket
from sanic.models.asgi import MockTransport

from ..settings import Settings
from .asgi import AsgiSseTransport, AsgiWebSocketTransport
from .sanic import SanicHttp10SseTransport, SanicSseTransport, SanicWebSocketTransport, begin_http10_stream

__all__ = [
    "SseTransport",
    "WebSocketTransport",
    "begin_stream",
    "is_asgi",
    "is_misdirected",
    "sse_transport",
    "websocket_transport",
]

WebSocketTransport: TypeAlias = SanicWebSocketTransport | AsgiWebSocketTransport
SseTransport: TypeAlias = SanicSseTransport | AsgiSseTransport


def is_asgi(request: Request) -> bool:
    """Return whether the request came through an ASGI server."""
    return isinstance(request.transport, MockTransport)


def is_misdirected(request: Request) -> bool:
    """Return whether the request came through Sanic's own HTTP/3, which the bridge doesn't support.

    Sanic's HTTP/3 adds a header to streams that HTTP/3 forbids. It doesn't report a client's disconnect, and it runs a
    handler before the body of its request has arrived.
    """
    return request.version == "3" and not is_asgi(request)


def websocket_transport(
    request: Request, websocket: Websocket, settings: Settings
) -> AbstractAsyncContextManager[WebSocketTransport]:
    """Return a context manager with the transport of a WebSocket, in which the handler serves the client."""
    if is_asgi(request):
        return AsgiWebSocketTransport(request, settings).serving()
    return contextlib.nullcontext(SanicWebSocketTransport(websocket, settings))


async def begin_stream(request: Request, response: HTTPResponse) -> None:
    """Send the head of an event stream."""
    if _is_http10(request):
        await begin_http10_stream(request, response)
    else:
        await response.send(b"")


def sse_transport(
    request: Request, response: HTTPResponse, settings: Settings
) -> AbstractAsyncContextManager[SseTransport]:
    """Return a context manager with the transport of an event stream, in which the handler serves the client.

    The response must have begun, by `begin_stream`.
    """
    if is_asgi(request):
        return AsgiSseTransport(request, response, settings).serving()
    kind = SanicHttp10SseTransport if _is_http10(request) else SanicSseTransport
    return kind(request, settings).serving()


def _is_http10(request: Request) -> bool:
    """Return whether an HTTP/1.0 client is connected to Sanic's own server. An ASGI server frames the body itself."""
    return request.version == "1.0" and not is_asgi(request)
