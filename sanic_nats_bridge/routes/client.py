"""The routes of the browser client: two modules, each at a fixed path and at one that changes with its text."""

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sanic import Blueprint, HTTPResponse, Request
from sanic_ext import openapi

from .content_encoding import IDENTITY, EncodedText
from .responses import response

__all__ = ["add_client_routes", "versioned_name"]

_FOLDER = Path(__file__).parents[1] / "browser"
_CONTENT_TYPE = "text/javascript; charset=utf-8"
_REVALIDATE = "no-cache"
_IMMUTABLE = "public, max-age=31536000, immutable"  # RFC 8246
_NOT_MODIFIED = 304
_JSDOC = re.compile(rb"^[ \t]*/\*\*(?:[^*]|\*(?!/))*\*/[ \t]*\n\n?", re.MULTILINE)


class _Modules(NamedTuple):
    """The modules by their paths, and the versioned path of the one that pages import."""

    fixed: dict[str, EncodedText]
    versioned: dict[str, EncodedText]
    client: str


def add_client_routes(blueprint: Blueprint) -> None:
    """Serve the client on the blueprint."""
    modules = _modules()
    for texts, caching in ((modules.fixed, _REVALIDATE), (modules.versioned, _IMMUTABLE)):
        for path, text in texts.items():
            _add_route(blueprint, path, text, caching)


def versioned_name() -> str:
    """Return the name of the client that changes with its text, so that browsers may keep it."""
    return _modules().client


def _add_route(blueprint: Blueprint, path: str, text: EncodedText, caching: str) -> None:
    async def module(request: Request) -> HTTPResponse:
        return _respond(request, text, caching)

    openapi.exclude()(module)
    blueprint.add_route(module, f"/{path}", methods=["GET", "HEAD"], name=path)


def _respond(request: Request, text: EncodedText, caching: str) -> HTTPResponse:
    chosen = text.select(request.headers.getall("accept-encoding", []))
    headers = {
        "cache-control": caching,
        "etag": chosen.etag,
        "vary": "accept-encoding",
        "x-content-type-options": "nosniff",
    }
    if _matches(request.headers.getall("if-none-match", []), chosen.etag):
        return response(None, _NOT_MODIFIED, headers)
    headers["content-length"] = str(len(chosen.body))  # Sanic omits it under ASGI
    if chosen.coding != IDENTITY:
        headers["content-encoding"] = chosen.coding
    return response(chosen.body, 200, headers, _CONTENT_TYPE)


def _matches(conditions: list[str], etag: str) -> bool:
    """Return whether the client has the text already, by the weak comparison of RFC 9110, section 13.1.2."""
    tags = {tag.strip().removeprefix("W/") for condition in conditions for tag in condition.split(",")}
    return bool(tags & {etag, "*"})


@cache
def _modules() -> _Modules:
    client, share = (_strip_jsdoc((_FOLDER / name).read_bytes()) for name in ("client.js", "share.js"))
    share_name = f"share-{_version(share)}.js"
    # A client imports the share.js of its own version, and so its name changes with either text.
    versioned_client = client.replace(b'import("./share.js")', f'import("./{share_name}")'.encode())
    client_name = f"client-{_version(versioned_client)}.js"
    shared = EncodedText(share)
    return _Modules(
        fixed={"client.js": EncodedText(client), "share.js": shared},
        versioned={client_name: EncodedText(versioned_client), share_name: shared},
        client=client_name,
    )


def _version(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _strip_jsdoc(source: bytes) -> bytes:
    """Remove the JSDoc blocks that have lines of their own: they are a third of the compressed source."""
    return _JSDOC.sub(b"", source)
