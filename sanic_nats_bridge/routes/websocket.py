"""``/stream``: commands up, frames down, one JSON object in each text frame."""

import contextlib
import logging

from sanic import Blueprint, Request, Websocket
from sanic.exceptions import WebsocketClosed

from ..errors import BridgeError, InternalError
from ..protocol.messages import check_query
from ..sessions.registry import Sessions
from ..sessions.session import Session
from ..transports.auto import WebSocketDoor, websocket_outlet
from ..transports.base import CLOSE_SECONDS
from .authorization import permit
from .request_guard import Doorkeeper

__all__ = ["add_websocket_route"]

logger = logging.getLogger("sanic.root.nats_bridge")


def add_websocket_route(blueprint: Blueprint, sessions: Sessions, doorkeeper: Doorkeeper) -> None:
    """Serve WebSockets on the blueprint."""

    async def stream(request: Request, ws: Websocket) -> None:
        async with websocket_outlet(request, ws, sessions.settings) as outlet:
            session = await _admitted(request, outlet, sessions, doorkeeper)
            if session is None:
                await _read_to_the_end(outlet)
                return
            try:
                await _serve(session, outlet)
            except WebsocketClosed:
                pass
            except Exception:
                logger.exception("Fault in a WebSocket session")
                session.fail(InternalError("Internal error"))
            finally:
                session.gone(outlet.close_code)

    blueprint.add_websocket_route(stream, "/stream", name="stream")


async def _admitted(
    request: Request, outlet: WebSocketDoor, sessions: Sessions, doorkeeper: Doorkeeper
) -> Session | None:
    """A new session; ``None`` where there is none, as the client was told: scripts can read a close code."""
    with sessions.arrivals.arriving() as arrival:
        refusal = sessions.refusal()
        try:
            if refusal is None:
                doorkeeper.admit(request)
                check_query(dict(request.get_args(keep_blank_values=True)))
                return sessions.open(outlet, await permit(request, sessions), arrival)
        except BridgeError as error:
            refusal = sessions.rejection(error)
    outlet.finish(refusal, CLOSE_SECONDS)
    return None


async def _serve(session: Session, outlet: WebSocketDoor) -> None:
    # Ends by WebsocketClosed, or by cancellation, when the client has closed.
    while not session.closed:
        received = await outlet.recv()
        await session.caught_up()
        if session.closed:
            break
        outcome = await session.execute(received)
        session.send(outcome.reply)
    await _read_to_the_end(outlet)


async def _read_to_the_end(outlet: WebSocketDoor) -> None:
    """Let the client's Close arrive behind what it had sent before; the outlet bounds the wait."""
    with contextlib.suppress(WebsocketClosed):
        while True:
            await outlet.recv()
