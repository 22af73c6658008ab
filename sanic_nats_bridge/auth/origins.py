"""Which origins (RFC 6454) may come in: one rule for all doors.

A browser lets any page open a WebSocket to any host, its visitor's cookies included, and leaves it to the
server to ask where the page is from (RFC 6455, section 10.2).
"""

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address
from typing import Final, NamedTuple

__all__ = ["Caller", "Origin", "OriginPolicy", "parse_origin"]

_HOST: Final = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
_ORIGIN: Final = re.compile(rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://{_HOST}(?::(?P<port>[0-9]{{1,5}}))?")
_AUTHORITY: Final = re.compile(rf"{_HOST}(?::(?P<port>[0-9]{{0,5}}))?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NULL: Final = "null"
_FOREIGN_SITES: Final = ("cross-site", "same-site")
_MAX_PORT: Final = 65_535


class Origin(NamedTuple):
    """Where a page is from. ``port`` is ``None`` where none is named and the scheme has no default."""

    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        """As a browser writes it: without the default port of its scheme."""
        if self.scheme == _NULL:
            return _NULL
        port = "" if self.port in (None, _DEFAULT_PORTS.get(self.scheme)) else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


class Caller(NamedTuple):
    """What the rule looks at in a request."""

    origins: Sequence[str]
    """Every ``Origin`` header."""
    fetch_sites: Sequence[str]
    """Every ``Sec-Fetch-Site`` header."""
    host: str
    """The host that the client has named, with its port where it has named one."""
    port: int | None
    """The port, where a trusted proxy tells it; it counts before that in ``host``."""
    scheme: str | None
    """``http`` or ``https``, where it is known."""


class OriginPolicy:
    """Lets in the app's own pages, those of the allowed origins, and clients that are not browsers."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed: Final = frozenset(map(parse_origin, allowed))

    def allows(self, caller: Caller) -> bool:
        """Whether the request may come in.

        Without an ``Origin`` the browser's ``Sec-Fetch-Site`` decides; a value of it that is not known
        counts as absent (Fetch Metadata, section 2.2).
        """
        if not caller.origins:
            return not any(site.strip().lower() in _FOREIGN_SITES for site in caller.fetch_sites)
        origin = _only(caller.origins)
        return origin is not None and (origin in self._allowed or _is_own(origin, caller))

    def listed(self, origins: Sequence[str]) -> str | None:
        """The ``Origin`` header as it came, where the one that there is names an allowed origin."""
        return origins[0].strip() if _only(origins) in self._allowed else None


def parse_origin(text: str) -> Origin:
    """Read an origin in ASCII, as browsers write it, or ``null``.

    A host is compared as it stands: with a dot at its end it is another.

    Raises:
        ValueError: It is none.
    """
    if text == _NULL:
        return Origin(_NULL, "", None)
    match = _ORIGIN.fullmatch(text)
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
    """Whether the origin is that of the host to which the request went."""
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
