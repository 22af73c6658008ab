"""Explanations of which stream has the history of a pattern, or why none does, for the command line."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from ..auth.expirations import ExpirationQueue
from ..hub.broadcast import Broadcaster
from ..metrics.counters import Counters
from ..settings import Settings
from .feed import Feed
from .hub import StreamHub
from .requirements import advice_for, holds

__all__ = ["ServedPattern", "explain_streams"]


@dataclass(frozen=True)
class ServedPattern:
    """The stream that has the history of a pattern, or the reasons for which none has it."""

    stream: str | None
    """The name of the stream."""
    reasons: tuple[str, ...]
    """Without a stream, a reason for each one that is configured; with one, what can be improved about it."""


async def explain_streams(settings: Settings, patterns: Sequence[str]) -> dict[str, ServedPattern]:
    """Ask NATS which of the configured streams has the history of each real pattern.

    Raises:
        ConnectionError: NATS can't be reached.
    """
    counters = Counters()
    broadcaster = Broadcaster(counters, ExpirationQueue(lambda keys: None))
    # Every NATS user of a bridge may subscribe below the inbox prefix.
    prefix = f"{settings.control_prefix}.streams" if settings.control_prefix else settings.inbox_prefix
    hub = StreamHub(settings, broadcaster, counters, prefix=f"{prefix}.{secrets.token_hex(8)}")
    hub.start()
    try:
        deadline = asyncio.get_running_loop().time() + 2 * settings.connect_timeout
        for feed in hub.feeds:
            await feed.until_known(deadline - asyncio.get_running_loop().time())
        if hub.connection.client is None:
            raise ConnectionError("NATS can't be reached")
        return {pattern: _served(hub.feeds, pattern) for pattern in patterns}
    finally:
        await hub.stop()


def _served(feeds: Sequence[Feed], pattern: str) -> ServedPattern:
    reasons = []
    for feed in feeds:
        reason = _obstacle(feed, pattern)
        if not reason:
            assert feed.info is not None
            return ServedPattern(feed.name, tuple(advice_for(feed.info, feed.denied)))
        reasons.append(f"{feed.name}: {reason}")
    return ServedPattern(None, tuple(reasons))


def _obstacle(feed: Feed, pattern: str) -> str:
    """Return the reason for which a stream doesn't have the history of a pattern; empty if it has."""
    if not feed.may_hold(pattern):
        return f"the setting 'streams' has only {_listed(feed.patterns or ())} for it"
    if feed.info is None or feed.is_unavailable:
        return feed.problem or "it doesn't answer"
    return "" if holds(feed.patterns, feed.info, pattern) else f"it has only {_listed(feed.info.subjects)}"


def _listed(patterns: Sequence[str]) -> str:
    return ", ".join(patterns) or "no subjects"
