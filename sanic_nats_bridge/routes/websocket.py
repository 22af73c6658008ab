"""``/stream``: commands and frames over a WebSocket, one JSON object in each text frame."""

import contextlib

from sanic import Blueprint, HTTPResponse, Request, Websocket
from sanic.exceptions import WebsocketClosed
from sanic_ext import openapi

from ..errors import BridgeError, InternalError, InvalidCommand, SizeLimitExceeded
from ..log_limits import limited_logger
from ..protocol.messages import check_websocket_query
from ..sessions.registry import SessionRegistry
from ..sessions.session import Session
from ..transports.auto import WebSocketTransport, is_asgi, websocket_transport
from ..transports.base import CLOSE_SECONDS
from .authorization import get_permissions
from .client_address import client_address
from .replies import rejection_response
from .request_guard import RequestGuard

__all__ = ["add_websocket_route"]

logger = limited_logger()


def add_websocket_route(blueprint: Blueprint, sessions: SessionRegistry, guard: RequestGuard) -> None:
    """Serve WebSockets on the blueprint."""

    async def stream(request: Request, ws: Websocket) -> None:
        async with websocket_transport(request, ws, sessions.settings) as transport:
            session = await _open_session(request, transport, sessions, guard)
            if session is None:
                await _receive_until_closed(transport)
                return
            try:
                await _serve(session, transport)
            except WebsocketClosed:
                pass
            except Exception:
                logger.exception("Internal error in a WebSocket session; it was closed. Please report this traceback")
                session.close_with_error(InternalError("Internal error"))
            finally:
                session.connection_lost(transport.close_code)

    @openapi.exclude()
    async def head(request: Request) -> HTTPResponse:
        return rejection_response(InvalidCommand("Not a valid WebSocket handshake"), "stream")

    blueprint.add_websocket_route(stream, "/stream", name="stream")
    # HEAD is named, because sanic-ext would otherwise open a WebSocket for it, and log the failure as an error.
    blueprint.add_route(head, "/stream", methods=["HEAD"], name="stream_head")


async def _open_session(
    request: Request, transport: WebSocketTransport, sessions: SessionRegistry, guard: RequestGuard
) -> Session | None:
    """Open a session; return ``None`` if the client was rejected.

    A rejection is a close code after the handshake, because scripts cannot read the status of a failed handshake.
    """
    with sessions.pending_connections.connecting(client_address(request)) as pending:
        try:
            if is_asgi(request):
                guard.check(request)
                guard.count(request)
            rejection = sessions.rejection_reason()
            if rejection is None:
                check_websocket_query(dict(request.get_args(keep_blank_values=True)))
                return sessions.open(transport, await get_permissions(request, sessions), pending)
        except BridgeError as error:
            sessions.count_rejected(error)
            rejection = sessions.close_frame_for(error)
    transport.close(rejection, CLOSE_SECONDS)
    return None


async def _serve(session: Session, transport: WebSocketTransport) -> None:
    # Ends by WebsocketClosed, or by cancellation, when the client has closed.
    await session.begin()
    while not session.closed:
        try:
            received = await transport.recv()
        except SizeLimitExceeded as error:
            await session.wait_until_writable()
            session.reject(error)
            break
        await session.wait_until_writable()
        if session.closed:
            break
        outcome = await session.receive(received)
        if outcome is not None:
            session.respond(outcome.reply)
    await _receive_until_closed(transport)


async def _receive_until_closed(transport: WebSocketTransport) -> None:
    """Discard frames until the client's Close frame. The transport limits the time."""
    with contextlib.suppress(WebsocketClosed):
        while True:
            with contextlib.suppress(SizeLimitExceeded):
                await transport.recv()
