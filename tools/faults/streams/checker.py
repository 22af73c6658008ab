"""Check what clients of streams received. Knows the protocol and the streams' content, but nothing of the bridge.

From the start that a client has asked for, each stored message that it may see must be in its log, once and in order,
under each pattern. Otherwise a ``gap`` for the pattern must be at that place. ``recovered`` must agree. An
``id`` must not pass a message that the client hasn't received.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..patterns import matches
from .ids import StreamIds
from .logs import Asked, Barrier, Cut, Denied, Ended, Entry, Log, Received, Stored, Truth
from .profiles import Profile

__all__ = ["Verdict", "check"]

_MAX_NOTES = 20
_TRAIL = 30
"""The entries of a log that are shown before the first violation."""
_MAX_ID = 128
_GOING_AWAY = 1001


@dataclass
class Verdict:
    """The result of a check. ``violations`` counts by kind."""

    delivered: int = 0
    announced: int = 0
    gaps: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    ended: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, text: str, count: int = 1) -> None:
        """Count violations, and describe them unless there are many already."""
        self.violations[kind] += count
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(f"{kind}: {text}")


def check(
    truth: Truth | Mapping[str, Sequence[Stored]],
    logs: Iterable[Log],
    reasons: Iterable[str] = (),
    codes: Iterable[str] = (),
) -> Verdict:
    """Check the logs of all clients.

    Args:
        truth: What the streams have held, or the messages of each stream if nothing was lost there.
        logs: The logs.
        reasons: The reasons of gaps that are allowed.
        codes: The codes with which subscriptions may end.
    """
    verdict = Verdict()
    logs = list(logs)
    if not isinstance(truth, Truth):
        truth = Truth(truth)
    messages = {each.number: (stream, each) for stream, stored in truth.stored.items() for each in stored}
    ids = StreamIds(truth.lives, messages, logs)
    seen: dict[tuple[Profile, str], _Visible] = {}
    for log in logs:
        _Reader(log, truth, messages, ids, frozenset(reasons), frozenset(codes), seen, verdict).read()
    return verdict


class _Visible:
    """The stored messages that one pattern of one profile shows, in order."""

    def __init__(self, profile: Profile, pattern: str, truth: Truth) -> None:
        self.stream, real = profile.real(pattern)
        shown = [each for each in truth.stored[self.stream] if matches(real, each.subject)]
        self.all_seqs = [each.seq for each in shown]
        """Also of those that are hidden."""
        shown = [each for each in shown if not profile.hides(each.subject)]
        self.optional = {each.number for each in shown if profile.may_hide(each.subject) or each.number in truth.unsure}
        self.stored = [each for each in shown if each.number not in self.optional]
        self.seqs = [each.seq for each in self.stored]
        self.index = {each.number: index for index, each in enumerate(self.stored)}

    def after(self, seq: int) -> int:
        """Return the index of the first message after a sequence."""
        return bisect_right(self.seqs, seq)

    def place_of_last(self, count: int, seq: int) -> int:
        """Return the index of the first one of the last messages up to a sequence. Hidden ones count."""
        end = bisect_right(self.all_seqs, seq)
        return self.after(self.all_seqs[max(0, end - count)] - 1) if end else 0


@dataclass
class _Follow:
    """One pattern of a client, from its first subscribe on."""

    pattern: str
    visible: _Visible
    start: Any = "new"
    place: int | None = None
    """The index of the next message; ``None`` until it is known."""
    group: frozenset[str] = frozenset()
    """The patterns of its command."""
    live: bool = False
    """The client has got ``caught_up``."""
    jump: bool = False
    """A gap allows that messages are missing here."""
    lost: int | None = None
    gapped: bool = False
    state: list[int] | None = None
    """The messages of a state so far, while one is read."""
    first: int | None = None
    """The index of the first message of a start with the last messages."""
    repeats: set[int] = field(default_factory=set)
    optional_at: int = 0

    def begin(self, start: Any) -> None:
        """Expect what a start brings."""
        self.start, self.first, self.state, self.jump = start, None, None, False
        self.place = 0 if start == "all" else None
        self.optional_at = 0
        if start == "last_per_subject":
            self.state = []


class _Reader:
    """The reader of one log."""

    def __init__(
        self,
        log: Log,
        truth: Truth,
        messages: Mapping[int, tuple[str, Stored]],
        ids: StreamIds,
        reasons: frozenset[str],
        codes: frozenset[str],
        seen: dict[tuple[Profile, str], _Visible],
        verdict: Verdict,
    ) -> None:
        self._log = log
        self._truth = truth
        self._messages = messages
        self._ids = ids
        self._reasons = reasons
        self._codes = codes
        self._seen = seen
        self._verdict = verdict
        self._follows: dict[str, _Follow] = {}
        self._denied: Sequence[str] = ()
        self._counts: Counter[str] = Counter()
        self._at = 0

    def read(self) -> None:
        """Read the whole log."""
        for at, entry in enumerate(self._log.entries):
            self._at = at
            self._read(entry)
        if self._log.complete:
            for follow in self._follows.values():
                self._check_end(follow)

    def _read(self, entry: Entry) -> None:
        match entry:
            case Received():
                self._frame(entry)
            case Asked():
                self._asked(entry)
            case Ended():
                for pattern in entry.patterns:
                    self._follows.pop(pattern, None)
            case Cut():
                for follow in self._follows.values():
                    follow.live = False
                self._denied = ()
            case Denied():
                self._denied = ()
            case Barrier():
                self._denied = entry.deny

    def _check_end(self, follow: _Follow) -> None:
        if not follow.live:
            self._violation("unfinished", f"'{follow.pattern}' has never caught up")
        elif follow.place is not None and follow.place < len(follow.visible.stored):
            missing = follow.visible.stored[follow.place :]
            self._lost(missing, f"at the end of '{follow.pattern}'")

    # Commands

    def _asked(self, asked: Asked) -> None:
        for pattern in asked.patterns:
            if pattern not in self._follows:
                self._follows[pattern] = _Follow(pattern, self._view(pattern))
            follow = self._follows[pattern]
            follow.live = follow.gapped = False
            follow.group = frozenset(asked.patterns)
            follow.repeats = set()
            self._counts[pattern] = 0
            if asked.after is None:
                follow.begin(asked.start)
            else:
                self._verdict.resumed += 1
                self._resume(follow, asked)

    def _view(self, pattern: str) -> _Visible:
        key = (self._log.profile, pattern)
        if key not in self._seen:
            self._seen[key] = _Visible(*key, self._truth)
        return self._seen[key]

    def _resume(self, follow: _Follow, asked: Asked) -> None:
        assert asked.after is not None
        seq = self._ids.seqs(asked.after).get(follow.visible.stream, 0)
        if not seq and asked.start != "new" and (follow.place is None or follow.state is not None):
            # It has a part of a state, and gets all of it again.
            follow.begin(asked.start)
            return
        place = follow.visible.after(seq)
        if follow.place is None or follow.state is not None:
            # It has received no message, or a part of a state.
            follow.begin(asked.start)
            follow.place, follow.state = place, None
        elif place < follow.place:
            repeated = follow.visible.stored[place : follow.place]
            if self._log.repeats and len(repeated) == 1:
                follow.repeats = {repeated[0].number}
            else:
                self._violation("late id", f"'{follow.pattern}' would get {len(repeated)} again, from {repeated[0]}")
                follow.place = place
        elif place > follow.place and self._skips(follow, place):
            follow.place = place
        elif place > follow.place:
            self._violation("early id", f"{asked.after} passes {follow.visible.stored[follow.place]}")
        # The stream may have been longer when the last messages were asked for than where the client catches up now.
        follow.start, follow.first = asked.start, None

    # Frames

    def _frame(self, entry: Received) -> None:
        if entry.kind == "message":
            self._message(entry)
        elif entry.kind == "gap":
            self._gap(entry.frame)
        elif entry.kind == "caught_up":
            self._caught_up(entry.frame)
        elif entry.kind == "unsubscribed" and entry.frame.get("code") in self._codes:
            for pattern in entry.frame["subjects"]:
                self._verdict.ended += self._follows.pop(pattern, None) is not None
        elif entry.kind == "unsubscribed" or (entry.kind == "close" and entry.frame["code"] != _GOING_AWAY):
            self._violation("ended", str(entry.frame))
        elif entry.kind == "reply" and not entry.frame["success"]:
            self._violation("refused", str(entry.frame))
        if entry.id:
            self._check_id(entry)

    def _check_id(self, entry: Received) -> None:
        if len(entry.id) > _MAX_ID:
            self._violation("long id", entry.id)
        if entry.kind == "message" and not (entry.pattern in self._follows and self._follows[entry.pattern].live):
            # It counts for the patterns of that replay only.
            return
        seqs = self._ids.seqs(entry.id)
        for follow in self._follows.values():
            stream = follow.visible.stream
            if not follow.live or follow.place is None or follow.jump:
                continue
            if stream not in seqs:
                self._violation("partial id", f"{entry.id} doesn't name the stream of '{follow.pattern}'")
                continue
            place = follow.visible.after(seqs[stream])
            if place > follow.place and not (
                # The copy for another pattern came first.
                place == follow.place + 1 and follow.visible.stored[follow.place].number == entry.number
            ):
                self._violation(
                    "early id",
                    f"{entry.kind} {entry.id} passes {follow.visible.stored[follow.place]} of '{follow.pattern}'",
                )

    def _gap(self, frame: Mapping[str, Any]) -> None:
        reason = frame["reason"]
        for pattern in frame["subjects"]:
            follow = self._follows.get(pattern)
            if follow is None:
                self._violation("stray gap", str(frame))
                continue
            self._verdict.gaps[reason] += 1
            if reason not in self._reasons:
                self._violation("false gap", f"{reason} for '{pattern}' (start {follow.start}, place {follow.place})")
            follow.gapped = True
            if reason == "backlog" or follow.live:
                follow.jump = True
                follow.lost = frame["lost"]
            else:
                follow.begin(follow.start)

    def _caught_up(self, frame: Mapping[str, Any]) -> None:
        seqs = self._ids.seqs(frame["position"])
        follows = [self._follows[pattern] for pattern in frame["subjects"] if pattern in self._follows]
        if len(follows) != len(frame["subjects"]):
            return self._violation("stray caught_up", str(frame))
        count = sum(self._counts[each.pattern] for each in follows)
        # A pattern that was unsubscribed meanwhile isn't named.
        if count != frame["replayed"] and all(each.group == frozenset(frame["subjects"]) for each in follows):
            self._violation("count", f"{frame['replayed']} replayed, {count} received for {frame['subjects']}")
        for follow in follows:
            if not follow.gapped and not frame["recovered"] and not any(each.gapped for each in follows):
                self._violation("recovered", f"false without a gap for '{follow.pattern}'")
            if follow.gapped and frame["recovered"]:
                self._violation("recovered", f"true after a gap for '{follow.pattern}'")
            follow.live = True
            stream = follow.visible.stream
            if stream in seqs:
                self._arrive(follow, seqs[stream])
            elif self._ids.knows(stream):
                self._violation("partial id", f"{frame['position']} lacks the stream of '{follow.pattern}'")
        return None

    def _arrive(self, follow: _Follow, seq: int) -> None:
        """Check that a client has everything up to a sequence."""
        visible, place = follow.visible, follow.visible.after(seq)
        if follow.state is not None:
            last: dict[str, int] = {each.subject: index for index, each in enumerate(visible.stored[:place])}
            missing = set(last.values()).difference(follow.state)
            if missing:
                text = f"'{follow.pattern}' lacks the last messages of {len(missing)} subjects"
                self._violation("state", text, len(missing))
            follow.state = None
        elif isinstance(follow.start, dict) and (follow.place is None or follow.first is not None):
            first = place if follow.first is None else follow.first
            due = visible.place_of_last(follow.start["last"], seq)
            if first > due and not follow.jump:
                self._violation(
                    "last", f"'{follow.pattern}' got {place - first} of {follow.start}, {place - due} are due"
                )
            if follow.place is not None and place > follow.place:
                self._lost(visible.stored[follow.place : place], f"of '{follow.pattern}' before caught_up")
        elif follow.place is not None and place > follow.place and not self._skips(follow, place):
            self._lost(visible.stored[follow.place : place], f"of '{follow.pattern}' before caught_up")
        if follow.place is not None and place < follow.place:
            # The one that comes twice may still come, as a live one.
            if not follow.repeats.issuperset(each.number for each in visible.stored[place : follow.place]):
                self._violation("late id", f"caught_up of '{follow.pattern}' is at {seq}")
            place = follow.place
        follow.place, follow.first = place, None

    def _skips(self, follow: _Follow, place: int) -> bool:
        """Return whether a gap allows to go on at a place. It counts once."""
        if not follow.jump:
            return False
        assert follow.place is not None
        missing = place - follow.place
        if follow.lost is not None and follow.lost != missing:
            self._violation("wrong number", f"{follow.lost} lost of '{follow.pattern}', {missing} are missing")
        self._verdict.announced += missing
        follow.jump, follow.lost = False, None
        return True

    def _message(self, entry: Received) -> None:
        follow = self._follows.get(entry.pattern)
        known = self._messages.get(entry.number)
        if follow is None or known is None:
            return self._violation("stray", f"{entry.number} on {entry.subject} for '{entry.pattern}'")
        stored = known[1]
        self._counts[entry.pattern] += 1
        if self._log.profile.shown(entry.pattern, stored.subject) != entry.subject:
            return self._violation("forbidden", f"{stored} as {entry.subject}")
        if any(matches(pattern, stored.subject) for pattern in self._denied):
            return self._violation("forbidden", f"{stored} is denied now")
        self._verdict.delivered += 1
        if stored.number in follow.visible.optional:
            return self._optional(follow, stored)
        index = follow.visible.index.get(entry.number)
        if index is None:
            return self._violation("forbidden", f"{stored} for '{entry.pattern}'")
        self._advance(follow, stored, index)
        return None

    def _optional(self, follow: _Follow, stored: Stored) -> None:
        is_again = stored.seq == follow.optional_at and self._log.repeats
        if stored.seq <= follow.optional_at and follow.state is None and not is_again:
            self._violation("order", f"{stored} after {follow.optional_at} for '{follow.pattern}'")
        follow.optional_at = stored.seq

    def _advance(self, follow: _Follow, stored: Stored, index: int) -> None:
        if follow.state is not None:
            if follow.state and index <= follow.state[-1]:
                self._violation("order", f"{stored} in a state of '{follow.pattern}'")
            follow.state.append(index)
            return
        if follow.place is None:
            follow.first = index
        elif index < follow.place:
            if stored.number in follow.repeats:
                follow.repeats.discard(stored.number)
            else:
                self._violation("duplicate", f"{stored} for '{follow.pattern}', expected index {follow.place}")
            return
        elif index > follow.place and not self._skips(follow, index):
            self._lost(follow.visible.stored[follow.place : index], f"of '{follow.pattern}' before {stored}")
        follow.place = index + 1

    def _lost(self, missing: Sequence[Stored], text: str) -> None:
        self._violation("lost", f"{len(missing)} {text}, from {missing[0]}", len(missing))

    def _violation(self, kind: str, text: str, count: int = 1) -> None:
        if not self._verdict.violations:
            trail = self._log.entries[max(0, self._at - _TRAIL) : self._at + 1]
            self._verdict.notes.append("\n".join(map(str, trail)))
        self._verdict.add(kind, f"{self._log.name} at {self._at}: {text}", count)
