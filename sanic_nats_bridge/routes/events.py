"""``/events``: the frames as Server-Sent Events (WHATWG HTML, section 9.2).

What is wrong for good is an HTTP error, which stops an EventSource for ever; what will pass is said
in a stream with status 200, for it gives up on any other.
"""

import logging
from typing import Final

from sanic import Blueprint, HTTPResponse, Request
from sanic_ext import openapi

from ..errors import BridgeError, InternalError, WorkerFull
from ..outlet import EventStreamOutlet
from ..protocol import Command, Reply, failure, query_command
from ..session import Session
from ..sessions import Sessions
from .commands import refused

__all__ = ["add_event_route"]

logger = logging.getLogger("sanic.root.nats_bridge")

_CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def add_event_route(blueprint: Blueprint, sessions: Sessions) -> None:
    """Serve event streams on the blueprint."""

    async def events(request: Request) -> HTTPResponse | None:
        try:
            command = query_command(dict(request.get_args(keep_blank_values=True)))
            if command is not None:
                sessions.admission.admit(command.subjects or [])
        except BridgeError as error:
            return refused(error, failure(error, "subscribe"))
        if request.method == "HEAD":
            return HTTPResponse(b"", 200, dict(_HEADERS), _CONTENT_TYPE)
        response = await request.respond(headers=dict(_HEADERS), content_type=_CONTENT_TYPE)
        await response.send(b"")
        await _stream(request, sessions, command)
        return None

    openapi.exclude()(events)
    # HEAD by name: sanic-ext would run the stream for it.
    blueprint.add_route(events, "/events", methods=["GET", "HEAD"], name="events")


async def _stream(request: Request, sessions: Sessions, command: Command | None) -> None:
    outlet = EventStreamOutlet(request)
    try:
        session = sessions.open(outlet)
    except WorkerFull as error:
        outlet.finish(sessions.refusal(error))
        await outlet.wait_finished()
        return
    try:
        if command is not None:
            session.send(await _answer(session, command))
        await outlet.wait_finished()
    finally:
        session.gone(outlet.close_code)


async def _answer(session: Session, command: Command) -> Reply:
    try:
        return await session.handle(command)
    except BridgeError as error:
        return failure(error, command.action)
    except Exception:
        logger.exception("Fault in the subscriptions of an event stream")
        return failure(InternalError("Internal error"), command.action)
