"""The limit on the commands of one session."""

import asyncio
import contextlib
import math
from collections import deque

from ..errors import BridgeError, RateLimitExceeded
from ..settings import Settings
from ..token_bucket import TokenBucket

__all__ = ["CommandRateLimiter", "units_of"]

_MINUTE_SECONDS = 60.0
_PATTERNS_PER_UNIT = 16
"""The patterns for which one command counts as one. A full budget suffices for the default of ``max_subscriptions``."""
_REPLAYED_PER_UNIT = 512
_BAD_REQUEST = 400


class CommandRateLimiter:
    """The settings ``command_rate``, ``command_burst`` and ``max_bad_commands``, applied to one session."""

    __slots__ = ("_bad", "_commands", "_replayed", "_settings", "close_reason")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._commands: TokenBucket | None = None
        self._bad: deque[float] | None = None
        self._replayed = 0
        """The number of old messages that are not counted yet."""
        self.close_reason: str | None = None
        """The reason for which the session must be closed; ``None`` while it is within the limits."""

    def count(self) -> None:
        """Count a command, valid or not.

        Raises:
            RateLimitExceeded: The command exceeds ``command_rate``.
        """
        settings, now = self._settings, asyncio.get_running_loop().time()
        if self._commands is None:
            self._commands = TokenBucket(settings.command_rate, settings.command_burst, now)
        if self._commands.take(now):
            return
        if self._commands.overdrawn:
            self.close_reason = "Too many commands"
        message = f"At most {settings.command_rate:g} commands per second"
        raise RateLimitExceeded(message, retry_after=self._commands.wait(now))

    def count_patterns(self, patterns: int) -> None:
        """Count a command once more for each 16 patterns, after the first 16, that it adds to the session.

        A rejected command has been counted once already.

        Raises:
            RateLimitExceeded: The command exceeds ``command_rate``.
        """
        units = units_of(patterns)
        if units <= 1 or self._commands is None:
            return
        now = asyncio.get_running_loop().time()
        if not self._commands.take_more(now, units):
            message = f"At most {self._settings.command_rate * _PATTERNS_PER_UNIT:g} new subjects per second"
            raise RateLimitExceeded(message, retry_after=self._commands.wait(now, units))

    def count_replayed(self, messages: int) -> None:
        """Count old messages that the session gets: 512 as one command.

        They are never refused, but the next commands may be.
        """
        if self._commands is not None:
            self._replayed += messages
            self._commands.owe(asyncio.get_running_loop().time(), self._replayed // _REPLAYED_PER_UNIT)
            self._replayed %= _REPLAYED_PER_UNIT

    def count_control_frame(self) -> None:
        """Count a frame that cannot be answered with an error, such as a ping."""
        with contextlib.suppress(RateLimitExceeded):
            self.count()

    def count_rejection(self, error: BridgeError) -> None:
        """Count a rejected command against ``max_bad_commands`` if the command was invalid."""
        if error.http_status != _BAD_REQUEST:
            return
        allowed, now = self._settings.max_bad_commands, asyncio.get_running_loop().time()
        if self._bad is None:
            self._bad = deque(maxlen=allowed)
        if len(self._bad) == allowed and now - self._bad[0] < _MINUTE_SECONDS:
            self.close_reason = "Too many invalid commands"
        self._bad.append(now)


def units_of(patterns: int) -> int:
    """Return the units that a command with so many patterns counts as: one for each 16, and one at least."""
    return max(1, math.ceil(patterns / _PATTERNS_PER_UNIT))
