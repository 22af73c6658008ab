"""Check the messages of every client against the published ones. Knows the protocol, but nothing of the bridge.

While a client is subscribed to a pattern, each published message that the pattern matches must be in the client's log,
once for that pattern. Otherwise a ``gap`` for the pattern must be at the place of the missing message, with the right
number if it has a number. The log must contain no other messages. The messages of one publisher must be in order,
across all patterns.

A reply to a command by POST isn't in the stream. The client adds ``sent`` to its log before the command, and ``answer``
with the reply after it. Messages of the stream may arrive before or after the answer.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import inf
from typing import Any

from .gap_analysis import REORDERING_SECONDS, Publication, Subscription, analyze_gaps
from .patterns import matches
from .payloads import Key, digest, frame_payload, key_of
from .permission_profiles import PermissionProfile

__all__ = ["Log", "Verdict", "check"]

_MAX_NOTES = 20


@dataclass
class Log:
    """The log of one session.

    Attributes:
        entries: The frames in order, each with the time at which it was read.
        complete: The session lasted until the last published message could have arrived.
        propagations: For a cluster: periods in time order. All servers know at the end of each period of the
            subscriptions from before it.
        reordering_seconds: The longest time by which NATS may reorder messages of different publishers.
    """

    client: str
    profile: PermissionProfile
    entries: list[tuple[float, Mapping[str, Any]]] = field(default_factory=list)
    complete: bool = True
    propagations: Sequence[tuple[float, float]] | None = None
    reordering_seconds: float = REORDERING_SECONDS

    def delivers_since(self, active: float) -> float:
        """Return the time since which messages are delivered by a subscription that is active since this time."""
        if self.propagations is None:
            return active
        index = bisect_left(self.propagations, (active, active))
        return self.propagations[index][1] if index < len(self.propagations) else inf


@dataclass
class Verdict:
    """The result of a check. Counts are copies: one for each subscription that a message matches.

    Attributes:
        delivered: Copies that were received once, and in order.
        announced: Missing copies that a ``gap`` announces at their place.
        lost: Missing copies without a ``gap``.
        duplicate: Copies received again.
        out_of_order: Copies received after a later message of the same publisher.
        forbidden: Frames that the client must not receive.
        overstated: Copies announced as lost beyond those that are missing; with streams, gaps without a reason.
        false_recovered: With streams: replies that contradict what the client has received.
        wrong_ids: With streams: ids that name another position than that of their client.
        notes: Descriptions of the first violations.
    """

    delivered: int = 0
    announced: int = 0
    lost: int = 0
    duplicate: int = 0
    out_of_order: int = 0
    forbidden: int = 0
    overstated: int = 0
    false_recovered: int = 0
    wrong_ids: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """Number of violations of the guarantee."""
        delivery = self.lost + self.duplicate + self.out_of_order + self.forbidden + self.overstated
        return delivery + self.false_recovered + self.wrong_ids

    def note(self, text: str) -> None:
        """Add a description of a violation, unless there are many already."""
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(text)


def check(publications: Sequence[Publication], logs: Iterable[Log]) -> Verdict:
    """Check the logs of all sessions against the published messages."""
    verdict = Verdict()
    by_key = {publication.key: publication for publication in publications}

    @cache
    def expected(profile: PermissionProfile, pattern: str) -> list[Publication]:
        return [each for each in publications if profile.delivers(pattern, each.subject)]

    for log in logs:
        reader = _LogReader(log, by_key, verdict)
        for place, (at, frame) in enumerate(log.entries):
            reader.read(place, at, frame)
        for subscription in reader.subscriptions:
            analysis = analyze_gaps(
                subscription,
                expected(log.profile, subscription.pattern),
                len(log.entries),
                complete=log.complete,
                reordering_seconds=log.reordering_seconds,
            )
            verdict.announced += analysis.announced
            verdict.lost += len(analysis.missing)
            verdict.overstated += analysis.overstated
            for each in analysis.missing:
                verdict.note(f"{log.client}: silently lost by '{subscription.pattern}': {_name(each)}")
            if analysis.overstated:
                verdict.note(f"{log.client}: {analysis.overstated} announced too many for '{subscription.pattern}'")
    return verdict


class _LogReader:
    """A reader of one log, which assigns messages and gaps to subscriptions."""

    def __init__(self, log: Log, published: Mapping[Key, Publication], verdict: Verdict) -> None:
        self.subscriptions: list[Subscription] = []
        self._log = log
        self._published = published
        self._verdict = verdict
        self._current: dict[str, Subscription] = {}
        self._unanswered: set[str] = set()
        self._ended: dict[str, tuple[float, Subscription]] = {}
        self._seen: dict[str, set[Key]] = defaultdict(set)
        self._last_numbers: dict[str, int] = {}

    def read(self, place: int, at: float, frame: Mapping[str, Any]) -> None:
        """Read the next frame."""
        kind, patterns = frame["type"], frame.get("subjects", ())
        if kind == "message":
            self._message(place, frame)
        elif kind == "sent" and frame["action"] == "subscribe":
            self._unanswered.update(set(patterns) - self._current.keys())
            self._open(patterns, place, None)
        elif kind == "answer":
            self._answer(place, at, frame)
        elif kind == "reply" and frame["success"] and frame.get("action") == "subscribe":
            self._open(patterns, place, at if frame["active"] else None)
        elif kind == "unsubscribed" or (kind == "reply" and frame["success"] and frame.get("action") == "unsubscribe"):
            self._close(patterns, place)
        elif kind == "gap":
            self._gap(patterns, place, frame["lost"])
        elif kind == "status" and frame["nats"] == "connected":
            for subscription in self._current.values():
                if subscription.since is None and subscription.pattern not in self._unanswered:
                    subscription.since = self._log.delivers_since(at)

    def _answer(self, place: int, at: float, frame: Mapping[str, Any]) -> None:
        patterns = frame["subjects"]
        if frame["action"] == "unsubscribe" and frame["success"]:
            for pattern in patterns:
                self._ended[pattern] = (at, self._current[pattern])
            self._close(patterns, place)
        elif frame["action"] == "subscribe":
            if frame["success"]:
                self._open(patterns, place, at if frame["active"] else None)
            else:
                self._close(self._unanswered.intersection(patterns), place)
            self._unanswered.difference_update(patterns)

    def _open(self, patterns: Iterable[str], place: int, active: float | None) -> None:
        since = None if active is None else self._log.delivers_since(active)
        for pattern in patterns:
            if not self._log.profile.allows(pattern):
                self._forbidden(f"subscribed to '{pattern}', which isn't allowed")
            held = self._current.get(pattern)
            if held is None:
                self._current[pattern] = Subscription(pattern, place, since)
                self.subscriptions.append(self._current[pattern])
            elif held.since is None:
                held.since = since

    def _close(self, patterns: Iterable[str], place: int) -> None:
        for pattern in patterns:
            subscription = self._current.pop(pattern, None)
            if subscription is None:
                self._forbidden(f"received the end of '{pattern}' without a subscription to it")
            else:
                subscription.closed = place

    def _gap(self, patterns: Iterable[str], place: int, lost: int | None) -> None:
        for pattern in patterns:
            if pattern in self._current:
                self._current[pattern].gaps.append((place, lost))
            elif pattern not in self._ended:
                self._forbidden(f"received a gap for '{pattern}' without a subscription to it")

    def _message(self, place: int, frame: Mapping[str, Any]) -> None:
        subject = frame["subject"]
        data = frame_payload(frame)
        key = None if data is None else key_of(data)
        publication = None if key is None else self._published.get(key)
        subscription = self._subscription(frame.get("pattern", subject), publication)
        profile = self._log.profile
        if subscription is None or not matches(subscription.pattern, subject):
            return self._forbidden(f"received a message on {subject!a} without a subscription to it")
        if not any(matches(allowed, subject) for allowed in profile.allowed) or profile.is_denied(subject):
            return self._forbidden(f"received a message on {subject!a}, which isn't allowed")
        if publication is None or publication.subject is None or data is None or digest(data) != publication.digest:
            return self._forbidden(f"received a message on {subject!a} that was never published")
        if profile.client_name(publication.subject) != subject:
            return self._forbidden(f"received a message on {subject!a} that was published on another subject")
        return self._publication(place, publication, subscription)

    def _subscription(self, pattern: str, publication: Publication | None) -> Subscription | None:
        """Return the subscription of a message. It may have ended if the message was published before its end."""
        if pattern not in self._current and pattern in self._ended and publication is not None:
            ended, subscription = self._ended[pattern]
            return subscription if publication.sent <= ended else None
        return self._current.get(pattern)

    def _publication(self, place: int, publication: Publication, subscription: Subscription) -> None:
        key = publication.key
        description = f"by '{subscription.pattern}': {_name(publication)}"
        if key in self._seen[subscription.pattern]:
            self._verdict.duplicate += 1
            return self._verdict.note(f"{self._log.client}: duplicate {description}")
        self._seen[subscription.pattern].add(key)
        subscription.delivered[key] = place
        if key.number < self._last_numbers.get(key.publisher, 0):
            self._verdict.out_of_order += 1
            return self._verdict.note(f"{self._log.client}: out of order {description}")
        self._last_numbers[key.publisher] = key.number
        self._verdict.delivered += 1
        return None

    def _forbidden(self, violation: str) -> None:
        self._verdict.forbidden += 1
        self._verdict.note(f"{self._log.client} {violation}")


def _name(publication: Publication) -> str:
    return f"number {publication.key.number} of {publication.key.publisher} on {publication.subject!a}"
