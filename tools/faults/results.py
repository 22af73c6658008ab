"""What was seen: each run of a fault by itself; kept as JSON."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from .checker import Verdict

__all__ = ["Results", "Run"]

_NUMBERS: Final = re.compile(r"\[[-\d.,\s]+\]")


@dataclass
class Run:
    """A fault, done once.

    Attributes:
        noticed: Seconds from each time that the fault was done until the first client was told of it, where one was.
        back: Seconds from each time that it was healed until every client had a message published after that.
        dropped: Copies that a bridge made to lose messages has lost.
        clients: How many had nothing to do with the fault.
        recovered: Those of them whose session went on, and that got the last messages; where sessions must end: whose
            last session did.
        returns: Seconds from the end of each session until its client had another, where sessions must end.
        fullest: For each worker that stopped, the share of its clients that came back in the fullest tenth of the time
            over which they were spread.
        ends: Seconds from each time that a worker was told to stop until its process had ended.
        remarks: What else has to be known of it.
        failures: What was not as it should be.
    """

    fault: str
    round: int
    noticed: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    dropped: int = 0
    clients: int = 0
    recovered: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    returns: list[float] = field(default_factory=list)
    fullest: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, kept: dict[str, Any]) -> Self:
        """Read what `dataclasses.asdict` has made."""
        return cls(**kept | {"verdict": Verdict(**kept["verdict"])})


@dataclass
class Results:
    """All runs, and on what machine."""

    machine: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    def of(self, fault: str) -> list[Run]:
        """The runs of one fault."""
        return [run for run in self.runs if run.fault == fault]

    def save(self, path: Path) -> None:
        """Write all as JSON, each list of numbers on one line."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        path.write_text(_NUMBERS.sub(lambda numbers: " ".join(numbers[0].split()), text) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` has written."""
        kept = json.loads(path.read_text())
        return cls(kept["machine"], [Run.load(run) for run in kept["runs"]])
