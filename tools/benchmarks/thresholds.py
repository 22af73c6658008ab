"""What the bridge has set itself, as ratios within one run, and what was seen of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .results import FIGURES, Place, Results, Spread

__all__ = ["GOALS", "Goal"]


@dataclass(frozen=True)
class Goal:
    """A bound for the ratio of a figure to the same at another place, or for the figure itself where there is none."""

    figure: str
    place: Place
    other: Place | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def title(self) -> str:
        """What is compared with what."""
        if self.other is None:
            return f"{_named(self.place)}: {FIGURES[self.figure].title}, {FIGURES[self.figure].unit}"
        return f"{_named(self.place)}: {FIGURES[self.figure].title}, to {_named(self.other, self.place)}"

    @property
    def bound(self) -> str:
        """What the ratio may be."""
        return f"≤ {self.at_most:.2f}" if self.at_most is not None else f"≥ {self.at_least:.2f}"

    def seen(self, results: Results) -> Spread | None:
        """What it was; the ratio of each round is taken by itself."""
        if self.other is None:
            return results.spread(self.figure, self.place)
        return results.ratio(self.figure, self.place, self.other)

    def reached(self, results: Results) -> bool | None:
        """Whether the median is within the bound; ``None`` where nothing was measured that counts."""
        seen = self.seen(results)
        if seen is None:
            return None
        above = self.at_least is None or seen.median >= self.at_least
        return above and (self.at_most is None or seen.median <= self.at_most)


def _named(place: Place, beside: Place | None = None) -> str:
    """The place, without what it has in common with the one beside it."""
    if beside is None:
        return f"{place.scene} {place.case}, {place.contender}"
    parts = []
    if place.scene != beside.scene:
        parts.append(place.scene)
    if place[:2] != beside[:2]:
        parts.append(place.case)
    if place.contender != beside.contender:
        parts.append(place.contender)
    return " ".join(parts)


def _goals() -> Sequence[Goal]:
    def ratio(figure: str, scene: str, case: str, other: str, contender: str = "bridge-ws", **bound: float) -> Goal:
        return Goal(figure, Place(scene, case, contender), Place(scene, case, other), **bound)

    def growth(figure: str, scene: str, to: str, since: str, contender: str = "bridge-ws", **bound: float) -> Goal:
        return Goal(figure, Place(scene, to, contender), Place(scene, since, contender), **bound)

    overlap = Place("overlap", "100 clients", "bridge-ws")
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
        Goal("in_order", overlap, at_least=1),
        Goal("in_order", overlap._replace(contender="bridge-sse"), at_least=1),
        Goal("cpu", overlap, Place("steady", "100/s", "bridge-ws"), at_most=1.5),
        growth("p99", "stalled", "100 stalled", "0 stalled", at_most=1.2),
        growth("p99", "stalled", "100 stalled", "0 stalled", "bridge-sse", at_most=1.2),
        Goal("relay", Place("relay", "subscribe, 1 at once", "bridge-sse-2"), at_most=3),
        Goal("relay", Place("relay", "unsubscribe, 1 at once", "bridge-sse-2"), at_most=3),
    )


GOALS: Final = _goals()
