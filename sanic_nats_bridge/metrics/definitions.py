"""The definitions of the metrics, and their values from a worker's stats.

Names follow the rules of Prometheus (base units, ``_total`` for counters). No label has a subject, a session or an
identity, because clients must not decide the number of series.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from .stats import Stats

__all__ = ["METRICS", "Metric", "Readings", "combined", "readings"]

Readings: TypeAlias = dict[str, dict[str, float]]
"""Values by the name of the metric, and by the value of its label, which is empty if it has none."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of one worker."""

    name: str
    help: str
    read: Callable[[Stats], float | Mapping[str, float]]
    label: str | None = None
    """The name of its label, beside ``worker``."""
    combine: Callable[[float, float], float] = operator.add
    """Combines the values of two processes that are the same worker, one after the other."""

    @property
    def grows(self) -> bool:
        """True if the metric is a counter; otherwise it is a gauge."""
        return self.name.endswith("_total")


METRICS = (
    Metric(
        name="natsbridge_sessions",
        help="Open sessions",
        read=lambda stats: stats.sessions,
        label="transport",
    ),
    Metric(
        name="natsbridge_patterns",
        help="Patterns to which the worker is subscribed in NATS",
        read=lambda stats: stats.patterns,
    ),
    Metric(
        name="natsbridge_messages_total",
        help="Messages from NATS that have a subscriber",
        read=lambda stats: stats.messages,
    ),
    Metric(
        name="natsbridge_deliveries_total",
        help="Messages written to clients",
        read=lambda stats: stats.deliveries,
    ),
    Metric(
        name="natsbridge_sent_bytes_total",
        help="Bytes written to clients",
        read=lambda stats: stats.sent_bytes,
    ),
    Metric(
        name="natsbridge_lost_messages_total",
        help="Messages that were skipped for one client, or for all",
        read=lambda stats: stats.lost,
        label="reason",
    ),
    Metric(
        name="natsbridge_gaps_total",
        help="Subscriptions for which a gap was sent",
        read=lambda stats: stats.gaps,
        label="reason",
    ),
    Metric(
        name="natsbridge_slow_consumers_total",
        help="Times that a client exceeded max_pending_bytes",
        read=lambda stats: stats.slow_consumers,
    ),
    Metric(
        name="natsbridge_status_messages_total",
        help="Messages with which NATS itself reports a state; no client gets them",
        read=lambda stats: stats.status_messages,
    ),
    Metric(
        name="natsbridge_refused_commands_total",
        help="Commands that were rejected, and requests that would have opened a session",
        read=lambda stats: stats.refused,
        label="code",
    ),
    Metric(
        name="natsbridge_closed_sessions_total",
        help="Sessions that have ended, by close code",
        read=lambda stats: stats.closes,
        label="code",
    ),
    Metric(
        name="natsbridge_nats_connected",
        help="1 if NATS is connected and has confirmed every pattern, 0 if not",
        read=lambda stats: stats.nats == "connected",
        combine=min,
    ),
    Metric(
        name="natsbridge_control_connected",
        help="1 if the NATS server of the worker delivers messages between the workers, 0 if not",
        read=lambda stats: stats.control == "connected",
        combine=min,
    ),
    Metric(
        name="natsbridge_control_dropped_total",
        help="Messages between the workers that were dropped",
        read=lambda stats: stats.control_dropped,
        label="reason",
    ),
    Metric(
        name="natsbridge_nats_reconnects_total",
        help="Connections to NATS after the first",
        read=lambda stats: stats.nats_reconnects,
    ),
    Metric(
        name="natsbridge_publishes_total",
        help="Publishes of clients that have succeeded",
        read=lambda stats: stats.published,
        label="result",
    ),
    Metric(
        name="natsbridge_answered_requests_total",
        help="Requests of clients that were answered",
        read=lambda stats: stats.answered_requests,
    ),
    Metric(
        name="natsbridge_current_publishes",
        help="Publishes and requests of clients whose answer is awaited",
        read=lambda stats: stats.current_publishes,
        label="action",
    ),
    Metric(
        name="natsbridge_replays_total",
        help="Replays of stored messages that have begun",
        read=lambda stats: stats.replays,
        label="start",
    ),
    Metric(
        name="natsbridge_replay_results_total",
        help="Replays that have reached the present: recovered, or the reason for which messages are missing",
        read=lambda stats: stats.replay_results,
        label="result",
    ),
    Metric(
        name="natsbridge_replayed_messages_total",
        help="Messages written to clients by replays",
        read=lambda stats: stats.replayed,
    ),
    Metric(
        name="natsbridge_current_replays",
        help="Replays in progress",
        read=lambda stats: stats.current_replays,
        label="state",
    ),
    Metric(
        name="natsbridge_feed_reading",
        help="1 while the worker reads the stream, which it does while a client follows it, 0 if not",
        read=lambda stats: stats.feeds_reading,
        label="stream",
        combine=max,
    ),
    Metric(
        name="natsbridge_stream_available",
        help="1 if clients can get the history of the stream, 0 if not, or if that is unknown yet",
        read=lambda stats: stats.streams_available,
        label="stream",
        combine=min,
    ),
    Metric(
        name="natsbridge_feed_lag_messages",
        help="Messages of the stream that the worker has not read yet, as far as NATS has reported",
        read=lambda stats: stats.feed_lag,
        label="stream",
        combine=max,
    ),
    Metric(
        name="natsbridge_history_buffer_bytes",
        help="Bytes of messages that are kept for clients that return",
        read=lambda stats: stats.history_bytes,
    ),
    Metric(
        name="natsbridge_jetstream_requests_total",
        help="Requests to JetStream",
        read=lambda stats: stats.jetstream_requests,
    ),
    Metric(
        name="natsbridge_loop_lag_seconds",
        help="Largest delay of the event loop within the last 15 to 30 seconds",
        read=lambda stats: stats.loop_lag,
        combine=max,
    ),
)


def readings(stats: Stats) -> Readings:
    """Return the values of all metrics."""
    found: Readings = {}
    for metric in METRICS:
        value = metric.read(stats)
        values = value if isinstance(value, Mapping) else {"": value}
        found[metric.name] = {label: float(number) for label, number in values.items()}
    return found


def combined(parts: Iterable[tuple[Readings, bool]]) -> Readings:
    """Combine the values of several processes that are or were the same worker.

    Each part comes with a flag that is true if its process is alive. Dead processes contribute their counters only.
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
