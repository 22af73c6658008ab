"""The routes of the browser client: two modules, each at a fixed path and at one that changes with its text.

While a release is rolled out, a page of one release asks the servers of another for its modules. They give their own.
"""

import hashlib
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sanic import Blueprint, HTTPResponse, Request, Sanic
from sanic_ext import openapi

from .content_encoding import IDENTITY, EncodedText
from .responses import response

__all__ = ["add_client_routes", "unversioned", "versioned_name"]

_FOLDER = Path(__file__).parents[1] / "browser"
_CONTENT_TYPE = "text/javascript; charset=utf-8"
_REVALIDATE = "no-cache"
_IMMUTABLE = "public, max-age=31536000, immutable"  # RFC 8246
_NOT_MODIFIED = 304
# The number of digits is the same in every release. It distinguishes the modules from files of the app, whose own names
# may have a hash.
_VERSION_DIGITS = 16
_VERSIONED = re.compile(rf"(client|share)-[0-9a-f]{{{_VERSION_DIGITS}}}(\.js)")
_MODULE_TYPE = "natsbridge_module"
_COMMENTS = re.compile(
    rb"^[ \t]*/\*\*(?:[^*]|\*(?!/))*\*/[ \t]*\n\n?"  # JSDoc with lines of its own
    rb"|/\*\*(?:[^*]|\*(?!/))*\*/ ?"  # JSDoc within a line
    rb"|^[ \t]*//.*\n"  # lines that are comments
    rb"|[ \t]+//.*$",  # comments at the end of a line; no string of the sources looks like one
    re.MULTILINE,
)
_INDENTATION = re.compile(rb"^\s+", re.MULTILINE)  # and empty lines; no string of the sources has several lines
_SPACES = re.compile(
    rb"""("[^"\n]*"|'[^'\n]*'|`[^`\n]*`|(?<=[( ])/(?:[^/\\\n]|\\.)+/)"""  # strings and regular expressions stay
    rb"|[ ]?([=<>!?:&|+*(){}\[\],;])[ ]?"
)
_PRIVATE_NAME = re.compile(rb"#[A-Za-z]\w*")  # no string of the sources looks like one
_CONSTANT = re.compile(rb"\b[A-Z]+(?:_[A-Z]+)+\b")  # nor like one of these
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class _Modules(NamedTuple):
    """The modules by their paths, and the versioned path of the one that pages import.

    ``current`` has the versioned modules by their fixed paths.
    """

    fixed: dict[str, EncodedText]
    versioned: dict[str, EncodedText]
    current: dict[str, EncodedText]
    client: str


def add_client_routes(app: Sanic[Any, Any], blueprint: Blueprint) -> None:
    """Serve the client on the blueprint, which will be registered on this app."""
    modules = _modules()
    for texts, caching in ((modules.fixed, _REVALIDATE), (modules.versioned, _IMMUTABLE)):
        for path, text in texts.items():
            _add_route(blueprint, path, text, caching)
    _add_route_of_other_versions(app, blueprint, modules.current)


def unversioned(path: str) -> str:
    """Return the path, with a fixed name in place of the versioned name of a module."""
    folder, slash, name = path.rpartition("/")
    match = _VERSIONED.fullmatch(name)
    return path if match is None else folder + slash + match[1] + match[2]


def versioned_name() -> str:
    """Return the name of the client that changes with its text, so that browsers may keep it."""
    return _modules().client


def _add_route(blueprint: Blueprint, path: str, text: EncodedText, caching: str) -> None:
    async def module(request: Request) -> HTTPResponse:
        return _respond(request, text, caching)

    openapi.exclude()(module)
    blueprint.add_route(module, f"/{path}", methods=["GET", "HEAD"], name=path)


def _add_route_of_other_versions(app: Sanic[Any, Any], blueprint: Blueprint, current: dict[str, EncodedText]) -> None:
    async def other_version(request: Request, module: str) -> HTTPResponse:
        return _respond(request, current[module], _REVALIDATE)

    openapi.exclude()(other_version)
    # A type of its own precedes those of the app's routes, even of one that matches any name.
    app.router.register_pattern(_MODULE_TYPE, natsbridge_module, _VERSIONED)
    blueprint.add_route(other_version, f"/<module:{_MODULE_TYPE}>", methods=["GET", "HEAD"], name="other_version")


def natsbridge_module(name: str) -> str:
    """Return the fixed name of a module. Sanic's router calls it by its own name, which is unique in the process.

    Raises:
        ValueError: The name isn't the versioned name of a module.
    """
    if _VERSIONED.fullmatch(name) is None:
        raise ValueError(name)
    return unversioned(name)


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
    source = (_FOLDER / "client.js").read_bytes().replace(b'MODULE_URL = ""', b"MODULE_URL = import.meta.url")
    client, share = _shortened(source), _shortened((_FOLDER / "share.js").read_bytes())
    share_name = f"share-{_version(share)}.js"
    # A client imports the share.js of its own version, and so its name changes with either text.
    versioned_client = client.replace(b'import("./share.js")', f'import("./{share_name}")'.encode())
    client_name = f"client-{_version(versioned_client)}.js"
    shared, versioned = EncodedText(share), EncodedText(versioned_client)
    return _Modules(
        fixed={"client.js": EncodedText(client), "share.js": shared},
        versioned={client_name: versioned, share_name: shared},
        current={"client.js": versioned, "share.js": shared},
        client=client_name,
    )


def _version(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:_VERSION_DIGITS]


def _shortened(source: bytes) -> bytes:
    """Remove comments, indentation and spaces, and shorten private names and constants.

    The lines remain for debuggers.
    """
    text = _SPACES.sub(rb"\1\2", _INDENTATION.sub(b"", _COMMENTS.sub(b"", source)))
    return _renamed(_renamed(text, _PRIVATE_NAME, b"#"), _CONSTANT, b"_")


def _renamed(text: bytes, pattern: re.Pattern[bytes], prefix: bytes) -> bytes:
    """Shorten the names that match the pattern. Those that are used most become the shortest."""
    counted = Counter(pattern.findall(text)).most_common()
    names = {name: prefix + _short_name(number) for number, (name, _) in enumerate(counted)}
    return pattern.sub(lambda match: names[match[0]], text)


def _short_name(number: int) -> bytes:
    high, low = divmod(number, len(_LETTERS))
    return _LETTERS[high - 1 : high] * (high > 0) + _LETTERS[low : low + 1]
