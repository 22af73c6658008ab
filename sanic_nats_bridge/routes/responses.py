"""The HTTP responses of the bridge, which a header distinguishes from those of the app and of proxies.

All routes make their responses here. A response that a middleware of the app, an error handler of the app or a proxy
gives in place of the route's own has no such header.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import MethodNotAllowed

from ..transports.responses import BodyDiscardingResponse

__all__ = ["BRIDGE_HEADER", "json_response", "mark_method_errors", "response"]

BRIDGE_HEADER = "sanic-nats-bridge"  # HTTP/3 forbids capitals
_MARK = {BRIDGE_HEADER: "1"}
_JSON_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def response(
    body: bytes | None = None,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    content_type: str | None = None,
) -> HTTPResponse:
    """Return a response of the bridge."""
    return BodyDiscardingResponse(body, status, _MARK | dict(headers or {}), content_type)


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> HTTPResponse:
    """Return a response with a JSON document that must not be cached."""
    return response(body, status, _JSON_HEADERS | dict(headers or {}), "application/json")


def mark_method_errors(app: Sanic[Any, Any], is_bridge_path: Callable[[Request], bool]) -> None:
    """Mark Sanic's own 405 at the bridge's paths, unless an error handler of the app gives the response."""

    async def mark(request: Request, exception: BaseException) -> None:
        # With a route the method is allowed, and a handler or a middleware has raised the error.
        if isinstance(exception, MethodNotAllowed) and request.route is None and is_bridge_path(request):
            exception.headers = {**exception.headers, **_MARK}

    app.add_signal(mark, "http.lifecycle.exception")
