"""What the value of a setting must be; each check returns it as the settings hold it.

All raise ``ValueError``: what is wrong, to be read behind the name of the setting. None repeats a
value that may be a secret.
"""

import contextlib
import json
import math
import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from .auth.origins import parse_origin
from .auth.permissions import Permissions
from .errors import InvalidSubject
from .protocol.subjects import has_wildcard, validate

__all__ = [
    "flag",
    "function",
    "header_names",
    "one_of",
    "open_patterns",
    "origins",
    "path_prefix",
    "rate",
    "readable_file",
    "reserved_prefix",
    "seconds",
    "server_urls",
    "shut_patterns",
    "text",
    "tls_context",
    "whole",
    "words",
]

_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_HEADER_NAME: Final = re.compile(r"[!-9;-~]+")  # ADR-4: printable ASCII without the colon
_PREFIX: Final = re.compile(r"(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._~-]+)*")
_MAX_PREFIX_BYTES: Final = 128
_MAX_SECONDS: Final = 86_400
_UNPRINTABLE: Final = re.compile(r"[\s\x00-\x1f\x7f]")


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text that is not empty")
    return value


def flag(value: Any) -> bool:
    """True or false; of ``1`` and ``0`` in the environment Sanic makes numbers."""
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise ValueError("must be true or false")
    return bool(value)


def words(value: Any) -> tuple[str, ...]:
    """A list of texts; one text holds them as JSON, or separated by blanks."""
    if isinstance(value, str):
        value = _json_list(value) if value.lstrip().startswith("[") else _blank_separated(value)
    if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(word, str) for word in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def _json_list(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError("is not a JSON list") from None


def _blank_separated(text: str) -> list[str]:
    if "," in text:
        # A subject may hold one; who writes it here has most likely meant two.
        raise ValueError("must be separated by blanks, not commas; a JSON list may hold words with commas")
    return text.split()


def server_urls(value: Any) -> tuple[str, ...]:
    """URLs of NATS servers, all of one kind."""
    servers = words(value)
    if not servers:
        raise ValueError("must name at least one NATS server")
    if not all(_is_server(server) for server in servers):
        raise ValueError("must be NATS URLs such as nats://127.0.0.1:4222")
    if len({server.partition("://")[0].lower() in ("ws", "wss") for server in servers}) > 1:
        raise ValueError("must not mix WebSocket URLs with others")
    return servers


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        address = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return address and not _UNPRINTABLE.search(url) and parts.path in ("", "/") and not parts.query + parts.fragment


def open_patterns(value: Any) -> tuple[str, ...]:
    """Patterns that may be opened to clients."""
    patterns = words(value)
    _permissible("subscribe", subscribe=patterns)
    return patterns


def shut_patterns(value: Any) -> tuple[str, ...]:
    """Patterns that may be shut to clients."""
    patterns = words(value)
    _permissible("deny", deny=patterns)
    return patterns


def _permissible(name: str, **permissions: tuple[str, ...]) -> None:
    try:
        Permissions(**permissions)  # type: ignore[arg-type]  # mypy sees one type for all keywords
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{name} ")) from None


def header_names(value: Any) -> tuple[str, ...]:
    """Names of NATS headers."""
    names = words(value)
    if not all(_HEADER_NAME.fullmatch(name) for name in names):
        raise ValueError("must be names of NATS headers")
    return names


def origins(value: Any) -> tuple[str, ...]:
    """Origins, as browsers write them."""
    origins = words(value)
    if "*" in origins:
        raise ValueError("must name each origin: '*' would let in the pages of everybody, with their visitors' cookies")
    return tuple(map(_origin, origins))


def _origin(text: str) -> str:
    try:
        return str(parse_origin(text))
    except ValueError:
        raise ValueError(
            f"must be origins such as https://app.example, in ASCII and without a path, or null: {text!a}"
        ) from None


def path_prefix(value: Any) -> str:
    """A path without a slash at its end, or nothing."""
    if not isinstance(value, str) or not _PREFIX.fullmatch(value):
        raise ValueError("must be empty or a path such as /nats, without a slash at its end")
    return value


def seconds(least: float, most: float = _MAX_SECONDS) -> Callable[[Any], float]:
    """A check for a duration of ``least`` to ``most`` seconds, a day by default."""

    def check(value: Any) -> float:
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if not number or not least <= value <= most:
            raise ValueError(f"must be a number of seconds, from {least} to {most}")
        return float(value)

    return check


def rate(value: Any) -> float:
    """How many times a second."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError("must be a number above 0")
    return float(value)


def function(value: Any) -> Callable[..., Any]:
    """What can be called."""
    if not callable(value):
        raise ValueError("must be an async function")
    function: Callable[..., Any] = value
    return function


def one_of(*words: str) -> Callable[[Any], str]:
    """A check for one of these words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return check


def whole(least: int) -> Callable[[Any], int]:
    """A check for a whole number of at least ``least``."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"must be a whole number, at least {least}")
        return value

    return check


def readable_file(value: Any) -> str:
    """The path of a file that is there."""
    path = os.fspath(value) if isinstance(value, Path) else text(value)
    try:
        there = Path(path).is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        # What it says instead may be the secret itself.
        raise ValueError("must be the path of a file that is there")
    return path


def reserved_prefix(value: Any) -> str:
    """A subject without wildcards, of those that no wildcard in first place matches."""
    prefix = text(value)
    with contextlib.suppress(InvalidSubject):
        # A client that may follow everything must not see what the app and the bridge say to others.
        if validate(prefix)[0] == "_" and not has_wildcard(prefix) and len(prefix) <= _MAX_PREFIX_BYTES:
            return prefix
    raise ValueError(f"must be a subject of at most {_MAX_PREFIX_BYTES} bytes, without wildcards, beginning with '_'")


def tls_context(value: Any) -> ssl.SSLContext:
    """An ``ssl.SSLContext``."""
    if not isinstance(value, ssl.SSLContext):
        raise ValueError("must be an ssl.SSLContext; in the configuration use tls_ca, tls_cert and tls_key")
    return value
