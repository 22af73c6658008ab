"""The streams of subscriptions that were made before it was known which streams hold their patterns."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import BridgeError, SubscriptionLimitExceeded, UnknownSession
from ..protocol.messages import Gap
from ..streams.feed import Feed
from ..streams.hub import StreamHub
from .interfaces import HistoryOwner
from .resumption import Entry, Resumption
from .starts import unavailable

__all__ = ["MAX_STREAMS", "Binder", "Binding", "bind", "too_many_streams"]

_KNOWN_SECONDS = 5.0
"""The time that the streams have to become known before a replay tries again."""

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


class Binder:
    """The binding of one session's subscriptions to streams.

    Args:
        owner: The session.
        streams: The streams of the worker.
        entries: Its subscriptions by the client's names for the patterns.
        remove_all: Ends subscriptions.
    """

    def __init__(
        self,
        owner: HistoryOwner,
        streams: StreamHub,
        entries: Mapping[str, Entry],
        remove_all: Callable[[Sequence[str]], None],
    ) -> None:
        self._owner = owner
        self._streams = streams
        self._entries = entries
        self._remove_all = remove_all
        self._becoming_live: set[asyncio.Task[None]] = set()
        """The changes into subscriptions without history in progress."""

    async def bind(self, resumption: Resumption) -> bool:
        """Move subscriptions to the streams that hold them, if that was not known before; return whether it is now.

        Those that no stream holds go on without history, unless the client has asked for the past only.
        """
        unknown = [entry for entry in resumption.entries if not entry.is_bound]
        if not unknown:
            return True
        deadline = asyncio.get_running_loop().time() + _KNOWN_SECONDS
        await self._streams.until_known([entry.grant.real for entry in unknown], deadline)
        unknown = [entry for entry in unknown if entry in resumption.entries]
        binding = bind(unknown, {each.feed for each in self._entries.values() if each.is_bound}, self._streams)
        if binding is None:
            return False
        refused = list(binding.refused)
        if binding.unheld and resumption.needs_history:
            refused.append((binding.unheld, unavailable([entry.grant.pattern for entry in binding.unheld])))
        if refused and not resumption.ordered.is_set():
            resumption.error = refused[0][1]
            return True
        for entries, error in refused:
            self.end(entries, error)
        if binding.unheld and not resumption.needs_history:
            for entry in binding.unheld:
                resumption.remove(entry)
            change = self._go_on_live(binding.unheld, is_resumed=resumption.is_resumed)
            task = asyncio.create_task(change, name="natsbridge-live")
            self._becoming_live.add(task)
            task.add_done_callback(self._becoming_live.discard)
        resumption.renew_replay()
        return True

    async def _go_on_live(self, entries: Sequence[Entry], *, is_resumed: bool) -> None:
        """Make subscriptions that no stream holds ones without history."""
        # No command may subscribe to the same patterns meanwhile, and the reply comes before.
        async with self._owner.command_lock:
            patterns = self._held(entries)
            self._remove_all(patterns)
            while patterns:
                try:
                    await self._owner.follow_live(patterns, len(self._entries))
                    break
                except UnknownSession:
                    return
                except BridgeError as error:
                    ended = [pattern for pattern in patterns if pattern in error.subjects] or patterns
                    self._owner.patterns_ended(ended, error)
                    patterns = [pattern for pattern in patterns if pattern not in ended]
            if patterns and is_resumed:
                self._streams.counters.gaps["unknown"] += len(patterns)
                self._owner.send(Gap(subjects=patterns, lost=None, reason="unknown"))
        asyncio.get_running_loop().call_soon(self._owner.nats_changed)

    def _held(self, entries: Iterable[Entry]) -> list[str]:
        return [name for entry in entries if self._entries.get(name := entry.grant.pattern) is entry]

    def end(self, entries: Iterable[Entry], error: BridgeError) -> None:
        """End those of these subscriptions that are held, and report it to the client."""
        if names := self._held(entries):
            self._remove_all(names)
            self._owner.patterns_ended(names, error)

    def refuse(self, resumption: Resumption) -> None:
        """End the subscriptions of a replay that can't begin, after the reply to its command."""
        assert resumption.error is not None
        self.end(tuple(resumption.entries), resumption.error)

    def close(self) -> None:
        """End the changes in progress, because the session ends."""
        for task in tuple(self._becoming_live):
            task.cancel()
