"""The parts of a worker that its sessions share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..auth.expirations import ExpirationQueue
from ..auth.policy import SubscriptionPolicy
from ..hub.hub import Hub
from ..metrics.counters import Counters
from ..protocol.encoding import WireFormat, encode_frame
from ..protocol.messages import NatsState, Status, features_of
from ..publishing.clients import ClientPublisher
from ..settings import Settings
from ..streams.hub import StreamHub
from .command_turns import CommandTurns
from .pattern_shares import PatternShares

__all__ = ["SessionContext", "encoded_status"]


@dataclass(kw_only=True, slots=True)
class SessionContext:
    """The parts of a worker that its sessions share."""

    settings: Settings
    hub: Hub
    policy: SubscriptionPolicy
    shares: PatternShares
    turns: CommandTurns
    counters: Counters
    expirations: ExpirationQueue
    on_closed: Callable[[Any, int], None]
    """Called with each session that has ended, and its WebSocket close code."""
    worker: str
    """The id of the worker, which is the first part of the ids of its sessions."""
    reconnect_spread: float
    """Seconds over which the clients of the worker reconnect when it stops."""
    nats: NatsState = "disconnected"
    streams_nats: NatsState = "disconnected"
    """The state of the connection for streams."""
    streams: StreamHub | None = None
    """The streams whose messages clients can get later, if there are any."""
    publishing: ClientPublisher | None = None
    """The publishes and requests of clients, if they can send any."""

    @property
    def features(self) -> tuple[str, ...]:
        """The parts of the protocol that not every server has, as ``welcome`` lists them."""
        return features_of(has_history=self.streams is not None, can_publish=self.publishing is not None)

    def nats_of_streams(self, *, also_core: bool) -> NatsState:
        """Return the state of the connection for streams; with ``also_core``, of both connections together."""
        return self.nats if also_core and self.streams_nats == "connected" else self.streams_nats


@cache
def encoded_status(nats: NatsState, wire_format: WireFormat) -> bytes:
    """Return a status frame, which all sessions of one wire format share."""
    return encode_frame(Status(nats=nats), wire_format)
