"""The NATS servers to try, in their order, and the backoff between attempts."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from urllib.parse import SplitResult, urlsplit

__all__ = ["MAX_DISCOVERED", "Server", "ServerPool", "is_usable"]

MAX_DISCOVERED = 100
"""The largest number of discovered servers. Each server of a cluster is connected to all others, so few have more."""

_MIN_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_MIN_CYCLE_SECONDS = 1.0
_DISCOVERED_AT_ONCE = 10
_DEFAULT_PORT = 4222
_TLS_SCHEMES = ("tls", "wss")
_WEBSOCKET_SCHEMES = ("ws", "wss")


@dataclass(frozen=True)
class Server:
    """A NATS server."""

    url: str
    """The URL with credentials. It must not be logged."""

    verified_name: str | None = None
    """The host name that its certificate must have, if it isn't the one in the URL."""

    @property
    def has_tls(self) -> bool:
        """True if the URL requires TLS."""
        return urlsplit(self.url).scheme in _TLS_SCHEMES

    @property
    def address(self) -> str:
        """Host and port."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{host}:{parts.port or _DEFAULT_PORT}"


class ServerPool:
    """The configured servers, and the members of their cluster that were discovered.

    Args:
        configured: The URLs of the setting ``servers``.
    """

    def __init__(self, configured: Iterable[str]) -> None:
        self._configured = [_split(url) for url in configured]
        self._discovered: dict[str, SplitResult] = {}
        self._ceiling = _MIN_BACKOFF_SECONDS

    def discover(self, urls: Iterable[str]) -> None:
        """Replace the discovered servers by the URLs that the last connected server has announced.

        Configured servers and unusable URLs are skipped, and those after the first `MAX_DISCOVERED`.
        """
        configured = {_host(server) for server in self._configured}
        members = {_host(server): server for server in (_split(url) for url in urls if is_usable(url))}
        others = ((host, server) for host, server in members.items() if host not in configured)
        self._discovered = dict(islice(others, MAX_DISCOVERED))

    def next_backoff(self) -> float:
        """Double the backoff, up to a limit, and return the seconds to wait, with jitter."""
        self._ceiling = min(_MAX_BACKOFF_SECONDS, self._ceiling * 2)
        return random.uniform(self._ceiling / 2, self._ceiling)

    def backoff_after(self, seconds: float, *, served: bool) -> float:
        """Return the seconds to wait after a connection has ended.

        A connection that has served resets the backoff, however short it was: a server that is up only at times must
        not be missed. Such connections are at least one second apart. Without that limit a server that
        serves and then fails at once would be tried far more often.

        Args:
            seconds: The time for which the connection existed.
            served: True if the server had confirmed every subscription.
        """
        if not served:
            return self.next_backoff()
        self._ceiling = _MIN_BACKOFF_SECONDS
        return max(self.next_backoff(), _MIN_CYCLE_SECONDS - seconds)

    def wait_before_move(self, seconds: float) -> float:
        """Return the seconds to wait before a connection that still works is replaced.

        The time between two connections is the same as for connections that end: one second at least.

        Args:
            seconds: The time for which the connection existed.
        """
        return max(0.0, _MIN_CYCLE_SECONDS - seconds)

    def attempts(self) -> Iterator[tuple[Server, float]]:
        """Yield servers to try, indefinitely, each with the seconds to wait if it fails.

        Configured servers come first, and again after each few of the discovered ones: many of those may be out of
        date. The waits are short within a round, and grow from round to round.
        """
        servers = self._round()
        for number, server in enumerate(cycle(servers), 1):
            yield server, _MIN_BACKOFF_SECONDS if number % len(servers) else self.next_backoff()

    def others(self, address: str) -> list[Server]:
        """Return the servers except the one with this address, in the order of `attempts`."""
        return [server for server in self._shuffled() if server.address != address]

    def _round(self) -> list[Server]:
        servers = self._shuffled()
        configured, discovered = servers[: len(self._configured)], servers[len(self._configured) :]
        starts = range(0, len(discovered), _DISCOVERED_AT_ONCE)
        groups = [discovered[start : start + _DISCOVERED_AT_ONCE] for start in starts] or [[]]
        return [server for group in groups for server in (*configured, *group)]

    def _shuffled(self) -> list[Server]:
        configured = [Server(server.geturl()) for server in self._configured]
        discovered = [self._as_configured(server) for server in self._discovered.values()]
        return random.sample(configured, len(configured)) + random.sample(discovered, len(discovered))

    def _as_configured(self, server: SplitResult) -> Server:
        # A server announces members without credentials, scheme, path, and the host name of their certificate.
        first = self._configured[0]
        scheme = next((each.scheme for each in self._configured if each.scheme in _TLS_SCHEMES), first.scheme)
        path = first.path if scheme in _WEBSOCKET_SCHEMES else ""
        credentials = first.netloc.rpartition("@")[0]
        netloc = f"{credentials}@{_host(server)}" if credentials else _host(server)
        return Server(server._replace(scheme=scheme, netloc=netloc, path=path).geturl(), first.hostname)


def _split(url: str) -> SplitResult:
    return urlsplit(url if "://" in url else f"nats://{url}")


def is_usable(url: str) -> bool:
    """Return whether a URL or an address names a host."""
    try:
        parts = _split(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _host(server: SplitResult) -> str:
    return server.netloc.rpartition("@")[2]
