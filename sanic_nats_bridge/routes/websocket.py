"""``/stream``: commands up, frames down, one JSON object in each text frame."""

import contextlib
import logging

from sanic import Blueprint, Request, Websocket
from sanic.exceptions import WebsocketClosed

from ..errors import BridgeError, CommandUnsupported, InternalError, SizeLimit
from ..protocol.messages import Reply, check_query, decode_command, failure, identify
from ..sessions.registry import Sessions
from ..sessions.session import Session
from ..transports.auto import WebSocketDoor, websocket_outlet
from ..transports.base import CLOSE_SECONDS
from .authorization import permit
from .replies import outcome
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
                await _serve(session, outlet, sessions)
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


async def _serve(session: Session, outlet: WebSocketDoor, sessions: Sessions) -> None:
    max_bytes = sessions.settings.max_command_bytes
    # Ends by WebsocketClosed, or by cancellation, when the client has closed.
    while not session.closed:
        received = await outlet.recv()
        await session.caught_up()
        if session.closed:
            break
        data = received.encode() if isinstance(received, str) else bytes(received)
        if len(data) > max_bytes:
            error = SizeLimit(f"A command is at most {max_bytes} bytes")
            sessions.count_refused(error)
            session.fail(error)
        else:
            reply, refusal = await _answer(session, received, data)
            sessions.count_refused(refusal)
            session.send(reply)
    await _read_to_the_end(outlet)


async def _answer(session: Session, received: str | bytes, data: bytes) -> tuple[Reply, BridgeError | None]:
    try:
        session.count_command()
        if not isinstance(received, str):
            raise CommandUnsupported("Binary frames are not supported")
        command = decode_command(data)
    except BridgeError as error:
        session.count_refusal(error)
        return failure(error, id=identify(data)), error
    reply, refusal = await outcome(session.handle(command), command.action, command.id)
    if refusal is not None:
        session.count_refusal(refusal)
    return reply, refusal


async def _read_to_the_end(outlet: WebSocketDoor) -> None:
    """Let the client's Close arrive behind what it had sent before; the outlet bounds the wait."""
    with contextlib.suppress(WebsocketClosed):
        while True:
            await outlet.recv()
