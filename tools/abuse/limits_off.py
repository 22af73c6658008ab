"""Removal of the limits that no setting can turn off, for the control runs.

Each is a constant of the bridge that is replaced by a huge one, or a piece of code that is replaced by the simplest
one that does the same. The names are checked, so that a control run fails if the bridge was changed.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from sanic_nats_bridge.auth.exclusions import DeniedIndex, Exclusions
from sanic_nats_bridge.auth.pattern_lists import ClientList
from sanic_nats_bridge.nats.subscription_index import SubscriptionIndex
from sanic_nats_bridge.protocol import subjects
from sanic_nats_bridge.protocol.pattern_index import PatternIndex
from sanic_nats_bridge.publishing.in_progress import InProgress

__all__ = ["LIMITS", "remove_limits"]

_PACKAGE = "sanic_nats_bridge"
_HUGE = 10**9


def _replace(place: str, name: str, value: Any) -> None:
    """Replace an attribute of a module of the bridge, or of a class in it.

    Raises:
        AttributeError: It doesn't exist.
    """
    module, _, inner = place.partition(":")
    owner = import_module(f"{_PACKAGE}.{module}")
    if inner:
        owner = getattr(owner, inner)
    getattr(owner, name)
    setattr(owner, name, value)


class _SearchedAllowed:
    """The allowed patterns of `Permissions`, searched one after another instead of by an index."""

    def __init__(self, indexes: Sequence[tuple[PatternIndex, Sequence[int]]]) -> None:
        self._patterns = [pattern for index, _ in indexes for pattern in index.patterns]

    def first_covering(self, real: str) -> str | None:
        return next((pattern for pattern in self._patterns if subjects.covers(pattern, real)), None)


class _SearchedProhibitions:
    """The denied patterns of `Permissions`, searched one after another instead of by an index."""

    def __init__(self, denied: ClientList, targets: Collection[str]) -> None:
        self._denied = sorted(denied.shared.patterns)

    def rule(self, real: str, *, by_alias: bool) -> str | None:
        return next((f"deny {pattern}" for pattern in self._denied if subjects.includes(pattern, real)), None)

    def exclusions(self, real: str, *, by_alias: bool) -> Exclusions:
        return DeniedIndex({pattern for pattern in self._denied if subjects.overlaps(pattern, real)}).overlapping(real)


def _search_permissions() -> None:
    _replace("auth.pattern_lists", "AllowedIndex", _SearchedAllowed)
    _replace("auth.permissions", "_Prohibitions", _SearchedProhibitions)


def _search_refused() -> None:
    def search(index: SubscriptionIndex, pattern: str) -> list[int]:
        return [sid for sid, each in index._patterns.items() if each == pattern]

    _replace("nats.subscription_index:SubscriptionIndex", "of", search)
    _replace("nats.connection", "_REFUSALS_PER_TURN", _HUGE)
    _replace("hub.hub", "_ENDED_PER_TURN", _HUGE)


def _ask_for_any_worker() -> None:
    _replace("cluster.known_workers:KnownWorkers", "may_exist", lambda known, worker, now: True)


def _count_for_worker_only() -> None:
    def acquire(limit: InProgress, session: str, client: str) -> None:
        if limit._by_session[session] >= limit._max_of_session:
            raise limit._session_error()
        if limit._all >= limit._max_of_worker:
            raise limit._error()
        limit._by_session[session] += 1
        limit._by_client[client] += 1
        limit._all += 1

    _replace("publishing.in_progress:InProgress", "acquire", acquire)


def _constants(*places: tuple[str, str, Any]) -> Callable[[], None]:
    def replace() -> None:
        for place, name, value in places:
            _replace(place, name, value)

    return replace


LIMITS: Mapping[str, tuple[str, Callable[[], None]]] = {
    "copies": (
        "each pattern has a subscription of its own",
        _constants(("hub.queue_groups", "_MAX_ALONE", _HUGE)),
    ),
    "index": ("permissions are searched pattern by pattern", _search_permissions),
    "units": (
        "a command costs the same for any number of patterns",
        _constants(("sessions.rate_limit", "_PATTERNS_PER_UNIT", _HUGE)),
    ),
    "refusals": ("each -ERR searches all subscriptions, all in one turn", _search_refused),
    "workers": ("NATS is asked for any worker", _ask_for_any_worker),
    "shares": ("one client may take all requests of the worker", _count_for_worker_only),
    "body turns": (
        "a body is read in one turn",
        _constants(("transports.input_limits:PartLimit", "turn_ends", False)),
    ),
    "slices": (
        "all input is parsed in one turn",
        _constants(("transports.read_throttle", "_SLICE_BYTES", _HUGE)),
    ),
    "fragments": (
        "small fragments cost nothing",
        _constants(("transports.sanic", "SMALL_BYTES", 0)),
    ),
    "pipelining": (
        "any number of requests may wait behind an event stream",
        _constants(("transports.sanic", "_MAX_PIPELINED_BYTES", _HUGE)),
    ),
    "flush turns": (
        "all that was received is written in one turn",
        _constants(
            ("hub.fan_out", "_COST_PER_TURN", _HUGE),
            ("hub.fan_out", "_COST_BETWEEN_LOOKS", _HUGE),
            ("hub.fan_out", "_SECONDS_PER_TURN", _HUGE),
        ),
    ),
    "log": ("log lines aren't limited", _constants(("log_limits", "LINES", _HUGE))),
    "metrics": (
        "metrics are gathered for each request",
        _constants(("routes.metrics", "_MAX_AGE_SECONDS", 0.0)),
    ),
}
"""The limits by name: what is so without the limit, and the function that removes it."""


def remove_limits(names: Iterable[str]) -> None:
    """Remove limits in this process.

    Raises:
        KeyError: There is no such limit.
        AttributeError: The bridge has no such part any more.
    """
    for name in names:
        _, remove = LIMITS[name]
        remove()
