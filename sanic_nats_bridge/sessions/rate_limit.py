"""How many commands one client sends."""

import asyncio
import contextlib
from collections import deque
from typing import Final

from ..errors import BridgeError, RateLimitExceeded
from ..settings import Settings
from ..token_bucket import TokenBucket

__all__ = ["CommandRateLimiter"]

_MINUTE_SECONDS: Final = 60.0
_BAD_STATUS: Final = 400


class CommandRateLimiter:
    """Holds one session to ``command_rate`` and ``max_bad_commands``."""

    __slots__ = ("_bad", "_commands", "_settings", "excess")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._commands: TokenBucket | None = None
        self._bad: deque[float] | None = None
        self.excess: str | None = None
        """Why the session must end, once it must."""

    def count(self) -> None:
        """Count what has come as a command, whatever it is.

        Raises:
            RateLimitExceeded: It is one too many.
        """
        settings, now = self._settings, asyncio.get_running_loop().time()
        if self._commands is None:
            self._commands = TokenBucket(settings.command_rate, settings.command_burst, now)
        if self._commands.take(now):
            return
        if self._commands.overdrawn:
            self.excess = "Too many commands"
        message = f"At most {settings.command_rate:g} commands a second"
        raise RateLimitExceeded(message, retry_after=self._commands.wait(now))

    def count_ping(self) -> None:
        """Count a ping, to which nothing can be answered but a pong."""
        with contextlib.suppress(RateLimitExceeded):
            self.count()

    def count_rejection(self, error: BridgeError) -> None:
        """Count what no client should have sent."""
        if error.http_status != _BAD_STATUS:
            return
        allowed, now = self._settings.max_bad_commands, asyncio.get_running_loop().time()
        if self._bad is None:
            self._bad = deque(maxlen=allowed)
        if len(self._bad) == allowed and now - self._bad[0] < _MINUTE_SECONDS:
            self.excess = "Too many commands that are not valid"
        self._bad.append(now)
