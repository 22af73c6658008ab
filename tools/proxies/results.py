"""The results: each set-up by itself, and their JSON file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from .record import Received
from .verdict import Verdict

__all__ = ["LinkResult", "Results", "SetupResult"]


@dataclass
class LinkResult:
    """The receivers of one link, or of one tab.

    Attributes:
        published: The number of messages since the page's start.
        received: What each receiver got, by its role.
        statuses: The client's statuses: seconds since the start, state, transport, and the reasons.
    """

    published: int
    received: dict[str, Received]
    statuses: list[str]
    verdict: Verdict

    @classmethod
    def load(cls, stored: dict[str, Any]) -> Self:
        """Create a result from a dictionary made by `dataclasses.asdict`."""
        received = {role: Received(**each) for role, each in stored["received"].items()}
        return cls(**stored | {"received": received, "verdict": Verdict(**stored["verdict"])})


@dataclass
class SetupResult:
    """The result of one set-up.

    Attributes:
        version: The version of the proxy.
        protocol: The HTTP version between browser and proxy.
        page: The reason why the page doesn't load, if it doesn't.
        links: The busy and the quiet link, or the tabs.
        sessions: The number of the bridge's sessions for each subject, when the page was closed.
        gone: Seconds until these sessions had ended, or None if they hadn't.
        failures: The broken parts of the rule.
    """

    setup: str
    version: str = ""
    protocol: str = ""
    page: str = ""
    links: dict[str, LinkResult] = field(default_factory=dict)
    sessions: dict[str, int] = field(default_factory=dict)
    gone: dict[str, float | None] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, stored: dict[str, Any]) -> Self:
        """Create a result from a dictionary made by `dataclasses.asdict`."""
        return cls(**stored | {"links": {name: LinkResult.load(each) for name, each in stored["links"].items()}})


@dataclass
class Results:
    """All results, and facts about the machine."""

    machine: dict[str, Any]
    setups: list[SetupResult] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write all results as JSON, each set-up on one line."""
        setups = ",\n".join(json.dumps(asdict(setup), ensure_ascii=False) for setup in self.setups)
        path.write_text(f'{{"machine": {json.dumps(self.machine)},\n"setups": [\n{setups}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` has written."""
        stored = json.loads(path.read_text())
        return cls(stored["machine"], [SetupResult.load(each) for each in stored["setups"]])
