"""The results: each run of a fault by itself, and their JSON file."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from .checker import Verdict

__all__ = ["Results", "Run"]

_NUMBERS = re.compile(r"\[[-\d.,\s]+\]")


@dataclass
class Run:
    """One injection of a fault.

    Attributes:
        noticed: Seconds from each start of the fault until the first client was notified, if any was.
        first_message_after: Seconds from each end of the fault until every client had received a message that was
            published after it.
        dropped: Copies lost by a bridge that loses messages on purpose.
        clients: The number of clients that don't take part in the fault.
        recovered: The number of these clients whose session continued, and that received the last messages. If
            sessions must end, the last session of each client counts.
        reconnect_times: Seconds from the end of each session until its client had another, if sessions must end.
        fullest_tenths: For each worker that stopped, the share of its clients that reconnected in the fullest tenth
            of the time over which they were spread.
        shutdown_times: Seconds from each request to a worker to stop until its process had ended.
        resumes: With streams: the number of patterns that clients resumed.
        gaps: With streams: the number of gaps with each reason.
        ended: With streams: the number of subscriptions that the bridge ended.
        publishes: With clients that publish: the number of publishes with each outcome.
        remarks: Further observations.
        failures: Broken guarantees, and faults that could not be injected.
    """

    fault: str
    round: int
    noticed: list[float] = field(default_factory=list)
    first_message_after: list[float] = field(default_factory=list)
    dropped: int = 0
    clients: int = 0
    recovered: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    reconnect_times: list[float] = field(default_factory=list)
    fullest_tenths: list[float] = field(default_factory=list)
    shutdown_times: list[float] = field(default_factory=list)
    resumes: int = 0
    gaps: dict[str, int] = field(default_factory=dict)
    ended: int = 0
    publishes: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, stored: dict[str, Any]) -> Self:
        """Create a run from a dictionary made by `dataclasses.asdict`."""
        return cls(**stored | {"verdict": Verdict(**stored["verdict"])})


@dataclass
class Results:
    """All runs, and facts about the machine."""

    machine: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    def of(self, fault: str) -> list[Run]:
        """Return the runs of one fault."""
        return [run for run in self.runs if run.fault == fault]

    def save(self, path: Path) -> None:
        """Write all results as JSON, with each list of numbers on one line."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        path.write_text(_NUMBERS.sub(lambda numbers: " ".join(numbers[0].split()), text) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` has written."""
        stored = json.loads(path.read_text())
        return cls(stored["machine"], [Run.load(run) for run in stored["runs"]])
