"""Which NATS server to try next, and how long to wait before it."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Final
from urllib.parse import SplitResult, urlsplit

__all__ = ["Server", "ServerPool"]

_LEAST_PAUSE_SECONDS: Final = 0.05
_MOST_PAUSE_SECONDS: Final = 2.0
_DEFAULT_PORT: Final = 4222
_TLS_SCHEMES: Final = ("tls", "wss")


@dataclass(frozen=True)
class Server:
    """One server to connect to."""

    url: str
    """Where it is, credentials included; not for logs."""

    verified_name: str | None = None
    """The name to look for in its certificate, where that is not the one in the URL."""

    @property
    def has_tls(self) -> bool:
        """Whether its URL asks for TLS."""
        return urlsplit(self.url).scheme in _TLS_SCHEMES

    @property
    def address(self) -> str:
        """Host and port."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port or _DEFAULT_PORT}"


class ServerPool:
    """The servers that the operator has named, and those of their cluster that they have told of."""

    def __init__(self, configured: Iterable[str]) -> None:
        self._configured = [_split(url) for url in configured]
        self._discovered: dict[str, SplitResult] = {}
        self._ceiling = _LEAST_PAUSE_SECONDS

    def discover(self, urls: Iterable[str]) -> None:
        """Note the servers of the cluster, as the last one that we were connected to knew them."""
        known = {_host(server) for server in self._configured}
        told_of = (_split(url) for url in urls if _is_usable(url))
        self._discovered = {_host(server): server for server in told_of if _host(server) not in known}

    def pause(self) -> float:
        """Seconds to wait after a round of failures, or after a connection that did not last."""
        self._ceiling = min(_MOST_PAUSE_SECONDS, self._ceiling * 2)
        return random.uniform(self._ceiling / 2, self._ceiling)

    def relax(self) -> None:
        """All is well: the next waits are short again."""
        self._ceiling = _LEAST_PAUSE_SECONDS

    def attempts(self) -> Iterator[tuple[Server, float]]:
        """Servers to try, without end, each with the seconds to wait when it fails.

        The named ones come first; the waits are short within a round, and grow from round to round.
        """
        servers = self._shuffled()
        for number, server in enumerate(cycle(servers), 1):
            yield server, _LEAST_PAUSE_SECONDS if number % len(servers) else self.pause()

    def others(self, address: str) -> list[Server]:
        """The servers, once each, but for the one with this address."""
        return [server for server in self._shuffled() if server.address != address]

    def _shuffled(self) -> list[Server]:
        named = [Server(server.geturl()) for server in self._configured]
        told_of = [self._as_configured(server) for server in self._discovered.values()]
        return random.sample(named, len(named)) + random.sample(told_of, len(told_of))

    def _as_configured(self, server: SplitResult) -> Server:
        # A server says neither the credentials nor the name that its certificate is made out to, nor the scheme.
        first = self._configured[0]
        scheme = next((each.scheme for each in self._configured if each.scheme in _TLS_SCHEMES), first.scheme)
        credentials = first.netloc.rpartition("@")[0]
        netloc = f"{credentials}@{_host(server)}" if credentials else _host(server)
        return Server(server._replace(scheme=scheme, netloc=netloc).geturl(), first.hostname)


def _split(url: str) -> SplitResult:
    return urlsplit(url if "://" in url else f"nats://{url}")


def _is_usable(url: str) -> bool:
    try:
        parts = _split(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _host(server: SplitResult) -> str:
    return server.netloc.rpartition("@")[2]
