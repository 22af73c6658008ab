"""``/events``: the frames as Server-Sent Events (WHATWG HTML, section 9.2).

What is wrong for good is an HTTP error, which stops an EventSource for ever; what will pass is said
in a stream with status 200, for it gives up on any other.
"""

from typing import Final

from sanic import Blueprint, HTTPResponse, Request
from sanic_ext import openapi

from ..auth.permissions import Permissions
from ..errors import BridgeError, InternalError, UnreachableSession
from ..protocol.messages import Close, Command, query_command
from ..sessions.pending import PendingConnection
from ..sessions.registry import SessionRegistry
from ..transports.auto import SseTransport, is_misdirected, sse_transport
from ..transports.base import CLOSE_SECONDS
from .authorization import permit
from .cors import CrossOrigin
from .replies import misdirected, refusal_response

__all__ = ["add_event_route"]

_CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def add_event_route(blueprint: Blueprint, sessions: SessionRegistry, cross_origin: CrossOrigin) -> None:
    """Serve event streams on the blueprint."""

    async def events(request: Request) -> HTTPResponse | None:
        if is_misdirected(request):
            return misdirected("subscribe")
        with sessions.pending_connections.connecting() as pending:
            try:
                beginning = await _beginning(request, sessions)
            except BridgeError as error:
                sessions.count_rejected(error)
                return refusal_response(error, "subscribe")
            if request.method == "HEAD":
                return HTTPResponse(b"", 200, dict(_HEADERS), _CONTENT_TYPE)
            response = await request.respond(headers=dict(_HEADERS), content_type=_CONTENT_TYPE)
            cross_origin.mark(request, response)
            await response.send(b"")
            async with sse_transport(request, response, sessions.settings) as transport:
                if isinstance(beginning, Close):
                    transport.close(beginning, CLOSE_SECONDS)
                    await transport.wait_finished()
                else:
                    await _stream(transport, sessions, pending, *beginning)
        return None

    openapi.exclude()(events)
    # HEAD by name: sanic-ext would run the stream for it.
    blueprint.add_route(events, "/events", methods=["GET", "HEAD"], name="events")


async def _beginning(request: Request, sessions: SessionRegistry) -> tuple[Permissions, Command | None] | Close:
    """What a session begins with; or its end, where what is in the way will pass.

    Raises:
        BridgeError: What is wrong is so for good.
    """
    command = query_command(dict(request.get_args(keep_blank_values=True)))
    patterns = [] if command is None else sessions.policy.validate(command.patterns)
    # While there is no room, the app is not asked who the client is either.
    refusal = sessions.rejection_reason()
    if refusal is not None:
        return refusal
    try:
        permissions = await permit(request, sessions)
    except (InternalError, UnreachableSession) as error:
        return sessions.close_frame_for(error)
    sessions.policy.authorize(permissions, patterns)
    return permissions, command


async def _stream(
    transport: SseTransport,
    sessions: SessionRegistry,
    pending: PendingConnection,
    permissions: Permissions,
    command: Command | None,
) -> None:
    session = sessions.open(transport, permissions, pending)
    if session is None:
        await transport.wait_finished()
        return
    try:
        if command is not None:
            # The query was checked already, so this is no command of which a client could send many.
            outcome = await session.execute(command, rate_limited=False)
            session.send(outcome.reply)
        await transport.wait_finished()
    finally:
        session.connection_lost(transport.close_code)
