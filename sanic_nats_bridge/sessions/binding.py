"""The streams of subscriptions that were made before it was known which streams hold their patterns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import BridgeError, SubscriptionLimitExceeded
from ..streams.feed import Feed
from ..streams.hub import StreamHub
from .resumption import Entry

__all__ = ["MAX_STREAMS", "Binding", "bind", "too_many_streams"]

MAX_STREAMS = 4
"""The most streams that one session follows at once, so that an id has at most 128 characters."""


@dataclass
class Binding:
    """The subscriptions that could not be moved to a stream."""

    unheld: list[Entry] = field(default_factory=list)
    """Those whose patterns no stream holds."""
    refused: list[tuple[list[Entry], BridgeError]] = field(default_factory=list)
    """Those for which a limit leaves no room."""


def bind(entries: Iterable[Entry], feeds: Iterable[Feed], streams: StreamHub) -> Binding | None:
    """Move subscriptions to the streams that hold their patterns.

    Args:
        entries: The subscriptions.
        feeds: The streams that the session follows already.
        streams: The streams of the worker.

    Returns:
        The subscriptions that were not moved; ``None`` if it isn't known yet for all of them, and nothing has changed.
    """
    found = {entry: streams.find(entry.grant.real) for entry in entries}
    if any(feed is not None and not feed.is_known for feed in found.values()):
        return None
    binding = Binding()
    followed = set(feeds)
    for entry, feed in found.items():
        if feed is None:
            binding.unheld.append(entry)
            continue
        try:
            if len({*followed, feed}) > MAX_STREAMS:
                raise too_many_streams([entry.grant.pattern])
            if feed is not entry.feed or entry.followed.is_ended:
                claimed = streams.follow(feed, entry.grant.real)
                streams.release(entry.feed, entry.followed)
                entry.feed, entry.followed = feed, claimed
        except SubscriptionLimitExceeded as error:
            binding.refused.append(([entry], error))
            continue
        entry.is_bound = True
        followed.add(feed)
    return binding


def too_many_streams(patterns: Sequence[str]) -> SubscriptionLimitExceeded:
    """Return the error for patterns with which a session would follow too many streams."""
    return SubscriptionLimitExceeded(f"At most {MAX_STREAMS} streams for a session", patterns)
