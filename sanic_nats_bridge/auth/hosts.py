"""The host check, which keeps out pages that have made their own name resolve to the app's address (DNS rebinding).

To its browser, such a page has the same origin as the app, so it may read what the app serves without a login. Only the
name in the ``Host`` header shows that it isn't the app's own page. A page can't forge that header.
"""

import re
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeAlias

__all__ = ["LOCAL_HOSTS", "HostPolicy", "parse_allowed_host"]

LOCAL_HOSTS = ("localhost", "*.localhost", "0.0.0.0/0", "::/0")
"""The hosts of a developer's machine: ``localhost``, and every IP address. No website can have them
as its name: browsers resolve ``localhost`` themselves (RFC 6761, section 6.3)."""

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>{_NAME})\.?)(?::[0-9]*)?")
_ALLOWED_NAME = re.compile(rf"(?:\*\.)?{_NAME}\.?")
_MAX_HOST_LENGTH = 300  # more than the longest name with its port
_WILD = "*."

_Address: TypeAlias = IPv4Address | IPv6Address


class HostPolicy:
    """The hosts to which requests may be sent.

    Args:
        allowed: Names, names that begin with ``*.`` for all names below, IP addresses and networks. ``None`` for any
            host, unless `allows` has the name of the server, or only local hosts are known.
    """

    def __init__(self, allowed: Iterable[str] | None) -> None:
        self._allowed = None if allowed is None else _Hosts(allowed)

    def allows(self, host: str, server_name: str = "", *, only_known: bool = False, local: bool = False) -> bool:
        """Return whether a request to a host is allowed. A port, a dot at the end and capitals make no difference.

        Args:
            host: The host to which the client has sent the request, with the port if it has given one.
            server_name: The name of the server in the app's configuration, or an empty string. It is allowed, and
                without a list of hosts no other name is.
            only_known: Whether only local hosts are allowed without a list of hosts, and in addition to one.
            local: Whether local hosts, and requests without a host, are allowed in addition to a list.
        """
        if self._allowed is None and not server_name and not only_known:
            return True
        if not host:
            return local
        parsed = _parse(host)
        if parsed is None:
            return False
        if server_name and parsed == _parse(server_name):
            return True
        if self._allowed is not None and parsed in self._allowed:
            return True
        return (self._allowed is None or only_known or local) and parsed in _LOCAL


class _Hosts:
    """A set of hosts."""

    def __init__(self, allowed: Iterable[str]) -> None:
        parsed = [parse_allowed_host(text) for text in allowed]
        self._names = {host for host in parsed if isinstance(host, str)}
        self._networks = [host for host in parsed if not isinstance(host, str)]

    def __contains__(self, host: object) -> bool:
        if not isinstance(host, str):
            return any(host in network for network in self._networks)
        if host in self._names:
            return True
        # The names above it, of which a name has a limited number.
        labels = host.split(".")
        return any(_WILD + ".".join(labels[depth:]) in self._names for depth in range(1, len(labels)))


def parse_allowed_host(text: str) -> str | IPv4Network | IPv6Network:
    """Parse an element of the setting ``allowed_hosts``.

    Raises:
        ValueError: The string is neither a name, nor ``*.`` and a name, nor an IP address or network.
    """
    try:
        return ip_network(text[1:-1] if text.startswith("[") and text.endswith("]") else text, strict=False)
    except ValueError:
        pass
    if _ALLOWED_NAME.fullmatch(text) is None:
        raise ValueError("not a host")
    return text.lower().removesuffix(".")


def _parse(host: str) -> str | _Address | None:
    """Return the host in the form in which it is compared; ``None`` if it isn't one."""
    match = _HOST.fullmatch(host) if len(host) <= _MAX_HOST_LENGTH else None
    if match is None:
        return None
    name = match["ipv6"] or match["name"]
    try:
        return ip_address(name)
    except ValueError:
        return None if match["ipv6"] else name.lower()


_LOCAL = _Hosts(LOCAL_HOSTS)
