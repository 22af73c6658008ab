"""The body of a POST, which is read within limits."""

import asyncio
from typing import Any

from sanic import Request
from sanic.exceptions import SanicException

from ..errors import InvalidCommand, SizeLimitExceeded, UnreachableSession, UnsupportedMediaType
from ..sessions.deadlines import Deadlines
from ..settings import Settings
from ..transports.input_limits import SMALL_BYTES, PartLimit
from ..transports.responses import end_connection

__all__ = ["read_body"]


async def read_body(request: Request, settings: Settings, deadlines: Deadlines) -> bytes:
    """Read the body, within limits. Sanic alone would read up to 100 MB, for any time, in one turn of the event loop.

    Raises:
        UnsupportedMediaType: The body isn't declared as JSON, or is compressed.
        SizeLimitExceeded: The body is larger than ``max_command_bytes``, or has more parts than ``max_body_parts``.
        InvalidCommand: The body is incomplete, or not complete in time.
        UnreachableSession: The worker stops.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("The body must be application/json")
    codings = ",".join(request.headers.getall("content-encoding", [])).split(",")
    if any(coding.strip().lower() not in ("", "identity") for coding in codings):
        raise UnsupportedMediaType("The body must not be compressed")
    body = bytearray()
    parts = PartLimit(settings.max_body_parts)
    stream: Any = request.stream
    try:
        async with deadlines.within(_body_seconds(request, settings)):
            async for part in stream:
                body += part
                if len(body) > settings.max_command_bytes:
                    raise SizeLimitExceeded(f"A command must be at most {settings.max_command_bytes} bytes")
                if not parts.add(len(part)):
                    end_connection(stream)
                    raise SizeLimitExceeded(
                        f"A body must have at most {settings.max_body_parts} parts of less than {SMALL_BYTES} bytes"
                    )
                if parts.turn_ends:
                    await asyncio.sleep(0)
    except (SanicException, TimeoutError):
        if deadlines.stopping:
            raise UnreachableSession("The server is going away") from None
        raise InvalidCommand("Not a valid command: the body cannot be read") from None
    return bytes(body)


def _body_seconds(request: Request, settings: Settings) -> float:
    # Less than Sanic's own timeouts, which end the handler but never close the connection.
    config = request.app.config
    return min(settings.read_timeout, config.REQUEST_TIMEOUT / 2, config.RESPONSE_TIMEOUT / 2)
