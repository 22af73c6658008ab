"""What became of a command, on whichever way it came."""

import logging
import math
from collections.abc import Awaitable
from typing import Final

from msgspec import UNSET, UnsetType
from sanic import HTTPResponse

from ..errors import BridgeError, CommandUnsupported, InternalError, RateLimit
from ..protocol.messages import Action, CommandId, Reply, encode, failure

__all__ = ["misdirected", "outcome", "refusal_response", "reply_response"]

logger = logging.getLogger("sanic.root.nats_bridge")

_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}  # in capitals not over HTTP/3
_MISDIRECTED: Final = 421


def reply_response(reply: Reply, error: BridgeError | None = None) -> HTTPResponse:
    """The HTTP response whose body is the reply; ``error`` is why it is a failed one."""
    headers = dict(_HEADERS)
    if isinstance(error, RateLimit):
        headers["retry-after"] = str(math.ceil(error.retry_after))
    return HTTPResponse(encode(reply), 200 if error is None else error.http_status, headers, "application/json")


def refusal_response(error: BridgeError, action: str) -> HTTPResponse:
    """The HTTP response to what was refused before it was read as a command."""
    return reply_response(failure(error, action), error)


def misdirected(action: Action) -> HTTPResponse:
    """The answer to what came by a version of HTTP over which the bridge cannot serve.

    A browser repeats such a request over another version (RFC 9110, section 15.5.20).
    """
    response = refusal_response(CommandUnsupported("Not supported here: HTTP/3"), action)
    response.status = _MISDIRECTED
    return response


async def outcome(
    work: Awaitable[Reply], action: str | UnsetType = UNSET, command_id: CommandId | UnsetType = UNSET
) -> tuple[Reply, BridgeError | None]:
    """The reply that the work gives; or else the failed reply that says why there is none, and that error."""
    try:
        return await work, None
    except BridgeError as error:
        return failure(error, action, command_id), error
    except Exception:
        logger.exception("Fault in a command")
        fault = InternalError("Internal error")
        return failure(fault, action, command_id), fault
