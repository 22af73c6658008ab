"""``/events``: frames as Server-Sent Events (WHATWG HTML, section 9.2).

A permanent error is an HTTP error. A temporary one is a ``close`` frame in a stream with status 200, because an
EventSource never reconnects after another status.
"""

from sanic import Blueprint, HTTPResponse, Request

from ..auth.permissions import Permissions
from ..errors import BridgeError, InternalError, RateLimitExceeded, UnreachableSession
from ..protocol.messages import Close, Command, query_command
from ..sessions.pending import PendingConnection
from ..sessions.registry import SessionRegistry
from ..sessions.starts import check_start
from ..transports.auto import SseTransport, begin_stream, is_misdirected, sse_transport
from ..transports.base import CLOSE_SECONDS
from .authorization import get_permissions
from .client_address import client_address
from .cors import CrossOrigin
from .openapi import describe_events
from .replies import misdirected, rejection_response
from .responses import response

__all__ = ["add_event_route"]

_OK = 200
_CONTENT_TYPE = "text/event-stream; charset=utf-8"
# A proxy that compresses the stream would hold its events back (RFC 9111, section 5.2.2.6).
_HEADERS = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no"}


def add_event_route(blueprint: Blueprint, sessions: SessionRegistry, cross_origin: CrossOrigin) -> None:
    """Serve event streams on the blueprint."""

    @describe_events(sessions.settings, history=bool(sessions.settings.streams))
    async def events(request: Request) -> HTTPResponse | None:
        if is_misdirected(request):
            return misdirected("subscribe")
        with sessions.pending_connections.connecting(client_address(request)) as pending:
            try:
                decision = await _decide(request, sessions, pending)
            except BridgeError as error:
                sessions.count_rejected(error)
                return rejection_response(error, "subscribe")
            opened = response(b"", _OK, _HEADERS, _CONTENT_TYPE)
            if request.method == "HEAD":
                return opened
            opened = await request.respond(opened)
            if opened.body or opened.status != _OK:
                # A response middleware of the app has replaced it. Sanic sends what it has returned.
                return None
            cross_origin.set_headers(request, opened)
            await begin_stream(request, opened)
            async with sse_transport(request, opened, sessions.settings) as transport:
                if isinstance(decision, Close):
                    sessions.pending_connections.discard(pending)
                    transport.close(decision, CLOSE_SECONDS)
                    await transport.wait_finished()
                else:
                    await _stream(transport, sessions, pending, *decision)
        return None

    # HEAD is named, because sanic-ext would otherwise run the stream for it.
    blueprint.add_route(events, "/events", methods=["GET", "HEAD"], name="events")


async def _decide(
    request: Request, sessions: SessionRegistry, pending: PendingConnection
) -> tuple[Permissions, Command | None] | Close:
    """Return the permissions and the first command of a new session, or a ``close`` frame for a temporary error.

    Raises:
        BridgeError: A permanent error.
    """
    try:
        sessions.request_limiter.count(client_address(request))
        return await _authorize(request, sessions, pending)
    except RateLimitExceeded as error:
        if not _is_event_source(request):
            raise
        sessions.count_rejected(error)
        return sessions.close_frame_for(error)


async def _authorize(
    request: Request, sessions: SessionRegistry, pending: PendingConnection
) -> tuple[Permissions, Command | None] | Close:
    query, has_history = dict(request.get_args(keep_blank_values=True)), bool(sessions.settings.streams)
    command = query_command(query, request.headers.get("last-event-id"), history=has_history)
    patterns = [] if command is None else sessions.policy.validate(command.patterns)
    # Before the app is asked for permissions, so that a full worker doesn't load it.
    rejection = sessions.rejection_reason()
    if rejection is not None:
        return rejection
    try:
        permissions = await get_permissions(request, sessions)
    except (InternalError, UnreachableSession) as error:
        return sessions.close_frame_for(error)
    # Updates that came while the app was asked. A revoked client gets a `close` frame later.
    permissions = pending.current_permissions(permissions) or permissions
    followed = [grant.pattern for grant in sessions.policy.followed(permissions)]
    grants = sessions.policy.authorize(permissions, patterns, followed)
    if command is not None and sessions.streams is not None:
        check_start(command, grants, permissions.allows_history, sessions.streams)
    return permissions, command


def _is_event_source(request: Request) -> bool:
    """Return whether a client can't read the status, and would never reconnect (WHATWG HTML, section 9.2.3)."""
    return request.method == "GET" and "text/event-stream" in request.headers.get("accept", "").lower()


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
        await session.begin(command)
        await transport.wait_finished()
    finally:
        session.connection_lost(transport.close_code)
