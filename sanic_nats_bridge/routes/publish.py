"""``/publish`` and ``/request``: messages and requests to NATS by POST, without a session."""

import time

from sanic import Blueprint, HTTPResponse, Request

from ..auth.permissions import Permissions
from ..errors import AuthExpired, AuthRequired, BridgeError, InternalError
from ..log_limits import limited_logger
from ..protocol.messages import Outcome, command_id_of
from ..protocol.publish import PublishAction, decode_publish
from ..publishing.clients import ClientPublisher
from ..sessions.pending import PendingConnection
from ..sessions.registry import SessionRegistry
from ..transports.auto import is_misdirected
from .authorization import get_permissions
from .bodies import read_body
from .client_address import client_address
from .openapi_publish import describe_publish
from .replies import misdirected, outcome_response

__all__ = ["add_publish_routes"]

logger = limited_logger()


def add_publish_routes(blueprint: Blueprint, sessions: SessionRegistry) -> None:
    """Serve publishes and requests on the blueprint."""
    settings, publishing = sessions.settings, sessions.publishing
    assert publishing is not None

    async def serve(request: Request, action: PublishAction) -> HTTPResponse:
        if is_misdirected(request):
            return misdirected(action)
        body = b""
        try:
            sessions.request_limiter.count(client_address(request))
            body = await read_body(request, settings, sessions.deadlines)
            outcome = await _execute(request, body, action, sessions, publishing)
        except BridgeError as error:
            outcome = Outcome.rejected(error, action, command_id_of(body))
        except Exception:
            logger.exception("Internal error in a command; the client was notified. Please report this traceback")
            outcome = Outcome.rejected(InternalError("Internal error"), action, command_id_of(body))
        if outcome.error is not None:
            sessions.count_rejected(outcome.error)
        return outcome_response(outcome)

    @describe_publish("publish", settings)
    async def publish(request: Request) -> HTTPResponse:
        return await serve(request, "publish")

    @describe_publish("request", settings)
    async def request(request: Request) -> HTTPResponse:
        return await serve(request, "request")

    for handler in (publish, request):
        name = handler.__name__
        blueprint.add_route(handler, f"/{name}", methods=["POST"], name=name, stream=True)


async def _execute(
    request: Request, body: bytes, action: PublishAction, sessions: SessionRegistry, publishing: ClientPublisher
) -> Outcome:
    command, address = decode_publish(body, action), client_address(request)
    # Pending, so that a revoke or an update of permissions reaches it while the app is asked.
    with sessions.pending_connections.connecting(address) as pending:
        permissions = await get_permissions(request, sessions)
        return await publishing.execute(command, lambda: _current(permissions, pending), address)


def _current(permissions: Permissions, pending: PendingConnection) -> Permissions:
    """Return the permissions of a client as of now.

    Raises:
        AuthRequired: They were revoked.
        AuthExpired: They have expired.
    """
    current = pending.current_permissions(permissions)
    if current is None:
        raise AuthRequired("Access was revoked")
    if current.expires_at <= time.time():
        raise AuthExpired("The permissions have expired")
    return current
