"""The origin check (RFC 6454), the same for all routes.

A browser lets any page open a WebSocket to any host, and sends the visitor's cookies. The server must check the
origin of the page (RFC 6455, section 10.2).
"""

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address
from typing import NamedTuple

__all__ = ["Caller", "Origin", "OriginPolicy", "allowable", "parse_origin"]

_HOST = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
# Origins of web views and extensions. Their hosts may be empty, as in file://, or have any other characters that an
# opaque host may have (WHATWG URL, section 3.2), except for an asterisk, which would look like a wildcard.
_OPAQUE_HOST = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[!\"$-)+-.0-9;=A-Z_`a-z{}~]*)"
_PORT = r"(?::(?P<port>[0-9]{1,5}))?"
_WEB_ORIGIN = re.compile(rf"(?P<scheme>https?|wss?|ftp)://{_HOST}{_PORT}", re.IGNORECASE)
_OTHER_ORIGIN = re.compile(rf"(?!(?i:https?|wss?|ftp):)(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://{_OPAQUE_HOST}{_PORT}")
_AUTHORITY = re.compile(rf"{_HOST}(?::(?P<port>[0-9]{{0,5}}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NULL = "null"
_FOREIGN_SITES = ("cross-site", "same-site")
_MAX_PORT = 65_535


class Origin(NamedTuple):
    """The origin of a page. ``port`` is ``None`` if the origin has none and the scheme has no default."""

    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        """Return the origin as a browser writes it, without the default port of its scheme."""
        if self.scheme == _NULL:
            return _NULL
        port = "" if self.port in (None, _DEFAULT_PORTS.get(self.scheme)) else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


class Caller(NamedTuple):
    """The parts of a request that the origin check needs."""

    origins: Sequence[str]
    """The ``Origin`` headers."""
    fetch_sites: Sequence[str]
    """The ``Sec-Fetch-Site`` headers."""
    host: str
    """The host that the client has requested, with the port if it has given one."""
    port: int | None
    """The port that a trusted proxy reports. It overrides the port in ``host``."""
    scheme: str | None
    """``http`` or ``https``, if known."""


class OriginPolicy:
    """The origin check: it allows the app's own pages, those of allowed origins, and clients that aren't browsers."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(map(parse_origin, allowed))

    def allows(self, caller: Caller) -> bool:
        """Return whether the request is allowed.

        Without an ``Origin``, the browser's ``Sec-Fetch-Site`` decides. An unknown value of it is ignored
        (Fetch Metadata, section 2.2).
        """
        if not caller.origins:
            return not any(site.strip().lower() in _FOREIGN_SITES for site in caller.fetch_sites)
        origin = _only(caller.origins)
        return origin is not None and (origin in self._allowed or _is_own(origin, caller))

    def listed(self, origins: Sequence[str]) -> str | None:
        """Return the ``Origin`` header unchanged if it is the only one and names an allowed origin."""
        return origins[0].strip() if _only(origins) in self._allowed else None


def allowable(origins: Sequence[str]) -> str | None:
    """Return the ``Origin`` header as the setting ``allowed_origins`` takes it; ``None`` if that can't name it."""
    return None if _only(origins) is None else origins[0].strip(" \t")


def parse_origin(text: str) -> Origin:
    """Parse an origin in ASCII, as browsers write it, or ``null``.

    The host may be empty for schemes of web views, such as ``file://``.

    Hosts are compared literally: a trailing dot makes a different host.

    Raises:
        ValueError: The string isn't an origin.
    """
    if text == _NULL:
        return Origin(_NULL, "", None)
    match = _WEB_ORIGIN.fullmatch(text) or _OTHER_ORIGIN.fullmatch(text)
    if match is None:
        raise ValueError("not an origin")
    scheme = match["scheme"].lower()
    return Origin(scheme, _host(match["host"]), _port(match["port"]) or _DEFAULT_PORTS.get(scheme))


def _only(origins: Sequence[str]) -> Origin | None:
    if len(origins) != 1:
        return None
    try:
        return parse_origin(origins[0].strip(" \t"))
    except ValueError:
        return None


def _is_own(origin: Origin, caller: Caller) -> bool:
    """Return whether the origin is that of the host to which the request was sent."""
    match = _AUTHORITY.fullmatch(caller.host)
    if match is None or origin.scheme not in _DEFAULT_PORTS or caller.scheme not in (None, origin.scheme):
        return False
    try:
        port = caller.port or _port(match["port"]) or _DEFAULT_PORTS[origin.scheme]
        return (origin.host, origin.port) == (_host(match["host"]), port)
    except ValueError:
        return False


def _host(text: str) -> str:
    return f"[{IPv6Address(text[1:-1]).compressed}]" if text.startswith("[") else text.lower()


def _port(text: str | None) -> int | None:
    if not text:
        return None
    port = int(text)
    if not 0 < port <= _MAX_PORT:
        raise ValueError("not a port")
    return port
