"""What became of a command, on whichever way it came."""

import logging
from collections.abc import Awaitable
from typing import Final

from msgspec import UNSET, UnsetType
from sanic import HTTPResponse

from ..errors import BridgeError, InternalError
from ..protocol import CommandId, Reply, encode, failure

__all__ = ["outcome", "reply_response"]

logger = logging.getLogger("sanic.root.nats_bridge")


_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def reply_response(reply: Reply, status: int) -> HTTPResponse:
    """The HTTP response whose body is the reply."""
    return HTTPResponse(encode(reply), status, dict(_HEADERS), "application/json")


async def outcome(
    work: Awaitable[Reply], action: str | UnsetType = UNSET, command_id: CommandId | UnsetType = UNSET
) -> tuple[Reply, int]:
    """The reply that the work gives, or else the failed reply that says why there is none; and its HTTP status."""
    try:
        return await work, 200
    except BridgeError as error:
        return failure(error, action, command_id), error.http_status
    except Exception:
        logger.exception("Fault in a command")
        fault = InternalError("Internal error")
        return failure(fault, action, command_id), fault.http_status
