"""``/subscribe`` and ``/unsubscribe``: commands by POST, mainly for sessions on an event stream."""

import asyncio
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.exceptions import SanicException

from ..cluster.relay import Relay
from ..errors import (
    BridgeError,
    InternalError,
    InvalidCommand,
    SizeLimitExceeded,
    UnreachableSession,
    UnsupportedMediaType,
)
from ..log_limits import limited_logger
from ..protocol.messages import Action, Outcome, command_id_of, decode_command
from ..sessions.deadlines import Deadlines
from ..sessions.registry import SessionRegistry
from ..settings import Settings
from ..transports.auto import is_misdirected
from ..transports.input_limits import SMALL_BYTES, PartLimit
from ..transports.responses import end_connection
from .authorization import identify_client
from .client_address import client_address
from .openapi import describe_command
from .replies import misdirected, outcome_response

__all__ = ["add_command_routes"]

logger = limited_logger()


def add_command_routes(blueprint: Blueprint, relay: Relay, sessions: SessionRegistry) -> None:
    """Serve the commands on the blueprint."""
    settings = sessions.settings

    async def serve(request: Request, action: Action) -> HTTPResponse:
        if is_misdirected(request):
            return misdirected(action)
        body = b""
        try:
            sessions.request_limiter.count(client_address(request))
            body = await _body(request, settings, sessions.deadlines)
            return outcome_response(await execute(request, body, action))
        except BridgeError as error:
            rejection = error
        except Exception:
            logger.exception("Internal error in a command; the client was notified. Please report this traceback")
            rejection = InternalError("Internal error")
        sessions.count_rejected(rejection)
        return outcome_response(Outcome.rejected(rejection, action, command_id_of(body)))

    async def execute(request: Request, body: bytes, action: Action) -> Outcome:
        command = decode_command(body, action, history=bool(settings.streams))
        if not isinstance(command.session, str):
            raise InvalidCommand("Not a valid command: 'session' is missing")
        identity = await identify_client(request, sessions)
        return await relay.execute(command.session, identity, command, client_address(request))

    @describe_command("subscribe", settings, history=bool(settings.streams))
    async def subscribe(request: Request) -> HTTPResponse:
        return await serve(request, "subscribe")

    @describe_command("unsubscribe", settings)
    async def unsubscribe(request: Request) -> HTTPResponse:
        return await serve(request, "unsubscribe")

    for handler in (subscribe, unsubscribe):
        name = handler.__name__
        blueprint.add_route(handler, f"/{name}", methods=["POST"], name=name, stream=True)


async def _body(request: Request, settings: Settings, deadlines: Deadlines) -> bytes:
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
