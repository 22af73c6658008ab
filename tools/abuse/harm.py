"""The measures of harm, and the values from which they count as harm."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from .results import Observation

__all__ = ["DELAY", "Harm", "amount", "each", "memory", "rate", "ratio"]

_LEAST_MILLISECONDS = 20.0
"""A quiet worker is compared as if its p99 were at least this. Smaller times depend on the machine's scheduler."""
_LATE_FACTOR = 5.0


@dataclass(frozen=True)
class Harm:
    """A measure of harm.

    Attributes:
        title: The measure, for the report.
        of: Returns the value of one run.
        harmful_from: The lowest value that counts as harm.
        format: The format of a value.
        in_memory: True if it is the memory of the worker, which returns what it has freed before that is measured.
    """

    title: str
    of: Callable[[Observation], float]
    harmful_from: float
    format: str = "{:,.0f}"
    in_memory: bool = False

    def shows(self, value: float) -> bool:
        """Return whether a value counts as harm."""
        return value >= self.harmful_from

    def formatted(self, value: float) -> str:
        """Return a value for the report."""
        return "∞" if math.isinf(value) else self.format.format(value)


def amount(title: str, key: str, harmful_from: float) -> Harm:
    """Return a measure that is a fact of the run."""
    return Harm(title, lambda seen: seen.facts.get(key, 0), harmful_from)


def each(title: str, key: str, of: str, harmful_from: float, unit: float = 1.0) -> Harm:
    """Return a measure that is a fact of the run, divided by another one and by a unit."""
    return Harm(title, lambda seen: seen.facts.get(key, 0) / max(seen.facts.get(of, 0), 1) / unit, harmful_from)


def memory(kibibytes: float) -> Harm:
    """Return the measure of the memory for each connection."""
    title = "memory of the worker for each connection (KiB)"
    return replace(each(title, "memory", "connections", kibibytes, 1024), in_memory=True)


def rate(title: str, key: str, harmful_from: float) -> Harm:
    """Return a measure that is a fact of the run per second of the attack."""
    return each(title, key, "seconds", harmful_from)


def ratio(title: str, key: str, harmful_from: float) -> Harm:
    """Return a measure that is a fact of the time of the attack, relative to the quiet time before it."""
    return Harm(title, lambda seen: seen.facts[key] / max(seen.facts[f"quiet {key}"], 1), harmful_from, "{:.2f}")


def _delay(seen: Observation) -> float:
    if seen.attacked.p99 is None:
        return math.inf
    quiet = seen.quiet.p99 if seen.quiet.p99 is not None else math.inf
    return seen.attacked.p99 / max(quiet, _LEAST_MILLISECONDS)


DELAY = Harm("p99, as a multiple of the quiet time's", _delay, _LATE_FACTOR, "{:.1f}")
"""The delay of an honest client's messages. Lost messages count as late."""
