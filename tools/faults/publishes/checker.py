"""Check the answers to the publishes of clients. Knows the content of the stream, but nothing of the bridge.

Each publish that was acknowledged must be stored once, at the place of the acknowledgement, as it was sent, with
its author. One that was refused must not be stored. What is unknown may be stored once. Nothing else may be stored. The
messages of a client that waits for each answer must be in order.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import unquote

from .authors import HEADER
from .records import ACKNOWLEDGED, PENDING, UNKNOWN, Publish, Stored

__all__ = ["Verdict", "check"]

_MAX_NOTES = 20
_FORBIDDEN = "publish.forbidden"

_Key: TypeAlias = tuple[object, object]


@dataclass
class Verdict:
    """The result of a check.

    Attributes:
        publishes: The number of publishes.
        acknowledged: Those that were acknowledged.
        stored_once: Those of them that are stored once.
        unknown: Those of which a client doesn't know whether they are stored.
        refused: The others that are allowed, by code.
        forbidden: Those that their clients aren't allowed.
        repeated: Publishes that were sent more than once.
        attempts: The number of times that publishes were sent.
        dropped: Acknowledgements by which the stream had the message already.
        violations: The number of violations of each kind.
        notes: Descriptions of the first violations.
    """

    publishes: int = 0
    acknowledged: int = 0
    stored_once: int = 0
    unknown: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    forbidden: int = 0
    repeated: int = 0
    attempts: int = 0
    dropped: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, text: str, count: int = 1) -> None:
        """Count violations, and describe them unless there are many already."""
        self.violations[kind] += count
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(f"{kind}: {text}")


def check(
    publishes: Iterable[Publish], stored: Sequence[Stored], stream: str, refusals: Collection[str] = ()
) -> Verdict:
    """Check all publishes against a stream.

    Args:
        publishes: What the clients have published.
        stored: All messages of the stream.
        stream: Its name.
        refusals: The codes with which an allowed publish may be refused.
    """
    verdict = Verdict()
    copies: dict[_Key, list[Stored]] = defaultdict(list)
    for message in stored:
        copies[_key(message)].append(message)
    known = set[_Key]()
    by_sender: dict[str, list[Publish]] = defaultdict(list)
    for publish in publishes:
        key: _Key = (publish.sender, publish.number)
        known.add(key)
        by_sender[publish.sender].append(publish)
        _count(verdict, publish)
        _check_outcome(verdict, publish, refusals)
        _check_copies(verdict, publish, copies.get(key, []), stream)
    for other in copies.keys() - known:
        verdict.add("stranger", f"no client has published {copies[other][0]}", len(copies[other]))
    for sent in by_sender.values():
        _check_order(verdict, sent)
    return verdict


def _key(message: Stored) -> _Key:
    data = message.data if isinstance(message.data, dict) else {}
    return data.get("sender"), data.get("number")


def _count(verdict: Verdict, publish: Publish) -> None:
    verdict.publishes += 1
    verdict.attempts += publish.attempts
    verdict.repeated += publish.attempts > 1
    verdict.acknowledged += publish.outcome == ACKNOWLEDGED
    verdict.dropped += publish.outcome == ACKNOWLEDGED and publish.duplicate is True
    if publish.forbidden:
        verdict.forbidden += 1
    elif publish.outcome == UNKNOWN:
        verdict.unknown += 1
    elif publish.outcome not in (ACKNOWLEDGED, PENDING):
        verdict.refused[publish.outcome] += 1


def _check_outcome(verdict: Verdict, publish: Publish, refusals: Collection[str]) -> None:
    outcome = publish.outcome
    if outcome == PENDING:
        verdict.add("unsettled", f"no answer for {publish}")
    elif publish.forbidden:
        if outcome not in (_FORBIDDEN, UNKNOWN):
            verdict.add("allowed", f"not refused: {publish}")
    elif outcome != ACKNOWLEDGED and outcome not in refusals:
        verdict.add("refused", f"refused: {publish}")


def _check_copies(verdict: Verdict, publish: Publish, copies: Sequence[Stored], stream: str) -> None:
    if len(copies) > 1:
        places = [each.sequence for each in copies]
        verdict.add("doubled", f"stored at {places}: {publish}", len(copies) - 1)
    if publish.outcome == ACKNOWLEDGED:
        if not copies:
            verdict.add("lost", f"acknowledged, but not stored: {publish}")
        else:
            verdict.stored_once += len(copies) == 1
            _check_acknowledgement(verdict, publish, copies, stream)
    elif copies and publish.outcome not in (UNKNOWN, PENDING):
        verdict.add("stored", f"refused, but stored: {publish}")
    for copy in copies:
        if publish.forbidden:
            verdict.add("forbidden", f"stored without permission: {publish}")
        if (copy.subject, copy.data) != (publish.subject, publish.data):
            verdict.add("altered", f"{copy} is not {publish}")
        author = copy.headers.get(HEADER)
        if author is None or unquote(author, errors="strict") != publish.identity:
            verdict.add("author", f"{author!r} is not the author of {publish}")


def _check_acknowledgement(verdict: Verdict, publish: Publish, copies: Sequence[Stored], stream: str) -> None:
    if publish.stream != stream:
        verdict.add("place", f"stored in {stream}: {publish}")
    if publish.sequence not in [each.sequence for each in copies]:
        verdict.add("place", f"stored at {[each.sequence for each in copies]}: {publish}")
    if publish.duplicate is not False and (publish.duplicate is not True or publish.attempts < 2):
        verdict.add("duplicate", f"sent {publish.attempts} times: {publish}")


def _check_order(verdict: Verdict, sent: Iterable[Publish]) -> None:
    last = 0
    for publish in sorted((each for each in sent if each.waited), key=lambda each: each.number):
        if publish.outcome == ACKNOWLEDGED and publish.sequence is not None:
            if publish.sequence <= last:
                verdict.add("order", f"not after {last}: {publish}")
            last = max(last, publish.sequence)
