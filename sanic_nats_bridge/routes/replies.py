"""What became of a command, on whichever way it came."""

import logging
from collections.abc import Awaitable
from typing import Final

from msgspec import UNSET, UnsetType
from sanic import HTTPResponse

from ..errors import BridgeError, CommandUnsupported, InternalError
from ..protocol import Action, CommandId, Reply, encode, failure

__all__ = ["misdirected", "outcome", "reply_response"]

logger = logging.getLogger("sanic.root.nats_bridge")

_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}  # in capitals not over HTTP/3
_MISDIRECTED: Final = 421


def reply_response(reply: Reply, status: int) -> HTTPResponse:
    """The HTTP response whose body is the reply."""
    return HTTPResponse(encode(reply), status, dict(_HEADERS), "application/json")


def misdirected(action: Action) -> HTTPResponse:
    """The answer to what came by a version of HTTP over which the bridge cannot serve.

    A browser repeats such a request over another version (RFC 9110, section 15.5.20).
    """
    error = CommandUnsupported("Not supported here: HTTP/3")
    return reply_response(failure(error, action), _MISDIRECTED)


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
