"""The results: each run by itself, statistics over all rounds, and their JSON file."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

__all__ = ["LATENCIES", "METRICS", "Metric", "Results", "Run", "RunKey", "Spread"]

_LOAD_BOUND_PERCENT = 85
_TOO_BUSY_PERCENT = 85


class Metric(NamedTuple):
    """The title, unit and format of a metric.

    Attributes:
        scale: The factor from the unit in which the metric is stored to ``unit``.
        compared: Tables show the ratio to the baseline.
    """

    title: str
    unit: str = ""
    format: str = "{:.2f}"
    scale: float = 1.0
    compared: bool = True

    def formatted(self, value: float) -> str:
        """Return a stored value in ``unit``, without the name of the unit."""
        return self.format.format(value * self.scale)


METRICS = {
    "cpu": Metric("server CPU per delivery", "µs"),
    "broker_cpu": Metric("broker CPU per delivery", "µs", compared=False),
    "rate": Metric("deliveries", "1/s", "{:,.0f}"),
    "p50": Metric("latency p50", "ms"),
    "p99": Metric("latency p99", "ms"),
    "max": Metric("latency max", "ms"),
    "local": Metric("POST to the stream's worker", "ms"),
    "relayed": Metric("POST to the other worker", "ms"),
    "relay": Metric("time added by the relay", "ms"),
    "memory": Metric("memory per client", "KiB", "{:.1f}", 1 / 1024),
    "growth": Metric("growth of memory", "MiB", "{:.1f}", 1 / 1024**2, compared=False),
    "connect": Metric("until all are subscribed", "s"),
    "connect_cpu": Metric("server CPU per client", "µs", "{:.0f}"),
    "plain_cpu": Metric("server CPU, nothing missed", "s", "{:.3f}"),
    "resume_cpu": Metric("server CPU, messages missed", "s", "{:.3f}"),
    "extra_cpu": Metric("difference of the two", "s", "{:.3f}"),
    "requests": Metric("requests to NATS", "number", "{:,.0f}"),
    "message_cpu": Metric("server CPU per replayed message", "µs", "{:.1f}"),
    "p99_alone": Metric("live latency p99 without replays", "ms"),
    "p99_elsewhere": Metric("live latency p99 beside replays of another worker", "ms"),
    "p99_beside": Metric("live latency p99 beside replays", "ms"),
    "harm": Metric("ratio of the two", "beside own replays to those of another worker"),
    "core_cpu": Metric("server CPU per core message", "µs", "{:.1f}"),
    "stored_cpu": Metric("server CPU per stored message", "µs", "{:.1f}"),
    "added_cpu": Metric("difference of the two", "µs"),
    "core_p50": Metric("core latency p50", "ms"),
    "stored_p50": Metric("stored latency p50", "ms"),
    "p50_ratio": Metric("ratio of the two", "stored to core"),
    "state_cpu": Metric("server CPU until caught up", "s", "{:.3f}"),
    "buffer_share": Metric("growth of memory", "of history_buffer_bytes"),
    "command_cpu": Metric("server CPU per command", "µs", "{:.1f}"),
    "command_broker_cpu": Metric("broker CPU per command", "µs", "{:.1f}", compared=False),
    "answer_p50": Metric("time until the answer p50", "ms"),
    "answer_p99": Metric("time until the answer p99", "ms"),
    "in_order": Metric("in order", "1: yes, 0: no", "{:.0f}", compared=False),
    "fullest": Metric("clients of the fullest worker", "%", "{:.0f}", compared=False),
    "busy": Metric("machine busy", "%", "{:.0f}", compared=False),
    "load": Metric("one core for the clients", "%", "{:.0f}", compared=False),
}
LATENCIES = (
    *("p50", "p99", "max", "local", "relayed", "relay"),
    *("p99_alone", "p99_elsewhere", "p99_beside", "core_p50", "stored_p50", "answer_p50", "answer_p99"),
)
"""Metrics that mean nothing on a busy machine. Ratios of latencies in turns mean something all the same."""


class RunKey(NamedTuple):
    """The scenario, case and target that the runs of all rounds share."""

    scenario: str
    case: str
    target: str


@dataclass
class Run:
    """One case, run against one target in one round.

    Attributes:
        metrics: Values by the keys of `METRICS`.
        errors: Failures, such as missing messages or a server that did not start.
    """

    scenario: str
    case: str
    target: str
    round: int
    metrics: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def key(self) -> RunKey:
        """Scenario, case and target."""
        return RunKey(self.scenario, self.case, self.target)

    @property
    def load_bound(self) -> bool:
        """True if the clients may have been the bottleneck."""
        return self.metrics.get("load", 0.0) > _LOAD_BOUND_PERCENT

    @property
    def too_busy(self) -> bool:
        """True if the machine was too busy for meaningful latencies."""
        return self.metrics.get("busy", 0.0) > _TOO_BUSY_PERCENT

    def value(self, metric: str) -> float | None:
        """Return the value of a metric, or None if it is missing or not meaningful."""
        if self.errors or (metric in LATENCIES and self.too_busy):
            return None
        return self.metrics.get(metric)


class Spread(NamedTuple):
    """Statistics of a metric over all rounds."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """Return the statistics of all values that aren't None, or None if there are none."""
        present = [value for value in values if value is not None]
        return cls(statistics.median(present), min(present), max(present)) if present else None


@dataclass
class Results:
    """All runs, and facts about the machine."""

    machine: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    @property
    def keys(self) -> Sequence[RunKey]:
        """Keys of all runs, in the order of their first measurement."""
        return tuple(dict.fromkeys(run.key for run in self.runs))

    @property
    def cores(self) -> int:
        """Number of cores of the machine."""
        return int(self.machine.get("cores", 1))

    def of(self, key: RunKey) -> Sequence[Run]:
        """Return the runs of all rounds."""
        return [run for run in self.runs if run.key == key]

    def spread(self, metric: str, key: RunKey) -> Spread | None:
        """Return the statistics of a metric."""
        return Spread.of(run.value(metric) for run in self.of(key))

    def ratio(self, metric: str, key: RunKey, base: RunKey) -> Spread | None:
        """Return the statistics of the ratios of a metric to that of ``base`` in the same round."""
        base_values = {run.round: run.value(metric) for run in self.of(base)}
        pairs = ((run.value(metric), base_values.get(run.round)) for run in self.of(key))
        return Spread.of(value / other for value, other in pairs if value is not None and other)

    def save(self, path: Path) -> None:
        """Write all results as JSON. The file also contains the medians, which `load` ignores."""
        medians = [
            {
                **key._asdict(),
                "medians": {metric: spread.median for metric in METRICS if (spread := self.spread(metric, key))},
            }
            for key in self.keys
        ]
        path.write_text(json.dumps(asdict(self) | {"medians": medians}, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` has written."""
        stored = json.loads(path.read_text())
        return cls(stored["machine"], [Run(**run) for run in stored["runs"]])
