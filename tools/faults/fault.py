"""What a fault is."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .environment import Stage

__all__ = ["Fault"]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        title: What is done, for the report.
        do: Does it, and heals it.
        config: Of the NATS servers.
        servers: How many there are; several are a cluster.
        absent: NATS is not there at the start.
        by_proxy: The bridge reaches NATS by the stage's proxy.
        settings: Of the bridge, beside the defaults.
        drop: The bridge loses one in so many messages.
        within: In how many seconds the clients must have been told; ``None`` where there is nothing to tell.
        harmless: Nobody of the audience may miss anything, announced or not.
    """

    name: str
    title: str
    do: Callable[[Stage], Awaitable[None]]
    config: str = ""
    servers: int = 1
    absent: bool = False
    by_proxy: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    drop: int = 0
    within: float | None = 10.0
    harmless: bool = False
