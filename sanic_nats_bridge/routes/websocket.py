"""``/stream``: commands up, frames down, one JSON object in each text frame."""

import contextlib
import logging

from sanic import Blueprint, Request, Websocket
from sanic.exceptions import WebsocketClosed

from ..errors import BridgeError, InternalError
from ..protocol.messages import check_query
from ..sessions.registry import SessionRegistry
from ..sessions.session import Session
from ..transports.auto import WebSocketTransport, websocket_transport
from ..transports.base import CLOSE_SECONDS
from .authorization import permit
from .request_guard import RequestGuard

__all__ = ["add_websocket_route"]

logger = logging.getLogger("sanic.root.nats_bridge")


def add_websocket_route(blueprint: Blueprint, sessions: SessionRegistry, guard: RequestGuard) -> None:
    """Serve WebSockets on the blueprint."""

    async def stream(request: Request, ws: Websocket) -> None:
        async with websocket_transport(request, ws, sessions.settings) as transport:
            session = await _admitted(request, transport, sessions, guard)
            if session is None:
                await _read_to_the_end(transport)
                return
            try:
                await _serve(session, transport)
            except WebsocketClosed:
                pass
            except Exception:
                logger.exception("Fault in a WebSocket session")
                session.fail(InternalError("Internal error"))
            finally:
                session.connection_lost(transport.close_code)

    blueprint.add_websocket_route(stream, "/stream", name="stream")


async def _admitted(
    request: Request, transport: WebSocketTransport, sessions: SessionRegistry, guard: RequestGuard
) -> Session | None:
    """A new session; ``None`` where there is none, as the client was told: scripts can read a close code."""
    with sessions.pending_connections.connecting() as pending:
        refusal = sessions.rejection_reason()
        try:
            if refusal is None:
                guard.check(request)
                check_query(dict(request.get_args(keep_blank_values=True)))
                return sessions.open(transport, await permit(request, sessions), pending)
        except BridgeError as error:
            refusal = sessions.close_frame_for(error)
    transport.close(refusal, CLOSE_SECONDS)
    return None


async def _serve(session: Session, transport: WebSocketTransport) -> None:
    # Ends by WebsocketClosed, or by cancellation, when the client has closed.
    while not session.closed:
        received = await transport.recv()
        await session.wait_until_writable()
        if session.closed:
            break
        outcome = await session.execute(received)
        session.send(outcome.reply)
    await _read_to_the_end(transport)


async def _read_to_the_end(transport: WebSocketTransport) -> None:
    """Let the client's Close arrive behind what it had sent before; the outlet bounds the wait."""
    with contextlib.suppress(WebsocketClosed):
        while True:
            await transport.recv()
