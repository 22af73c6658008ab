"""The results: each run by itself, and their JSON file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

__all__ = ["Observation", "Results", "Run", "Seen", "seen"]


@dataclass
class Seen:
    """The messages of an honest client.

    Attributes:
        published: The number of messages.
        lost: The number of messages that didn't arrive within some seconds.
        p50: The median of the delays in milliseconds, or None if too many messages were lost.
        p99: The delay within which 99 % of the messages arrived, or None if fewer did.
        longest: The longest delay of those that arrived.
        disconnects: The number of times that the client was disconnected.
    """

    published: int = 0
    lost: int = 0
    p50: float | None = None
    p99: float | None = None
    longest: float = 0.0
    disconnects: int = 0


@dataclass
class Observation:
    """One run of an attack, with or without limits.

    Attributes:
        quiet: The time before the attack.
        onset: The first seconds of the attack, in which it uses up its burst, if it has one.
        attacked: The time of the attack after that.
        facts: Numbers that the attackers, the honest clients and the worker have counted, by their names.
        error: The error that has ended the run, if there was one.
    """

    quiet: Seen = field(default_factory=Seen)
    onset: Seen = field(default_factory=Seen)
    attacked: Seen = field(default_factory=Seen)
    facts: dict[str, float] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def load(cls, stored: dict[str, Any]) -> Self:
        """Create an observation from a dictionary made by `dataclasses.asdict`."""
        return cls(**stored | {name: Seen(**stored[name]) for name in ("quiet", "onset", "attacked")})


@dataclass
class Run:
    """One round of an attack.

    Attributes:
        bounded: The run with the limits of the bridge.
        control: The run without them, if they can be removed.
    """

    attack: str
    round: int
    bounded: Observation
    control: Observation | None = None

    @classmethod
    def load(cls, stored: dict[str, Any]) -> Self:
        """Create a run from a dictionary made by `dataclasses.asdict`."""
        control = stored["control"] and Observation.load(stored["control"])
        return cls(**stored | {"bounded": Observation.load(stored["bounded"]), "control": control})


@dataclass
class Results:
    """All runs, and facts about the machine.

    Attributes:
        small: The attacks were tiny, for a test of this tool itself.
    """

    machine: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    small: bool = False

    def of(self, attack: str) -> list[Run]:
        """Return the runs of one attack."""
        return [run for run in self.runs if run.attack == attack]

    def save(self, path: Path) -> None:
        """Write all results as JSON, each run on one line."""
        runs = ",\n".join(json.dumps(asdict(run), ensure_ascii=False) for run in self.runs)
        path.write_text(f'{{"machine": {json.dumps(self.machine)},\n"runs": [\n{runs}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` has written."""
        stored = json.loads(path.read_text())
        return cls(stored["machine"], [Run.load(run) for run in stored["runs"]])


def seen(published: int, delays: Sequence[float], disconnects: int = 0) -> Seen:
    """Return what a client has seen of some messages.

    Args:
        published: The number of messages.
        delays: The delays in milliseconds of those that have arrived, in any order.
        disconnects: The number of times that the client was disconnected.
    """
    ordered = sorted(delays)
    return Seen(
        published,
        published - len(ordered),
        _quantile(ordered, published, 0.50),
        _quantile(ordered, published, 0.99),
        round(ordered[-1], 2) if ordered else 0.0,
        disconnects,
    )


def _quantile(ordered: Sequence[float], published: int, share: float) -> float | None:
    """Return a quantile of the delays, or None if it is one of a message that was lost."""
    place = min(int(published * share), published - 1)
    return round(ordered[place], 2) if 0 <= place < len(ordered) else None
