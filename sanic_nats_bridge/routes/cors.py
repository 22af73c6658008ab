"""The CORS headers of the bridge's responses (Fetch, section 3.3)."""

from collections.abc import Iterable
from typing import Any

from sanic import Blueprint, HTTPResponse, Request, Sanic
from sanic.response import BaseHTTPResponse
from sanic_ext import openapi

from ..auth.origins import OriginPolicy
from .client import unversioned
from .responses import BRIDGE_HEADER, response

__all__ = ["CrossOrigin"]

_NO_CONTENT = 204
_PREFIX = "access-control-"
_PREFLIGHT_HEADERS = {
    "access-control-allow-methods": "GET, HEAD, POST",
    "access-control-allow-headers": "authorization, content-type, last-event-id",
    "access-control-max-age": "600",
}
_RESPONSE_HEADERS = {"access-control-expose-headers": f"retry-after, {BRIDGE_HEADER}"}


class CrossOrigin:
    """The CORS headers of the bridge's own paths. They allow the origins of the policy, and replace those of the app.

    Args:
        policy: The policy with the allowed origins.
    """

    def __init__(self, policy: OriginPolicy) -> None:
        self._policy = policy
        self._paths: set[str] = set()

    def add_preflights(self, blueprint: Blueprint, *names: str) -> None:
        """Serve OPTIONS at these paths of the blueprint. The guard of the blueprint rejects other origins first."""

        async def preflight(request: Request) -> HTTPResponse:
            return response(b"", _NO_CONTENT)

        openapi.exclude()(preflight)
        for name in names:
            blueprint.add_route(preflight, f"/{name}", methods=["OPTIONS"], name=f"{name}_preflight")

    def install(self, app: Sanic[Any, Any]) -> None:
        """Set the headers of every response at the bridge's paths, Sanic's own error responses included.

        Uses a signal, because a response middleware of the app may keep later ones from running.
        """
        app.add_signal(self._before_sending, "http.lifecycle.response")

    def add_paths(self, paths: Iterable[str]) -> None:
        """Add paths to those of the bridge."""
        self._paths.update(paths)

    async def _before_sending(self, request: Request, response: BaseHTTPResponse) -> None:
        if self.covers(request):
            self.set_headers(request, response)

    def covers(self, request: Request) -> bool:
        """Return whether the path of the request is one of the bridge's."""
        return _path(request) in self._paths

    def set_headers(self, request: Request, response: BaseHTTPResponse) -> None:
        """Replace all CORS headers of the response by those for the request's origin."""
        headers = response.headers
        for name in {name for name in headers if name.lower().startswith(_PREFIX)}:
            headers.popall(name)
        # A cache must not reuse the response for another origin (Fetch, section 3.3.5).
        varies = [word.strip().lower() for value in headers.getall("vary", []) for word in value.split(",")]
        if "origin" not in varies and "*" not in varies:
            headers.add("vary", "origin")
        origin = self._policy.listed(request.headers.getall("origin", []))
        if origin is not None:
            headers["access-control-allow-origin"] = origin
            headers["access-control-allow-credentials"] = "true"
            headers.update(_PREFLIGHT_HEADERS if request.method == "OPTIONS" else _RESPONSE_HEADERS)


def _path(request: Request) -> str:
    # Sanic's router ignores trailing slashes.
    return unversioned(request.path.rstrip("/"))
