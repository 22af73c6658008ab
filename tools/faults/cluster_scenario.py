"""Scenarios for whole apps, whose workers end and restart, and with them the sessions of their clients."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .results import Run
from .workload import recording

__all__ = ["ClusterScenario"]


class Injection(Protocol):
    """A function that injects the faults of a scenario, and records the outcome."""

    def __call__(self, result: Run, settings: Mapping[str, Any], *, small: bool) -> Awaitable[None]: ...


@dataclass(frozen=True)
class ClusterScenario:
    """A scenario, with its title for the report.

    Attributes:
        once: It is run in the first round only.
    """

    name: str
    title: str
    inject: Injection
    drop_one_in: int = 0
    once: bool = False

    async def run(self, number: int, *, settings: Mapping[str, Any] | None = None, small: bool = False) -> Run:
        """Run the scenario once. The run that is returned contains the failures."""
        result = Run(self.name, number)
        with recording(result.failures):
            await self.inject(result, settings or {}, small=small)
        return result
