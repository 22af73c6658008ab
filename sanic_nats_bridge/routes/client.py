"""``/client.js``: the browser client, an ES module, and the same at an address that changes with it."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from sanic import Blueprint, HTTPResponse, Request
from sanic_ext import openapi

__all__ = ["add_client_routes", "versioned_name"]

_MODULE: Final = Path(__file__).parents[1] / "browser" / "client.js"
_CONTENT_TYPE: Final = "text/javascript; charset=utf-8"
_REVALIDATED: Final = "no-cache"
_FOR_EVER: Final = "public, max-age=31536000, immutable"  # RFC 8246
_NOT_MODIFIED: Final = 304


def add_client_routes(blueprint: Blueprint) -> None:
    """Serve the client on the blueprint."""

    async def client(request: Request) -> HTTPResponse:
        return _answer(request, _REVALIDATED)

    async def versioned_client(request: Request) -> HTTPResponse:
        return _answer(request, _FOR_EVER)

    for handler, name in ((client, "client.js"), (versioned_client, versioned_name())):
        openapi.exclude()(handler)
        blueprint.add_route(handler, f"/{name}", methods=["GET", "HEAD"], name=handler.__name__)


def versioned_name() -> str:
    """The name of the client that is another whenever its text is, so that it may be cached for ever."""
    return f"client-{_module()[1][:16]}.js"


def _answer(request: Request, caching: str) -> HTTPResponse:
    text, digest = _module()
    etag = f'"{digest[:32]}"'
    headers = {"cache-control": caching, "etag": etag, "x-content-type-options": "nosniff"}
    if _matches(request.headers.getall("if-none-match", []), etag):
        return HTTPResponse(None, _NOT_MODIFIED, headers)
    return HTTPResponse(text, 200, headers, _CONTENT_TYPE)


def _matches(conditions: list[str], etag: str) -> bool:
    """Whether the client has it already, by the weak comparison of RFC 9110, section 13.1.2."""
    tags = {tag.strip().removeprefix("W/") for condition in conditions for tag in condition.split(",")}
    return bool(tags & {etag, "*"})


@cache
def _module() -> tuple[bytes, str]:
    """The text, and its SHA-256."""
    text = _MODULE.read_bytes()
    return text, hashlib.sha256(text).hexdigest()
