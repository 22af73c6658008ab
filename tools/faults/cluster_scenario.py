"""What is done to whole apps, whose workers come and go, and with them the sessions of their clients."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .results import Run
from .workload import noting

__all__ = ["Drill"]


class Doing(Protocol):
    """Does it, and writes down what came of it."""

    def __call__(self, result: Run, settings: Mapping[str, Any], *, small: bool) -> Awaitable[None]: ...


@dataclass(frozen=True)
class Drill:
    """One of them, with its title for the report."""

    name: str
    title: str
    do: Doing
    drop: int = 0

    async def run(self, number: int, *, settings: Mapping[str, Any] | None = None, small: bool = False) -> Run:
        """Do it once; what goes wrong is in what is returned."""
        result = Run(self.name, number)
        with noting(result.failures):
            await self.do(result, settings or {}, small=small)
        return result
