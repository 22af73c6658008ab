"""The checks of every request before its handler: the host, the origin, and the handshake of a WebSocket."""

from collections.abc import Mapping
from typing import Any

from sanic import Blueprint, HTTPResponse, Request

from ..auth.hosts import HostPolicy
from ..auth.origins import Caller, OriginPolicy, allowable
from ..errors import BridgeError, ForbiddenHost, ForbiddenOrigin
from ..log_limits import limited_logger
from ..sessions.registry import SessionRegistry
from ..transports.auto import is_asgi
from ..transports.handshake import check_handshake, check_opening
from .client_address import client_address
from .replies import rejection_response

__all__ = ["RequestGuard"]

logger = limited_logger()

_AFTER_THE_APP = -1_000_000  # a middleware priority below all of the app's
_SCHEMES = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_MAX_LOGGED = 1000
_MAX_LOGGED_LENGTH = 200
_HOST = "@"  # distinguishes hosts; no origin begins with it
_SERVED = "+"  # distinguishes the origins to which a module was served; no origin begins with it
_MAX_ORIGIN_LENGTH = 300  # more than the longest host name with its scheme and port


class RequestGuard:
    """A request middleware that rejects unknown hosts, foreign origins and invalid handshakes.

    Args:
        policy: The policy with the allowed origins.
        hosts: The policy with the allowed hosts. By default any is allowed.
        sessions: Counts requests and rejections.
    """

    def __init__(
        self, policy: OriginPolicy, hosts: HostPolicy | None = None, sessions: SessionRegistry | None = None
    ) -> None:
        self._policy = policy
        self._hosts = HostPolicy(None) if hosts is None else hosts
        self._sessions = sessions
        self._logged: set[str] = set()

    def install(self, blueprint: Blueprint) -> None:
        """Check requests before the handlers of the blueprint and before the handshake of a WebSocket."""
        # As a decorator: `Blueprint.middleware(method, ...)` registers nothing, because it takes only plain functions.
        blueprint.middleware("request", priority=_AFTER_THE_APP)(self._reject)

    def install_log(self, blueprint: Blueprint) -> None:
        """Check the hosts of requests to the blueprint, which serves the client's modules, and log foreign origins."""
        blueprint.middleware("request", priority=_AFTER_THE_APP)(self._note)

    def install_for_operators(self, blueprint: Blueprint) -> None:
        """Check the hosts of requests to the blueprint, which serves probes.

        They may come to an IP address, or without a host, because load balancers send them so.
        """
        blueprint.middleware("request", priority=_AFTER_THE_APP)(self._reject_host_of_probe)

    def allows_host(self, request: Request, *, probe: bool = False) -> bool:
        """Return whether the host is allowed to which the client has sent the request.

        A proxy that Sanic trusts reports the host. ``request.host`` would be the same for all requests if the app has
        a ``SERVER_NAME``.
        """
        name = _server_name(request)
        debug = bool(getattr(request.app, "debug", False))
        hosts = _hosts(request) or [""]
        return all(self._hosts.allows(host, name, only_known=debug, local=probe) for host in hosts)

    def check(self, request: Request) -> None:
        """Check the host and the origin of a request.

        Raises:
            ForbiddenHost: The host isn't allowed.
            ForbiddenOrigin: The origin isn't allowed.
        """
        self._check_host(request)
        caller = _caller(request)
        if not self._policy.allows(caller):
            self._log(caller, rejected=True)
            raise ForbiddenOrigin("This origin is not allowed to use this server")

    def count(self, request: Request) -> None:
        """Count a WebSocket handshake of this client.

        Raises:
            RateLimitExceeded: The client has sent too many requests.
        """
        if self._sessions is not None:
            self._sessions.request_limiter.count(client_address(request))

    async def _note(self, request: Request) -> HTTPResponse | None:
        try:
            self._check_host(request)
        except ForbiddenHost as error:
            return self._rejection(request, error)
        caller = _caller(request)
        if not self._policy.allows(caller):
            self._log(caller, rejected=False)
        return None

    async def _reject_host_of_probe(self, request: Request) -> HTTPResponse | None:
        try:
            self._check_host(request, probe=True)
        except ForbiddenHost as error:
            return self._rejection(request, error)
        return None

    def _check_host(self, request: Request, *, probe: bool = False) -> None:
        if self.allows_host(request, probe=probe):
            return
        host = ", ".join(_hosts(request))[:_MAX_LOGGED_LENGTH]
        if _HOST + host not in self._logged and logger.warning(
            "Rejected a request to host %a, which is not a known name of this app. If clients use this name, add it "
            "to the setting 'allowed_hosts'",
            host,
        ):
            self._remember(_HOST + host)
        raise ForbiddenHost("This server is not known under the host of this request")

    def _rejection(self, request: Request, error: BridgeError) -> HTTPResponse:
        if self._sessions is not None:
            self._sessions.count_rejected(error)
        return rejection_response(error, request.path.strip("/").rpartition("/")[2])

    async def _reject(self, request: Request) -> HTTPResponse | None:
        """Return an error response for a request that fails a check."""
        if _is_asgi_websocket(request):
            # Sanic cannot respond before this handshake. The handler accepts the WebSocket and closes it.
            return None
        try:
            check_handshake(request)
            self.check(request)
            if request.route is not None and request.route.extra.websocket:
                check_opening(request)
                self.count(request)
        except BridgeError as error:
            return self._rejection(request, error)
        return None

    def _log(self, caller: Caller, *, rejected: bool) -> None:
        """Log each foreign origin once, as far as the number of log lines is not limited.

        Args:
            caller: The parts of the request.
            rejected: Whether the request is rejected, or a module is served.
        """
        header = ", ".join(caller.origins)[:_MAX_ORIGIN_LENGTH]
        # In full, so that the operator can copy it into the setting.
        origin = allowable(caller.origins) if len(header) < _MAX_ORIGIN_LENGTH else None
        site = "" if caller.origins else ", ".join(caller.fetch_sites)[:_MAX_LOGGED_LENGTH]
        if caller.origins and origin is None and not rejected:
            return  # It isn't a page's.
        key = ("" if rejected else _SERVED) + header + site
        if key in self._logged:
            return
        host = caller.host[:_MAX_LOGGED_LENGTH]
        if origin == "null":
            logged = logger.warning(
                "Rejected a request from origin 'null' to host %a. Pages of local files send it, but so do sandboxed "
                "frames of any website. To allow all of them, add 'null' to the setting 'allowed_origins'"
                if rejected
                else "Served the browser client to origin 'null', whose other requests to host %a are rejected. Pages "
                "of local files send it, but so do sandboxed frames of any website. To allow all of them, add 'null' "
                "to the setting 'allowed_origins'",
                host,
            )
        elif origin is not None:
            logged = logger.warning(
                "Rejected a request from origin %a to host %a (scheme %s, port %s). To allow the origin, add it to the "
                "setting 'allowed_origins'. If it is the app's own, configure the proxy to pass on the original host"
                if rejected
                else "Served the browser client to origin %a, whose other requests to host %a (scheme %s, port %s) are "
                "rejected. To allow the origin, add it to the setting 'allowed_origins'. If it is the app's own, "
                "configure the proxy to pass on the original host",
                origin, host, caller.scheme or "unknown", caller.port or "as in the host",
            )  # fmt: skip
        elif caller.origins:
            logged = logger.warning(
                "Rejected a request with the Origin header %a to host %a. No browser sends such an origin, and the "
                "setting 'allowed_origins' cannot name it",
                header, host,
            )  # fmt: skip
        else:
            logged = logger.warning(
                "Rejected a request from a page of another site (Sec-Fetch-Site %a, no Origin header) to host %a. To "
                "allow the page, add its origin to the setting 'allowed_origins', and let it send a CORS request"
                if rejected
                else "Served the browser client to a page of another site (Sec-Fetch-Site %a, no Origin header) from "
                "host %a. To use the client, the page must import it, and the setting 'allowed_origins' must have its "
                "origin",
                site, host,
            )  # fmt: skip
        if logged:
            self._remember(key)

    def _remember(self, key: str) -> None:
        # Clients can make up any number of origins and hosts.
        if len(self._logged) >= _MAX_LOGGED:
            self._logged.clear()
        self._logged.add(key)


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
    """Return the scheme between the client and the outermost server; ``None`` if it is unknown.

    Without its own TLS, Sanic assumes ``http``, although a proxy in front of it may use TLS.
    """
    if "://" in request.app.config.get("SERVER_NAME", "") or "proto" in request.forwarded:
        return _SCHEMES.get(request.scheme.lower())
    if is_asgi(request):
        encrypted = _scope(request)["scheme"] in ("https", "wss")
    else:
        encrypted = request.conn_info is not None and request.conn_info.ssl
    return "https" if encrypted else None


def _hosts(request: Request) -> list[str]:
    """Return the hosts to which the client has sent the request: several if a header is repeated, usually one."""
    forwarded = request.forwarded.get("host")
    if not forwarded:
        return request.headers.getall("host", [])
    values = request.headers.getall("x-forwarded-host", [])
    # Sanic takes the first, which may be one that a script of the page has added.
    return values if len(values) > 1 else [str(forwarded)]


def _server_name(request: Request) -> str:
    """Return the host in Sanic's ``SERVER_NAME``, which may be a URL; an empty string if it isn't set."""
    name: str = request.app.config.get("SERVER_NAME", "")
    return name.split("//", 1)[-1].split("/", 1)[0]


def _is_asgi_websocket(request: Request) -> bool:
    return is_asgi(request) and _scope(request)["type"] == "websocket"


def _scope(request: Request) -> Mapping[str, Any]:
    """Return the scope of an ASGI connection."""
    transport: Any = request.transport
    scope: Mapping[str, Any] = transport.scope
    return scope
