"""The permissions and the identity of a client, from the app's ``permissions`` function."""

import asyncio
import time
from inspect import isawaitable

from sanic import Request

from ..auth.permissions import Permissions, PermissionsFunction
from ..errors import AuthExpired, AuthRequired, InternalError, UnreachableSession
from ..log_limits import limited_logger
from ..sessions.registry import SessionRegistry
from .client_address import client_address

__all__ = ["get_permissions", "identify_client"]

logger = limited_logger()


async def get_permissions(request: Request, sessions: SessionRegistry) -> Permissions:
    """Return the permissions of a client that opens a session.

    Raises:
        AuthRequired: The function has returned ``None``.
        AuthExpired: The permissions have expired already.
        RateLimitExceeded: The identity has sent too many requests, or too many calls are in progress.
        InternalError: The function has failed, or taken longer than ``permissions_timeout``.
        UnreachableSession: The worker stops.
    """
    permissions = await _call_permissions(request, sessions)
    if permissions.expires_at <= time.time():
        raise AuthExpired("The permissions have expired")
    return permissions


async def identify_client(request: Request, sessions: SessionRegistry) -> str | None:
    """Return the identity of a client that sends a command by POST.

    Raises:
        AuthRequired: The function has returned ``None``.
        RateLimitExceeded: The identity has sent too many requests, or too many calls are in progress.
        InternalError: The function has failed, or taken longer than ``permissions_timeout``.
        UnreachableSession: The worker stops.
    """
    return (await _call_permissions(request, sessions)).identity


def _is_current_task_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _call_permissions(request: Request, sessions: SessionRegistry) -> Permissions:
    function = sessions.settings.permissions
    if function is None:
        return sessions.settings.default_permissions
    address = client_address(request)
    with sessions.permissions_calls.counting(address):
        permissions = await _ask(function, request, sessions)
    sessions.request_limiter.count_identity(address, permissions.identity)
    return permissions


async def _ask(function: PermissionsFunction, request: Request, sessions: SessionRegistry) -> Permissions:
    settings = sessions.settings
    timeout: asyncio.Timeout | None = None
    try:
        async with sessions.deadlines.within(settings.permissions_timeout) as timeout:
            permissions = function(request)
            if isawaitable(permissions):
                permissions = await permissions
        if permissions is not None and not isinstance(permissions, Permissions):
            raise TypeError(f"'permissions' must return Permissions or None, got {type(permissions).__name__}")
        if permissions is not None:
            sessions.check(permissions)
    except (Exception, asyncio.CancelledError) as error:
        # A CancelledError may also come from a task that the function has awaited: then it is a failure.
        if isinstance(error, asyncio.CancelledError) and _is_current_task_cancelled():
            raise
        if isinstance(error, TimeoutError) and sessions.deadlines.stopping:
            raise UnreachableSession("The server is going away") from None
        if isinstance(error, TimeoutError) and timeout is not None and timeout.expired():
            logger.error(
                "The 'permissions' function took longer than 'permissions_timeout' (%s s); the client was rejected",
                settings.permissions_timeout,
            )
        else:
            logger.exception("The 'permissions' function has failed; the client was rejected")
        raise InternalError("Internal error") from None
    if permissions is None:
        raise AuthRequired("Not authenticated")
    return permissions
