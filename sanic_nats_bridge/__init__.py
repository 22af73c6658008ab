"""A live edge for NATS in any Sanic app: browsers follow subjects over WebSocket or Server-Sent Events."""

from importlib.metadata import version

from .auth.permissions import Explanation, Permissions
from .cluster.permission_updates import UpdateResult
from .errors import CloseCode, SettingsError
from .extension import NatsBridge
from .metrics.stats import Stats
from .sessions.session import Session

__all__ = [
    "CloseCode",
    "Explanation",
    "NatsBridge",
    "Permissions",
    "Session",
    "SettingsError",
    "Stats",
    "UpdateResult",
    "__version__",
]

__version__ = version("sanic-nats-bridge")
