"""The definition of a fault."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .environment import Environment

__all__ = ["Fault"]


@dataclass(frozen=True)
class Fault:
    """A fault in an environment of NATS servers, a bridge, clients and publishers.

    Attributes:
        title: Description for the report.
        inject: Injects the fault, and ends it.
        config: Configuration of the NATS servers.
        servers: The number of NATS servers. Several form a cluster.
        nats_absent: NATS isn't running at the start.
        unanswering_address: The bridge connects to NATS by a name whose first address doesn't answer.
        with_peer: Another process of the same app runs, without clients of its own.
        through_proxy: The bridge connects to NATS through the environment's proxy.
        settings: Settings of the bridge that differ from the defaults.
        drop_one_in: The bridge loses one message in this number; 0 for none.
        notice_within: Seconds within which clients must be notified, or None if they need not be.
        silent: Nothing but the bridge's pings can reveal the fault.
        once: It is injected in the first round only.
        harmless: Clients that don't take part in the fault must not miss a message, not even an announced one.
    """

    name: str
    title: str
    inject: Callable[[Environment], Awaitable[None]]
    config: str = ""
    servers: int = 1
    nats_absent: bool = False
    unanswering_address: bool = False
    with_peer: bool = False
    through_proxy: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    drop_one_in: int = 0
    notice_within: float | None = 10.0
    silent: bool = False
    once: bool = False
    harmless: bool = False
