"""The past that a command asks for, and what it gets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from ..auth.permissions import Grant
from ..errors import HistoryForbidden, HistoryUnavailable
from ..protocol.messages import Command, quoted
from ..streams.hub import StreamHub
from ..streams.snapshot import SnapshotTooLarge

__all__ = ["Subscribed", "check_start", "too_large", "unavailable"]


@dataclass(frozen=True)
class Subscribed:
    """The result of a subscribe with a point in the past."""

    resumable: list[str]
    """The patterns that go on after an absence."""
    others: list[str]
    """The patterns that no stream holds, which the caller must subscribe to without history."""
    active: bool
    recovered: bool | None
    """True if nothing is missing; ``None`` if it isn't known yet."""


def check_start(
    command: Command, grants: Sequence[Grant], allows_history: Callable[[Grant], bool], streams: StreamHub | None
) -> None:
    """Check that a command without an ``after`` may have the past that it asks for.

    Args:
        command: The command.
        grants: The grants of its new patterns.
        allows_history: Returns whether the client may read the past of a pattern.
        streams: The streams of the worker; ``None`` if they are not asked.

    Raises:
        HistoryForbidden: The permissions don't allow it.
        HistoryUnavailable: No stream holds a pattern.
    """
    if command.start is None or command.start.kind == "new" or command.after is not UNSET:
        return
    forbidden = [grant.pattern for grant in grants if not allows_history(grant)]
    if forbidden:
        raise HistoryForbidden(f"The history of these subjects is not allowed: {quoted(forbidden)}", forbidden)
    missing = [] if streams is None else [grant.pattern for grant in grants if streams.find(grant.real) is None]
    if missing:
        raise unavailable(missing)


def unavailable(patterns: Sequence[str]) -> HistoryUnavailable:
    """Return the error for patterns, as a client names them, that no stream holds."""
    return HistoryUnavailable(f"No configured stream holds: {quoted(patterns)}", patterns)


def too_large(error: SnapshotTooLarge, patterns: Sequence[str]) -> HistoryUnavailable:
    """Return the error for patterns, as a client names them, whose state is larger than one replay may be."""
    return HistoryUnavailable(f"The state exceeds {error.setting} of this server: {quoted(patterns)}", patterns)
