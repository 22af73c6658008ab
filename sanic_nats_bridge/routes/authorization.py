"""Who a client is and what it may follow, as the app says."""

import asyncio
import logging
import time
from inspect import isawaitable

from sanic import Request

from ..auth.permissions import Permissions
from ..errors import AuthExpired, AuthRequired, InternalError, UnreachableSession
from ..sessions.registry import SessionRegistry

__all__ = ["identify_client", "permit"]

logger = logging.getLogger("sanic.root.nats_bridge")


async def permit(request: Request, sessions: SessionRegistry) -> Permissions:
    """What the client of a new session may follow.

    Raises:
        AuthRequired: The app knows no such client.
        AuthExpired: Its permissions have expired already.
        InternalError: The app's function has failed, or taken longer than ``permissions_timeout``.
        UnreachableSession: The worker stops.
    """
    permissions = await _ask(request, sessions)
    if permissions.expires_at <= time.time():
        raise AuthExpired("The permissions have expired")
    return permissions


async def identify_client(request: Request, sessions: SessionRegistry) -> str | None:
    """Who sends a command to a session that lives already.

    Raises:
        AuthRequired: The app knows no such client.
        InternalError, UnreachableSession: As in `permit`.
    """
    return (await _ask(request, sessions)).identity


def _is_cancelled() -> bool:
    """Whether it is this task that is cancelled, and not one that the function has waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _ask(request: Request, sessions: SessionRegistry) -> Permissions:
    settings = sessions.settings
    if settings.permissions is None:
        return settings.default_permissions
    try:
        async with sessions.deadlines.within(settings.permissions_timeout):
            permissions = settings.permissions(request)
            if isawaitable(permissions):
                permissions = await permissions
        if permissions is not None and not isinstance(permissions, Permissions):
            raise TypeError(f"it has returned {type(permissions).__name__}, not Permissions or None")
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and _is_cancelled():
            raise
        if isinstance(error, TimeoutError) and sessions.deadlines.over:
            raise UnreachableSession("The server is going away") from None
        logger.exception("The 'permissions' function has failed")
        raise InternalError("Internal error") from None
    if permissions is None:
        raise AuthRequired("Not authenticated")
    return permissions
