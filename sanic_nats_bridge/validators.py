"""One function per kind of setting; each returns the value as `Settings` keeps it.

All raise ``ValueError`` with a message that continues the name of the setting. `Settings` adds the value, unless it may
be a secret or the message has it.
"""

import contextlib
import json
import math
import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from .auth.hosts import parse_allowed_host
from .auth.origins import parse_origin
from .auth.permissions import CONTROL_TOKEN, Permissions
from .errors import InvalidSubject
from .protocol.headers import MAX_NAME_CHARACTERS, is_header_name, is_reserved_header
from .protocol.subjects import has_wildcard, is_valid, validate

__all__ = [
    "allowed_patterns",
    "boolean",
    "control_keys",
    "denied_patterns",
    "file_path",
    "function",
    "header_names",
    "history_patterns",
    "hosts",
    "integer",
    "one_of",
    "origins",
    "path_prefix",
    "publish_header_name",
    "publish_header_names",
    "publish_patterns",
    "rate",
    "rate_or_zero",
    "request_patterns",
    "reserved_prefix",
    "seconds",
    "server_urls",
    "streams",
    "string",
    "strings",
    "tls_context",
    "token",
]

_SCHEMES = ("nats", "tls", "ws", "wss")
_HEADER_NAME = re.compile(r"[!-9;-~]+")  # ADR-4: printable ASCII without the colon
_PREFIX = re.compile(r"(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._~-]+)*")
_MAX_PREFIX_BYTES = 128
_MAX_SECONDS = 86_400
_MAX_KEYS = 2
_MIN_KEY_LENGTH = 32
_PLAIN_ADDRESS = re.compile(r"(?:[a-z+]+://)?[\w.\-\[\]]*(?::\d*)?/?", re.IGNORECASE | re.ASCII)
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f]")
_MAX_STREAMS = 8
_MAX_NAME_BYTES = 255
_NOT_IN_STREAM_NAME = re.compile(r"[\s.*>/\\]")  # https://docs.nats.io/nats-concepts/jetstream/streams


def string(value: Any) -> str:
    """Return a non-empty string."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be a non-empty string")
    return value


def boolean(value: Any) -> bool:
    """Return a Boolean. Sanic converts ``1`` and ``0`` in the environment to numbers."""
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise ValueError("must be True or False")
    return bool(value)


def strings(value: Any) -> tuple[str, ...]:
    """Return several strings: a list, or one string with a JSON list or with words separated by spaces."""
    if isinstance(value, str):
        value = _json_list(value) if value.lstrip().startswith("[") else _words(value)
    if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(word, str) for word in value):
        raise ValueError("must be a list of strings")
    return tuple(value)


def _json_list(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError("must be a valid JSON list") from None


def _words(text: str) -> list[str]:
    if "," in text:
        # A subject may contain a comma, but this one most likely separates two words.
        raise ValueError("must be separated by spaces, not commas; use a JSON list for words that contain a comma")
    return text.split()


def server_urls(value: Any) -> tuple[str, ...]:
    """Return the URLs of NATS servers: all WebSocket URLs, or none."""
    servers = strings(value)
    if not servers:
        raise ValueError("must have at least one NATS server")
    for number, server in enumerate(servers, 1):
        if not _is_server(server):
            shown = f"{server!a}"
            if not _PLAIN_ADDRESS.fullmatch(server):
                # A part of a password that isn't percent-encoded may be anywhere in it.
                shown = f"value {number}, whose password may need percent-encoding"
            raise ValueError(f"must be NATS URLs such as nats://127.0.0.1:4222, not {shown}")
    if len({server.partition("://")[0].lower() in ("ws", "wss") for server in servers}) > 1:
        raise ValueError("must not mix WebSocket URLs with others")
    return servers


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        address = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    path = parts.path in ("", "/") or parts.scheme in ("ws", "wss")
    return address and path and not _UNPRINTABLE.search(url) and not parts.query + parts.fragment


def allowed_patterns(value: Any) -> tuple[str, ...]:
    """Return patterns that `Permissions` accepts as allowed."""
    patterns = strings(value)
    _check_permissions("subscribe", subscribe=patterns)
    return patterns


def denied_patterns(value: Any) -> tuple[str, ...]:
    """Return patterns that `Permissions` accepts as denied."""
    patterns = strings(value)
    _check_permissions("deny", deny=patterns)
    return patterns


def history_patterns(value: Any) -> tuple[str, ...]:
    """Return patterns that `Permissions` accepts as those whose past may be read."""
    patterns = strings(value)
    _check_permissions("history", history=patterns)
    return patterns


def publish_patterns(value: Any) -> tuple[str, ...]:
    """Return patterns that `Permissions` accepts as those of subjects to which clients may publish."""
    patterns = strings(value)
    _check_permissions("publish", publish=patterns)
    return patterns


def request_patterns(value: Any) -> tuple[str, ...]:
    """Return patterns that `Permissions` accepts as those of subjects to which clients may send requests."""
    patterns = strings(value)
    _check_permissions("request", request=patterns)
    return patterns


def _check_permissions(name: str, **permissions: tuple[str, ...]) -> None:
    try:
        Permissions(**permissions)  # type: ignore[arg-type]  # mypy sees one type for all keywords
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{name} ")) from None


def streams(value: Any) -> Mapping[str, tuple[str, ...] | None]:
    """Return the patterns of each stream, or ``None`` for all of its subjects: a mapping, or a string with JSON."""
    if isinstance(value, str):
        value = _json_object(value) if value.strip() else {}
    if not isinstance(value, Mapping):
        raise ValueError('must be a dict such as {"ORDERS": None, "KV_prefs": ["$KV.prefs.>"]}, or JSON with null')
    if len(value) > _MAX_STREAMS:
        raise ValueError(f"must be at most {_MAX_STREAMS} streams, got {len(value)}")
    return MappingProxyType({_stream_name(name): _stream_patterns(name, each) for name, each in value.items()})


def _json_object(text: str) -> Any:
    """Return what a string has as JSON; ``None`` if it isn't JSON."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (json.JSONDecodeError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # JSON would keep the last one.
        raise ValueError("must have each stream once")
    return found


def _stream_name(name: Any) -> str:
    valid = isinstance(name, str) and name.isprintable() and not _NOT_IN_STREAM_NAME.search(name)
    if not valid or not 1 <= len(name.encode()) <= _MAX_NAME_BYTES:
        raise ValueError(
            f"must have names of 1 to {_MAX_NAME_BYTES} bytes without spaces, slashes and any of . * >, got {name!a}"
        )
    return str(name)


def _stream_patterns(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    try:
        patterns = strings(value)
    except ValueError:
        patterns = ()
    if not patterns:
        raise ValueError(f"must have a list of patterns, or None for all subjects, for '{name}', got {value!a}")
    for pattern in patterns:
        if not is_valid(pattern) or pattern.partition(".")[0] == CONTROL_TOKEN:
            raise ValueError(f"must have valid patterns for '{name}', got {pattern!a}")
    return tuple(dict.fromkeys(patterns))


def header_names(value: Any) -> tuple[str, ...]:
    """Return names of NATS headers (ADR-4)."""
    names = strings(value)
    if any(name.lower() == "status" for name in names):
        raise ValueError("must not name 'Status': NATS itself uses it in messages that are not the app's")
    if not all(_HEADER_NAME.fullmatch(name) for name in names):
        raise ValueError("must be names of NATS headers, in printable ASCII without a colon")
    return names


def publish_header_name(value: Any) -> str:
    """Return the name of a header of the messages that clients publish."""
    if not isinstance(value, str) or not is_header_name(value):
        raise ValueError(f"must be a token of HTTP (RFC 9110) of at most {MAX_NAME_CHARACTERS} characters")
    if is_reserved_header(value):
        raise ValueError(
            "must not be 'Status', 'Description' or a name that begins with 'Nats-': NATS itself uses them"
        )
    return value


def publish_header_names(value: Any) -> tuple[str, ...]:
    """Return names of headers that clients may set, each once without regard to case."""
    names = tuple(map(publish_header_name, strings(value)))
    if len({name.lower() for name in names}) < len(names):
        raise ValueError("must have each name once; names compare without regard to case")
    return names


def origins(value: Any) -> tuple[str, ...]:
    """Return origins as browsers write them."""
    origins = strings(value)
    if "*" in origins:
        raise ValueError("must name each origin: '*' would admit every page, with the cookies of its visitors")
    return tuple(map(_origin, origins))


def _origin(text: str) -> str:
    try:
        return str(parse_origin(text))
    except ValueError:
        raise ValueError("must be origins such as https://app.example, in ASCII and without a path, or null") from None


def hosts(value: Any) -> tuple[str, ...]:
    """Return at least one host, as `HostPolicy` takes it."""
    hosts = strings(value)
    if "*" in hosts:
        raise ValueError("must name each host: '*' would allow any, as does no value")
    try:
        for host in hosts:
            parse_allowed_host(host)
    except ValueError:
        hosts = ()
    if not hosts:
        raise ValueError(
            "must be hosts such as app.example, *.app.example, 192.0.2.1 or 10.0.0.0/8, in ASCII and without a port"
        )
    return hosts


def path_prefix(value: Any) -> str:
    """Return an empty string or a path, without a slash at its end."""
    if isinstance(value, str):
        value = value.removesuffix("/")
    if not isinstance(value, str) or not _PREFIX.fullmatch(value):
        raise ValueError("must be empty or a path such as /nats")
    return value


def seconds(minimum: float, maximum: float = _MAX_SECONDS, *, or_zero: bool = False) -> Callable[[Any], float]:
    """Return a validator for a duration in seconds, of one day at most by default.

    Args:
        minimum: The shortest duration.
        maximum: The longest duration.
        or_zero: Whether 0 is valid too.
    """

    def check(value: Any) -> float:
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if number and (minimum <= value <= maximum or (or_zero and value == 0)):
            return float(value)
        if or_zero:
            raise ValueError(f"must be 0, or a number of seconds from {minimum} to {maximum}")
        raise ValueError(f"must be a number of seconds from {minimum} to {maximum}")

    return check


def rate_or_zero(value: Any) -> float:
    """Return a number of events per second, or 0 for no limit."""
    return 0.0 if not isinstance(value, bool) and value == 0 else rate(value)


def rate(value: Any) -> float:
    """Return a number of events per second."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError("must be a number above 0")
    return float(value)


def function(value: Any) -> Callable[..., Any]:
    """Return a callable."""
    if not callable(value):
        raise ValueError("must be a function")
    function: Callable[..., Any] = value
    return function


def one_of(*words: str) -> Callable[[Any], str]:
    """Return a validator for one of these words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return check


def integer(minimum: int) -> Callable[[Any], int]:
    """Return a validator for an integer of at least ``minimum``."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"must be an integer of at least {minimum}")
        return value

    return check


def file_path(value: Any) -> str:
    """Return the path of an existing file."""
    path = os.fspath(value) if isinstance(value, Path) else string(value)
    try:
        exists = Path(path).is_file()
    except (OSError, ValueError):
        exists = False
    if not exists:
        # Without the value: a secret may have been given instead of a path.
        raise ValueError("must be the path of an existing file")
    return path


def reserved_prefix(value: Any) -> str:
    """Return a literal subject that no wildcard in first place matches."""
    prefix = string(value)
    with contextlib.suppress(InvalidSubject):
        # A client that may subscribe to everything must not see these subjects.
        if validate(prefix)[0] == "_" and not has_wildcard(prefix) and len(prefix) <= _MAX_PREFIX_BYTES:
            return prefix
    raise ValueError(f"must be a literal subject of at most {_MAX_PREFIX_BYTES} bytes that begins with '_'")


def token(value: Any) -> str:
    """Return one literal token of a subject."""
    if not isinstance(value, str) or "." in value or has_wildcard(value) or not is_valid(value):
        raise ValueError("must be one token of a subject, without dots and wildcards")
    return value


def control_keys(value: Any) -> tuple[str, ...]:
    """Return one key, or two different ones."""
    keys = strings(value)
    if not 1 <= len(keys) <= _MAX_KEYS or len({*keys}) < len(keys) or min(map(len, keys)) < _MIN_KEY_LENGTH:
        raise ValueError(f"must be one key, or the new and the old one, of at least {_MIN_KEY_LENGTH} characters each")
    return keys


def tls_context(value: Any) -> ssl.SSLContext:
    """Return an ``ssl.SSLContext``."""
    if not isinstance(value, ssl.SSLContext):
        raise ValueError("must be an ssl.SSLContext; in the configuration use tls_ca, tls_cert and tls_key")
    return value
