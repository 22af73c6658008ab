"""A live edge for NATS in any Sanic app: browsers follow subjects over WebSocket or Server-Sent Events."""

from importlib.metadata import version

from .auth.permissions import Explanation, Permissions
from .cluster.permission_updates import UpdateResult
from .errors import (
    CloseCode,
    NatsRefused,
    NoResponders,
    PublishUnknown,
    PublishUnstored,
    RequestFailed,
    RequestTimedOut,
    SettingsError,
)
from .extension import NatsBridge, NatsUnavailable, Publication
from .metrics.stats import Stats
from .publishing.results import Acknowledgement, Answer
from .sessions.session import Session

__all__ = [
    "Acknowledgement",
    "Answer",
    "CloseCode",
    "Explanation",
    "NatsBridge",
    "NatsRefused",
    "NatsUnavailable",
    "NoResponders",
    "Permissions",
    "Publication",
    "PublishUnknown",
    "PublishUnstored",
    "RequestFailed",
    "RequestTimedOut",
    "Session",
    "SettingsError",
    "Stats",
    "UpdateResult",
    "__version__",
]

__version__ = version("sanic-nats-bridge")
