"""Who is turned away at the doors: chiefly for the page that a request comes from."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from sanic import Blueprint, HTTPResponse, Request

from ..auth.origins import Caller, OriginPolicy
from ..errors import BridgeError, ForbiddenOrigin
from ..transports.auto import is_asgi
from ..transports.handshake import check_handshake, check_opening
from .replies import refusal_response

__all__ = ["RequestGuard"]

logger = logging.getLogger("sanic.root.nats_bridge")

_LAST: Final = -1_000_000  # priority of a middleware: behind all of the app's
_SCHEMES: Final = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_MAX_TOLD: Final = 1000
_MAX_SHOWN: Final = 200


class RequestGuard:
    """Applies the rule for origins to requests, and tells the operator whom it has turned away."""

    def __init__(self, rule: OriginPolicy) -> None:
        self._rule = rule
        self._told: set[str] = set()

    def install(self, blueprint: Blueprint) -> None:
        """Turn requests away before a handler of the blueprint gets them, and before a WebSocket's handshake."""
        # Not `middleware(self._turn_away, …)`: a blueprint registers nothing then, for a method is no plain function.
        blueprint.middleware("request", priority=_LAST)(self._turn_away)

    def check(self, request: Request) -> None:
        """Let the request come in.

        Raises:
            ForbiddenOrigin: It may not.
        """
        caller = _caller(request)
        if not self._rule.allows(caller):
            self._tell(caller)
            raise ForbiddenOrigin("Pages of this origin may not use this server")

    async def _turn_away(self, request: Request) -> HTTPResponse | None:
        if _is_asgi_websocket(request):
            # Sanic has no answer before a handshake there: its handler accepts, and closes.
            return None
        try:
            check_handshake(request)
            self.check(request)
            if request.route is not None and request.route.extra.websocket:
                check_opening(request)
        except BridgeError as error:
            return refusal_response(error, request.path.strip("/").rpartition("/")[2])
        return None

    def _tell(self, caller: Caller) -> None:
        """Log each origin once; nobody shall fill the memory, or the log, by inventing more of them."""
        origin = ", ".join(caller.origins)[:_MAX_SHOWN]
        site = "" if caller.origins else ", ".join(caller.fetch_sites)[:_MAX_SHOWN]
        if len(self._told) >= _MAX_TOLD or origin + site in self._told:
            return
        self._told.add(origin + site)
        host = caller.host[:_MAX_SHOWN]
        if caller.origins:
            logger.warning(
                "Refused a page of origin %a at host %a (scheme %s, port %s). If it may use the bridge, name it in the "
                "setting 'allowed_origins'; if it is the app's own, have the proxy pass on what host it was asked for",
                origin, host, caller.scheme or "not known", caller.port or "as in the host",
            )  # fmt: skip
        else:
            logger.warning("Refused a page of another site (Sec-Fetch-Site %a, no Origin) at host %a", site, host)
        if len(self._told) == _MAX_TOLD:
            logger.warning("%d origins were refused; no more of them are logged", _MAX_TOLD)


def _caller(request: Request) -> Caller:
    port: Any = request.forwarded.get("port")
    return Caller(
        origins=request.headers.getall("origin", []),
        fetch_sites=request.headers.getall("sec-fetch-site", []),
        host=request.host,
        port=port,
        scheme=_scheme(request),
    )


def _scheme(request: Request) -> str | None:
    """What the client has spoken to the outermost server, where it is known.

    Without TLS of its own Sanic takes the scheme for ``http``, whatever the proxy before it speaks.
    """
    if "://" in request.app.config.get("SERVER_NAME", "") or "proto" in request.forwarded:
        return _SCHEMES.get(request.scheme.lower())
    if is_asgi(request):
        encrypted = _scope(request)["scheme"] in ("https", "wss")
    else:
        encrypted = request.conn_info is not None and request.conn_info.ssl
    return "https" if encrypted else None


def _is_asgi_websocket(request: Request) -> bool:
    return is_asgi(request) and _scope(request)["type"] == "websocket"


def _scope(request: Request) -> Mapping[str, Any]:
    """What an ASGI server knows of the connection."""
    transport: Any = request.transport
    scope: Mapping[str, Any] = transport.scope
    return scope
