"""What was measured: each run by itself, and what the runs of all rounds say together; kept as JSON."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

__all__ = ["FIGURES", "LATENCIES", "Figure", "Place", "Results", "Run", "Spread"]

_LOAD_BOUND_PERCENT: Final = 85
_TOO_BUSY_PERCENT: Final = 85


class Figure(NamedTuple):
    """How a figure is called and written; ``scale`` makes its unit from that in which it is kept."""

    title: str
    unit: str = ""
    form: str = "{:.2f}"
    scale: float = 1.0
    compared: bool = True

    def text(self, value: float) -> str:
        """The value in its unit, which is not named."""
        return self.form.format(value * self.scale)


FIGURES: Final = {
    "cpu": Figure("server CPU per delivery", "µs"),
    "broker_cpu": Figure("broker CPU per delivery", "µs", compared=False),
    "rate": Figure("deliveries", "1/s", "{:,.0f}"),
    "p50": Figure("latency p50", "ms"),
    "p99": Figure("latency p99", "ms"),
    "max": Figure("latency max", "ms"),
    "local": Figure("POST to the stream's worker", "ms"),
    "relayed": Figure("POST to the other worker", "ms"),
    "relay": Figure("what the way to the other adds", "ms"),
    "memory": Figure("memory per client", "KiB", "{:.1f}", 1 / 1024),
    "growth": Figure("growth of memory", "MiB", "{:.1f}", 1 / 1024**2, compared=False),
    "connect": Figure("until all are subscribed", "s"),
    "connect_cpu": Figure("server CPU per client", "µs", "{:.0f}"),
    "in_order": Figure("in order", "1: yes, 0: no", "{:.0f}", compared=False),
    "fullest": Figure("clients of the fullest worker", "%", "{:.0f}", compared=False),
    "busy": Figure("machine busy", "%", "{:.0f}", compared=False),
    "load": Figure("one core for the clients", "%", "{:.0f}", compared=False),
}
LATENCIES: Final = ("p50", "p99", "max", "local", "relayed", "relay")


class Place(NamedTuple):
    """Where a figure stands."""

    scene: str
    case: str
    contender: str


@dataclass
class Run:
    """One case, done to one contender, in one round.

    Attributes:
        figures: By the keys of `FIGURES`.
        faults: What was wrong: messages that are missing, a server that did not start.
    """

    scene: str
    case: str
    contender: str
    round: int
    figures: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def place(self) -> Place:
        """Where its figures stand."""
        return Place(self.scene, self.case, self.contender)

    @property
    def load_bound(self) -> bool:
        """The clients may have been what was measured."""
        return self.figures.get("load", 0.0) > _LOAD_BOUND_PERCENT

    @property
    def too_busy(self) -> bool:
        """The machine was too busy for latencies to mean anything."""
        return self.figures.get("busy", 0.0) > _TOO_BUSY_PERCENT

    def counted(self, figure: str) -> float | None:
        """A figure, where there is one that counts."""
        if self.faults or (figure in LATENCIES and self.too_busy):
            return None
        return self.figures.get(figure)


class Spread(NamedTuple):
    """A figure over all rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """Of those that count; ``None`` where none does."""
        counted = [value for value in values if value is not None]
        return cls(statistics.median(counted), min(counted), max(counted)) if counted else None


@dataclass
class Results:
    """All runs, and on what machine."""

    machine: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    @property
    def places(self) -> Sequence[Place]:
        """Where figures stand, in the order in which they were first measured."""
        return tuple(dict.fromkeys(run.place for run in self.runs))

    @property
    def cores(self) -> int:
        """How many the machine has."""
        return int(self.machine.get("cores", 1))

    def at(self, place: Place) -> Sequence[Run]:
        """The runs of all rounds."""
        return [run for run in self.runs if run.place == place]

    def spread(self, figure: str, place: Place) -> Spread | None:
        """A figure over all rounds."""
        return Spread.of(run.counted(figure) for run in self.at(place))

    def ratio(self, figure: str, place: Place, other: Place) -> Spread | None:
        """A figure to the same at another place, in the same round."""
        others = {run.round: run.counted(figure) for run in self.at(other)}
        pairs = ((run.counted(figure), others.get(run.round)) for run in self.at(place))
        return Spread.of(one / another for one, another in pairs if one is not None and another)

    def save(self, path: Path) -> None:
        """Write all as JSON, with the medians, which `load` leaves."""
        medians = [
            {
                **place._asdict(),
                "medians": {figure: spread.median for figure in FIGURES if (spread := self.spread(figure, place))},
            }
            for place in self.places
        ]
        path.write_text(json.dumps(asdict(self) | {"medians": medians}, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` has written."""
        kept = json.loads(path.read_text())
        return cls(kept["machine"], [Run(**run) for run in kept["runs"]])
