"""The metrics: their names, and what they are of a worker's stats.

Names follow Prometheus's rules (base units, ``_total`` for what only grows). No label holds a subject, a
session or an identity: what clients can choose must not decide how many series there are.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from .stats import Stats

__all__ = ["METRICS", "Metric", "Readings", "combined", "readings"]

Readings: TypeAlias = dict[str, dict[str, float]]
"""By the name of a metric, and by the value of its label (empty where it has none), the number."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric, of one worker."""

    name: str
    help: str
    read: Callable[[Stats], float | Mapping[str, float]]
    label: str | None = None
    """The label by which there are several numbers, beside ``worker``."""
    combine: Callable[[float, float], float] = operator.add
    """How the numbers of two processes that are one worker after another, for a moment both, become one."""

    @property
    def grows(self) -> bool:
        """Whether it is a counter; otherwise it is a gauge."""
        return self.name.endswith("_total")


METRICS: Final = (
    Metric(
        name="natsbridge_sessions",
        help="SessionRegistry now",
        read=lambda stats: stats.sessions,
        label="transport",
    ),
    Metric(
        name="natsbridge_patterns",
        help="Patterns now that NATS is asked for",
        read=lambda stats: stats.patterns,
    ),
    Metric(
        name="natsbridge_messages_total",
        help="Messages that have come from NATS and that somebody follows",
        read=lambda stats: stats.messages,
    ),
    Metric(
        name="natsbridge_deliveries_total",
        help="Messages handed to the connections of clients",
        read=lambda stats: stats.deliveries,
    ),
    Metric(
        name="natsbridge_sent_bytes_total",
        help="Bytes written to the connections of sessions",
        read=lambda stats: stats.sent_bytes,
    ),
    Metric(
        name="natsbridge_lost_messages_total",
        help="Messages that a client was not given, or that nobody was",
        read=lambda stats: stats.lost,
        label="reason",
    ),
    Metric(
        name="natsbridge_gaps_total",
        help="Subscriptions whose client was told of a gap",
        read=lambda stats: stats.gaps,
        label="reason",
    ),
    Metric(
        name="natsbridge_slow_consumers_total",
        help="How often a client went over max_pending_bytes",
        read=lambda stats: stats.slow_consumers,
    ),
    Metric(
        name="natsbridge_refused_commands_total",
        help="Commands that were refused",
        read=lambda stats: stats.refused,
        label="code",
    ),
    Metric(
        name="natsbridge_closed_sessions_total",
        help="SessionRegistry that have ended, by close code",
        read=lambda stats: stats.closes,
        label="code",
    ),
    Metric(
        name="natsbridge_nats_connected",
        help="1 if NATS has answered for all that is followed, 0 if not",
        read=lambda stats: stats.nats == "connected",
        combine=min,
    ),
    Metric(
        name="natsbridge_nats_reconnects_total",
        help="Connections to NATS after the first",
        read=lambda stats: stats.nats_reconnects,
    ),
    Metric(
        name="natsbridge_loop_lag_seconds",
        help="Largest delay of the event loop within about the last 15 to 30 seconds",
        read=lambda stats: stats.loop_lag,
        combine=max,
    ),
)


def readings(stats: Stats) -> Readings:
    """What the metrics are by these stats."""
    found: Readings = {}
    for metric in METRICS:
        value = metric.read(stats)
        found[metric.name] = dict(value) if isinstance(value, Mapping) else {"": float(value)}
    return found


def combined(parts: Iterable[tuple[Readings, bool]]) -> Readings:
    """The readings of the processes that are, or were, one worker; of the dead ones only what they have counted.

    Each part comes with whether its process is alive.
    """
    whole: Readings = {}
    for part, alive in parts:
        for metric in METRICS:
            if not (alive or metric.grows):
                continue
            into = whole.setdefault(metric.name, {})
            for value, number in part.get(metric.name, {}).items():
                into[value] = metric.combine(into[value], number) if value in into else number
    return whole
