"""The performance thresholds of the bridge, mostly ratios within one run."""

from collections.abc import Sequence
from dataclasses import dataclass

from .results import METRICS, Results, RunKey, Spread

__all__ = ["THRESHOLDS", "Threshold"]


@dataclass(frozen=True)
class Threshold:
    """A bound for the ratio of a metric to that of ``base``, or for the metric itself without a ``base``."""

    metric: str
    key: RunKey
    base: RunKey | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def title(self) -> str:
        """Description of the compared metrics."""
        if self.base is None:
            return f"{_name(self.key)}: {METRICS[self.metric].title}, {METRICS[self.metric].unit}"
        return f"{_name(self.key)}: {METRICS[self.metric].title}, to {_difference(self.base, self.key)}"

    @property
    def bound(self) -> str:
        """Bound as text, such as ``≤ 1.10``."""
        return f"≤ {self.at_most:.2f}" if self.at_most is not None else f"≥ {self.at_least:.2f}"

    def measured(self, results: Results) -> Spread | None:
        """Return the metric, or the statistics of its ratios within each round."""
        if self.base is None:
            return results.spread(self.metric, self.key)
        return results.ratio(self.metric, self.key, self.base)

    def is_met(self, results: Results) -> bool | None:
        """Return True if the median is within the bound, or None if there is no valid measurement."""
        measured = self.measured(results)
        if measured is None:
            return None
        above = self.at_least is None or measured.median >= self.at_least
        return above and (self.at_most is None or measured.median <= self.at_most)


def _name(key: RunKey) -> str:
    return f"{key.scenario} {key.case}, {key.target}"


def _difference(base: RunKey, key: RunKey) -> str:
    """Return the parts of ``base`` that differ from ``key``."""
    parts = []
    if base.scenario != key.scenario:
        parts.append(base.scenario)
    if base[:2] != key[:2]:
        parts.append(base.case)
    if base.target != key.target:
        parts.append(base.target)
    return " ".join(parts)


def _thresholds() -> Sequence[Threshold]:
    def ratio(metric: str, scenario: str, case: str, base: str, target: str = "bridge-ws", **bound: float) -> Threshold:
        return Threshold(metric, RunKey(scenario, case, target), RunKey(scenario, case, base), **bound)

    def growth(
        metric: str, scenario: str, case: str, base: str, target: str = "bridge-ws", **bound: float
    ) -> Threshold:
        return Threshold(metric, RunKey(scenario, case, target), RunKey(scenario, base, target), **bound)

    def history(
        metric: str, scenario: str, case: str, target: str = "bridge-ws-streams", *, at_most: float
    ) -> Threshold:
        return Threshold(metric, RunKey(f"history-{scenario}", case, target), at_most=at_most)

    overlap = RunKey("overlap", "100 clients", "bridge-ws")
    return (
        ratio("cpu", "steady", "100/s", "nats-ws", at_most=0.75),
        ratio("cpu", "steady", "100/s", "bridge-ws", "bridge-sse", at_most=1.10),
        ratio("p50", "steady", "25/s", "nats-ws", at_most=1.0),
        ratio("p99", "steady", "25/s", "nats-ws", at_most=1.2),
        ratio("cpu", "burst", "300 messages", "nats-ws", at_most=0.25),
        ratio("rate", "burst", "300 messages", "nats-ws", at_least=3.0),
        ratio("cpu", "own", "1,000 subjects", "nats-ws", at_most=1.5),
        ratio("cpu", "own", "1,000 subjects", "plain-sanic", at_most=0.5),
        ratio("cpu", "workers", "100/s", "bridge-ws", "bridge-ws-2", at_most=1.10),
        ratio("cpu", "workers", "300 messages", "bridge-ws", "bridge-ws-2", at_most=1.10),
        ratio("memory", "idle", "5,000 clients", "nats-ws", at_most=0.6),
        ratio("connect", "connect", "1,000 clients", "plain-sanic", at_most=1.5),
        growth("cpu", "growth-clients", "5,000", "100", at_most=1.10),
        growth("cpu", "growth-patterns", "10,000", "100", at_most=1.10),
        Threshold("in_order", overlap, at_least=1),
        Threshold("in_order", overlap._replace(target="bridge-sse"), at_least=1),
        Threshold("cpu", overlap, RunKey("steady", "100/s", "bridge-ws"), at_most=1.5),
        growth("p99", "stalled", "100 stalled", "0 stalled", at_most=1.2),
        growth("p99", "stalled", "100 stalled", "0 stalled", "bridge-sse", at_most=1.2),
        Threshold("relay", RunKey("relay", "subscribe, 1 at once", "bridge-sse-2"), at_most=3),
        Threshold("relay", RunKey("relay", "unsubscribe, 1 at once", "bridge-sse-2"), at_most=3),
        ratio("cpu", "steady", "100/s", "bridge-ws", "bridge-ws-streams", at_most=1.10),
        ratio("cpu", "burst", "300 messages", "bridge-ws", "bridge-ws-streams", at_most=1.10),
        ratio("cpu", "own", "1,000 subjects", "bridge-ws", "bridge-ws-streams", at_most=1.10),
        ratio("memory", "idle", "5,000 clients", "bridge-ws", "bridge-ws-streams", at_most=1.01),
        # One by one, the machine needs most of the time to wake a process, for every server alike.
        ratio("command_cpu", "publish", "publish, one by one", "nats-ws", at_most=2.0),
        Threshold("command_cpu", RunKey("publish", "publish, bursts", "bridge-ws"), at_most=40),
        Threshold("command_cpu", RunKey("publish", "publish with ack, bursts", "bridge-ws"), at_most=80),
        Threshold("command_cpu", RunKey("publish", "request, bursts", "bridge-ws"), at_most=80),
        history("extra_cpu", "herd", "one pattern", "bridge-ws-streams-2", at_most=0.15),
        history("requests", "herd", "one pattern", "bridge-ws-streams-2", at_most=4),
        history("extra_cpu", "herd", "own patterns", "bridge-ws-streams-2", at_most=0.4),
        history("message_cpu", "replay", "from NATS", "bridge-ws-streams-2", at_most=20),
        history("message_cpu", "replay", "from memory", "bridge-ws-streams-2", at_most=20),
        history("harm", "replay", "from NATS", "bridge-ws-streams-2", at_most=3),
        history("harm", "replay", "from memory", "bridge-ws-streams-2", at_most=3),
        history("added_cpu", "stored", "1 client, bursts", at_most=2),
        history("p50_ratio", "stored", "1 client, steady", at_most=1.6),
        history("added_cpu", "stored", "100 clients, bursts", at_most=2),
        history("p50_ratio", "stored", "100 clients, steady", at_most=1.6),
        history("state_cpu", "bucket", "10,000 keys", at_most=0.3),
        history("buffer_share", "memory", "64 bytes", at_most=1.1),
        history("buffer_share", "memory", "1,024 bytes", at_most=1.1),
    )


THRESHOLDS = _thresholds()
