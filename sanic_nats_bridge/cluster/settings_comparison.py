"""Comparison of the settings that must be equal in all workers of an app.

Two apps of one name, such as staging and production, use the same control subjects if they are in one NATS account.
Each could then command and revoke the sessions of the other. Workers therefore announce fingerprints of their settings,
and log a warning if those of another worker differ.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from ..log_limits import limited_logger
from ..settings import Settings
from .signatures import fingerprints

__all__ = ["SettingsComparison"]

logger = limited_logger()

_COMPARED = (
    "prefix", "subscribe", "deny", "history", "publish", "request", "permissions", "expose_headers", "identity_header",
    "publish_headers", "streams", "resume_window",
)  # fmt: skip
_MAX_REMEMBERED = 100
_KEYS = "control_key"

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(dict[str, str]).decode


class SettingsComparison:
    """The comparison of this worker's settings with those of the others.

    Args:
        settings: The settings of this worker.
        app: The name of the app.
        prefix: The prefix of the control subjects.
        announce: Sends a payload to all workers, as `ControlChannel.announce`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        app: str,
        prefix: str,
        announce: Callable[[bytes], Awaitable[Awaitable[None]]],
    ) -> None:
        self._prefix = prefix
        values = {name: _described(getattr(settings, name)) for name in _COMPARED} | {"app": app}
        self._fingerprints = {name: hashlib.sha256(value.encode()).hexdigest()[:16] for name, value in values.items()}
        self._fingerprints[_KEYS] = " ".join(sorted(fingerprints(settings.control_key or ())))
        self._announce = announce
        self._known: set[bytes] = set()
        """The other settings that were logged."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def announce(self) -> None:
        """Send the fingerprints of this worker to the others. Does nothing while they can't be reached."""
        with contextlib.suppress(ConnectionError, ValueError):
            await (await self._announce(_encode(self._fingerprints)))

    def receive(self, data: bytes) -> None:
        """Compare the fingerprints of a worker, and log a warning for each different set of them. Never raises."""
        try:
            received = _decode(data)
        except (msgspec.MsgspecError, RecursionError):
            return
        key = hashlib.sha256(_encode(received)).digest()
        if received == self._fingerprints or key in self._known or len(self._known) >= _MAX_REMEMBERED:
            return
        self._known.add(key)
        names = {name for name, _ in received.items() ^ self._fingerprints.items() if name in self._fingerprints}
        if _KEYS in names:
            names.discard(_KEYS)
            self._compare_keys(received.get(_KEYS, ""))
        if names or received.keys() != self._fingerprints.keys():
            self._log(names)
        # The other worker may not have been connected when this one announced its own.
        task = asyncio.create_task(self.announce())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _compare_keys(self, received: str) -> None:
        """Log a warning if another worker shares no key with this one. While keys are replaced it shares one."""
        ours = self._fingerprints[_KEYS]
        if received != ours and not {*received.split()} & {*ours.split()}:
            logger.warning(
                "Another worker under the control prefix '%s' has another 'control_key', or only one of the two has "
                "one. They do not accept commands and revocations of each other. Give all workers of the app one key",
                self._prefix,
            )

    def _log(self, names: set[str]) -> None:
        logger.warning(
            "Another worker uses the control prefix '%s' with other values of: %s. Workers under one control prefix "
            "can command and revoke the sessions of each other. If it belongs to another app or another deployment, "
            "give each its own 'control_prefix'. While a deployment changes these settings, no action is needed",
            self._prefix,
            ", ".join(sorted(names)) or "others",
        )


def _described(value: Any) -> str:
    """Return a string that is equal for equal settings in every process."""
    if callable(value):
        # Without the module, whose name depends on how the app was started.
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    if isinstance(value, Mapping):
        # The order of the streams counts: the first one that has a pattern serves it.
        return repr([(key, _described(each)) for key, each in value.items()])
    return repr(sorted(value) if isinstance(value, tuple) else value)
