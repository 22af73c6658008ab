"""What pages of other origins are told by browsers about the bridge's answers (CORS: Fetch, section 3.3)."""

from collections.abc import Iterable
from typing import Any, Final

from sanic import Blueprint, HTTPResponse, Request, Sanic
from sanic.response import BaseHTTPResponse, empty
from sanic_ext import openapi

from ..auth.origins import OriginPolicy

__all__ = ["CrossOrigin"]

_OURS: Final = "access-control-"
_PREFLIGHT: Final = {
    "access-control-allow-methods": "GET, HEAD, POST",
    "access-control-allow-headers": "authorization, content-type, last-event-id",
    "access-control-max-age": "600",
}

_SHOWN: Final = {"access-control-expose-headers": "retry-after"}


class CrossOrigin:
    """Answers for the bridge's own paths, to the allowed origins alone, whatever the app answers on others."""

    def __init__(self, rule: OriginPolicy) -> None:
        self._rule = rule
        self._paths: set[str] = set()

    def add_preflights(self, blueprint: Blueprint, *doors: str) -> None:
        """Serve OPTIONS at these paths of the blueprint, where its guard lets the request pass."""

        async def preflight(request: Request) -> HTTPResponse:
            return empty()

        openapi.exclude()(preflight)
        for door in doors:
            blueprint.add_route(preflight, f"/{door}", methods=["OPTIONS"], name=f"{door}_preflight")

    def watch(self, app: Sanic[Any, Any]) -> None:
        """Have the last word on the headers of every answer at its paths, errors of Sanic's included.

        A signal, because a response middleware of the app may keep those behind it from running.
        """
        app.add_signal(self._before_sending, "http.lifecycle.response")

    def cover(self, paths: Iterable[str]) -> None:
        """Take these paths for the bridge's own."""
        self._paths.update(paths)

    async def _before_sending(self, request: Request, response: BaseHTTPResponse) -> None:
        if _path(request) in self._paths:
            self.mark(request, response)

    def mark(self, request: Request, response: BaseHTTPResponse) -> None:
        """Put the headers for the request's origin in the place of whatever others have set."""
        headers = response.headers
        for name in {name for name in headers if name.lower().startswith(_OURS)}:
            headers.popall(name)
        # A cache must not give the answer for one origin to another (Fetch, section 3.3.5).
        varies = [word.strip().lower() for value in headers.getall("vary", []) for word in value.split(",")]
        if "origin" not in varies and "*" not in varies:
            headers.add("vary", "origin")
        origin = self._rule.listed(request.headers.getall("origin", []))
        if origin is not None:
            headers["access-control-allow-origin"] = origin
            headers["access-control-allow-credentials"] = "true"
            headers.update(_PREFLIGHT if request.method == "OPTIONS" else _SHOWN)


def _path(request: Request) -> str:
    # Sanic's routes match with slashes at their end too.
    return request.path.rstrip("/")
