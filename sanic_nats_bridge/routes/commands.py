"""``/subscribe`` and ``/unsubscribe``: commands by POST, mainly for sessions on an event stream."""

from sanic import Blueprint, HTTPResponse, Request

from ..cluster.relay import Relay
from ..errors import BridgeError, InternalError, InvalidCommand
from ..log_limits import limited_logger
from ..protocol.messages import Action, Outcome, command_id_of, decode_command
from ..sessions.registry import SessionRegistry
from ..transports.auto import is_misdirected
from .authorization import identify_client
from .bodies import read_body
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
            body = await read_body(request, settings, sessions.deadlines)
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
