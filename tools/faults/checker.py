"""Judges, when all is over, what every client got. It knows the protocol, and nothing of the bridge.

Each message that is published while a client follows a pattern that it matches must be in the client's log, once for
that pattern; or a ``gap`` for the pattern must stand where it is missing, with the right number where it has one.
Nothing else may be there, and the messages of one publisher stand in their order, across all patterns.

A command by POST is not in the stream: the client writes ``sent`` into its log before, and ``answer``, with the reply,
when it has that. The stream may be ahead of the answer, and behind it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from .gap_analysis import Publication, Subscription, findings
from .patterns import covers, matches
from .payloads import Key, carried, digest, key_of

__all__ = ["Log", "Publication", "Verdict", "View", "judge"]

_MAX_NOTES: Final = 20


@dataclass(frozen=True)
class View:
    """What a client may see, in the names that it knows.

    Attributes:
        allowed: Patterns that it may follow, and narrower ones.
        denied: Patterns of what is left out for it.
        renamed: How subjects begin, and how they begin for the client instead.
    """

    allowed: tuple[str, ...]
    denied: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def name(self, subject: str) -> str:
        """The client's name for a subject."""
        for real, own in self.renamed:
            if subject.startswith(real):
                return own + subject.removeprefix(real)
        return subject

    def real(self, name: str) -> str:
        """What the client means by a subject, or a pattern."""
        for real, own in self.renamed:
            if name.startswith(own):
                return real + name.removeprefix(own)
        return name

    def may_follow(self, pattern: str) -> bool:
        """Whether the client may ask for the pattern."""
        inside = any(covers(allowed, pattern) for allowed in self.allowed)
        return inside and not any(covers(denied, pattern) for denied in self.denied)

    def shows(self, name: str) -> bool:
        """Whether the client may get messages on the subject, which is the client's name for it."""
        return not any(matches(denied, name) for denied in self.denied)

    def brings(self, pattern: str, subject: str | None) -> bool:
        """Whether a message on the subject comes to a client that follows the pattern."""
        return subject is not None and matches(pattern, self.name(subject)) and self.shows(self.name(subject))


@dataclass
class Log:
    """What one session got.

    Attributes:
        entries: Its frames in order, each with the time at which it was read.
        to_the_end: It followed until the last message that was published could be there.
        spreading: So many seconds after ``active: true`` other servers of a cluster may not have heard of it.
    """

    client: str
    view: View
    entries: list[tuple[float, Mapping[str, Any]]] = field(default_factory=list)
    to_the_end: bool = True
    spreading: float = 0.0


@dataclass
class Verdict:
    """What became of the messages: a copy for each subscription that they match.

    Attributes:
        delivered: Copies that came, once and as they should.
        announced: Missing, and a ``gap`` says so at their place.
        lost: Missing in silence.
        overstated: Announced as lost beyond what is missing.
        notes: The first of what is wrong, in words.
    """

    delivered: int = 0
    announced: int = 0
    lost: int = 0
    duplicate: int = 0
    disordered: int = 0
    forbidden: int = 0
    overstated: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """How often the promise was broken."""
        return self.lost + self.duplicate + self.disordered + self.forbidden + self.overstated

    def note(self, text: str) -> None:
        """Say what is wrong, as long as it is not said too often."""
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(text)


def judge(publications: Sequence[Publication], logs: Iterable[Log]) -> Verdict:
    """Judge the logs of all sessions by what was published."""
    verdict = Verdict()
    by_key = {publication.key: publication for publication in publications}

    @cache
    def due(view: View, pattern: str) -> list[Publication]:
        return [each for each in publications if view.brings(pattern, each.subject)]

    for log in logs:
        reading = _Reading(log, by_key, verdict)
        for place, (at, frame) in enumerate(log.entries):
            reading.read(place, at, frame)
        for subscription in reading.subscriptions:
            found = findings(
                subscription, due(log.view, subscription.pattern), len(log.entries), complete=log.to_the_end
            )
            verdict.announced += found.announced
            verdict.lost += len(found.missing)
            verdict.overstated += found.overstated
            for each in found.missing:
                verdict.note(f"{log.client}: silently lost by '{subscription.pattern}': {_name(each)}")
            if found.overstated:
                verdict.note(f"{log.client}: {found.overstated} too many announced for '{subscription.pattern}'")
    return verdict


class _Reading:
    """Goes through one log, and sorts what is there."""

    def __init__(self, log: Log, published: Mapping[Key, Publication], verdict: Verdict) -> None:
        self.subscriptions: list[Subscription] = []
        self._log = log
        self._published = published
        self._verdict = verdict
        self._current: dict[str, Subscription] = {}
        self._unanswered: set[str] = set()
        self._left: dict[str, tuple[float, Subscription]] = {}
        self._seen: dict[str, set[Key]] = defaultdict(set)
        self._last: dict[str, int] = {}

    def read(self, place: int, at: float, frame: Mapping[str, Any]) -> None:
        """Take the next frame."""
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
                    subscription.since = at + self._log.spreading

    def _answer(self, place: int, at: float, frame: Mapping[str, Any]) -> None:
        patterns = frame["subjects"]
        if frame["action"] == "unsubscribe" and frame["success"]:
            for pattern in patterns:
                self._left[pattern] = (at, self._current[pattern])
            self._close(patterns, place)
        elif frame["action"] == "subscribe":
            if frame["success"]:
                self._open(patterns, place, at if frame["active"] else None)
            else:
                self._close(self._unanswered.intersection(patterns), place)
            self._unanswered.difference_update(patterns)

    def _open(self, patterns: Iterable[str], place: int, active: float | None) -> None:
        since = None if active is None else active + self._log.spreading
        for pattern in patterns:
            if not self._log.view.may_follow(pattern):
                self._forbidden(f"may follow '{pattern}'")
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
                self._forbidden(f"is told of the end of '{pattern}', which it does not follow")
            else:
                subscription.closed = place

    def _gap(self, patterns: Iterable[str], place: int, lost: int | None) -> None:
        for pattern in patterns:
            if pattern in self._current:
                self._current[pattern].gaps.append((place, lost))
            elif pattern not in self._left:
                self._forbidden(f"is told of a gap in '{pattern}', which it does not follow")

    def _message(self, place: int, frame: Mapping[str, Any]) -> None:
        subject = frame["subject"]
        data = carried(frame)
        key = None if data is None else key_of(data)
        publication = None if key is None else self._published.get(key)
        subscription = self._followed(frame.get("pattern", subject), publication)
        if subscription is None or not matches(subscription.pattern, subject):
            return self._forbidden(f"gets {subject!a}, which it does not follow")
        if not any(matches(allowed, subject) for allowed in self._log.view.allowed) or not self._log.view.shows(
            subject
        ):
            return self._forbidden(f"gets {subject!a}, which it may not follow")
        if publication is None or publication.subject is None or data is None or digest(data) != publication.digest:
            return self._forbidden(f"gets on {subject!a} what was never published")
        if self._log.view.name(publication.subject) != subject:
            return self._forbidden(f"gets on {subject!a} what was never published there")
        return self._publication(place, publication, subscription)

    def _followed(self, pattern: str, publication: Publication | None) -> Subscription | None:
        """The subscription that brings it: one that has ended too, if the message was on its way by then."""
        if pattern not in self._current and pattern in self._left and publication is not None:
            ended, subscription = self._left[pattern]
            return subscription if publication.sent <= ended else None
        return self._current.get(pattern)

    def _publication(self, place: int, publication: Publication, subscription: Subscription) -> None:
        key = publication.key
        where = f"by '{subscription.pattern}': {_name(publication)}"
        if key in self._seen[subscription.pattern]:
            self._verdict.duplicate += 1
            return self._verdict.note(f"{self._log.client}: twice {where}")
        self._seen[subscription.pattern].add(key)
        subscription.delivered[key] = place
        if key.number < self._last.get(key.publisher, 0):
            self._verdict.disordered += 1
            return self._verdict.note(f"{self._log.client}: out of order {where}")
        self._last[key.publisher] = key.number
        self._verdict.delivered += 1
        return None

    def _forbidden(self, what: str) -> None:
        self._verdict.forbidden += 1
        self._verdict.note(f"{self._log.client} {what}")


def _name(publication: Publication) -> str:
    return f"number {publication.key.number} of {publication.key.publisher} on {publication.subject!a}"
