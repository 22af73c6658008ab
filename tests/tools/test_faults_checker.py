"""Tests of the checker, on which the evidence for the bridge's guarantee depends."""

import base64
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.protocol import subjects
from tools.faults.checker import Log, Verdict, check
from tools.faults.gap_analysis import REORDERING_SECONDS, Publication
from tools.faults.patterns import covers, matches
from tools.faults.payloads import Key, digest, frame_payload, key_of, payload
from tools.faults.permission_profiles import PermissionProfile

STEP_SECONDS = 0.001
EVERYTHING = PermissionProfile((">",))


class Story:
    """Messages of publishers and the log of one client, in the order of events."""

    def __init__(self, *patterns: str, profile: PermissionProfile = EVERYTHING, active: bool = True) -> None:
        self.now = 0.0
        self.log = Log("c", profile)
        self.publications: list[Publication] = []
        self.patterns: tuple[str, ...] = ()
        if patterns:
            self.subscribe(*patterns, active=active)

    def frame(self, kind: str, **rest: Any) -> None:
        self.now += STEP_SECONDS
        self.log.entries.append((self.now, {"type": kind, **rest}))

    def subscribe(self, *patterns: str, active: bool = True) -> None:
        self.patterns += patterns
        self.frame("reply", action="subscribe", success=True, subjects=list(patterns), active=active)

    def unsubscribe(self, pattern: str) -> None:
        self.patterns = tuple(each for each in self.patterns if each != pattern)
        self.frame("reply", action="unsubscribe", success=True, subjects=[pattern])

    def gap(self, *patterns: str, lost: int | None = None) -> None:
        self.frame("gap", subjects=list(patterns), lost=lost, reason="nats_reconnect")

    def publish(self, subject: str | None = "s", by: str = "a.0", *, confirmed: bool = True) -> Publication:
        """Publish a message that is lost."""
        self.now += STEP_SECONDS
        key = Key(by, sum(each.key.publisher == by for each in self.publications))
        made = Publication(key, subject, digest(payload(key)), self.now, self.now if confirmed else None)
        self.publications.append(made)
        return made

    def deliver(self, publication: Publication, pattern: str, **other: Any) -> None:
        assert publication.subject is not None
        shown = {} if pattern == publication.subject else {"pattern": pattern}
        fields = {"subject": publication.subject, **shown, **payload_fields(payload(publication.key)), **other}
        self.frame("message", **fields)

    def send(self, subject: str = "s", by: str = "a.0", *, confirmed: bool = True) -> Publication:
        """Publish a message, and deliver it."""
        publication = self.publish(subject, by, confirmed=confirmed)
        for pattern in self.patterns:
            if matches(pattern, subject):
                self.deliver(publication, pattern)
        return publication

    def verdict(self, *, complete: bool = True) -> Verdict:
        return check(self.publications, [replace(self.log, complete=complete)])


def payload_fields(data: bytes) -> dict[str, Any]:
    """Return the fields of a message frame for the payload."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"data": base64.b64encode(data).decode(), "encoding": "base64"}
    try:
        return {"data": json.loads(text)}
    except ValueError:
        return {"data": text, "encoding": "text"}


def counts(verdict: Verdict) -> dict[str, int]:
    """Return all counts that are not 0."""
    return {name: value for name, value in vars(verdict).items() if value and name != "notes"}


# Correct logs

stories = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(["s", "t", "u.v"]), st.sampled_from(["a.0", "b.0"])),
        st.tuples(st.just("lose"), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("flip"), st.sampled_from(["s", "u.*"]), st.just("")),
        st.tuples(st.just("wait"), st.floats(0, 3), st.just("")),
    ),
    max_size=30,
)


def correct_story(events: Iterable[tuple[Any, ...]]) -> Story:
    """Return a story without a violation."""
    story = Story("s", ">", "u.*")
    for kind, one, two in events:
        if kind == "send":
            story.send(one, two)
        elif kind == "lose":
            for _ in range(one):
                story.publish("s", "b.0")
            for pattern in {"s", ">"} & set(story.patterns):
                story.gap(pattern, lost=one if two else None)
        elif kind == "wait":
            story.now += one
        elif one in story.patterns:
            story.unsubscribe(one)
        else:
            story.subscribe(one)
    for by in ("a.0", "b.0"):
        for subject in ("s", "t", "u.v"):
            story.send(subject, by)
    return story


@given(stories)
def test_correct_log_has_no_violation(events: list[tuple[Any, ...]]) -> None:
    story = correct_story(events)
    verdict = story.verdict()
    assert (verdict.broken, verdict.notes) == (0, [])
    assert verdict.delivered == sum(frame["type"] == "message" for _, frame in story.log.entries)


# Damaged logs

sends = st.lists(
    st.tuples(st.sampled_from(["s", "t", "u.v"]), st.sampled_from(["a.0", "b.0"])), min_size=3, max_size=20
)


def delivered(events: Iterable[tuple[str, str]]) -> Story:
    story = Story("s", ">", "u.*")
    for subject, by in events:
        story.send(subject, by)
    return story


def places(story: Story) -> list[int]:
    return [place for place, (_, frame) in enumerate(story.log.entries) if frame["type"] == "message"]


@given(sends, st.data())
def test_dropped_message_counts_as_silently_lost(events: list[tuple[str, str]], data: st.DataObject) -> None:
    story = delivered(events)
    dropped = data.draw(st.sets(st.sampled_from(places(story)), min_size=1))
    story.log.entries = [entry for place, entry in enumerate(story.log.entries) if place not in dropped]
    verdict = story.verdict()
    assert verdict.lost == verdict.broken == len(dropped)


@given(sends, st.data())
def test_repeated_message_counts_as_duplicate(events: list[tuple[str, str]], data: st.DataObject) -> None:
    story = delivered(events)
    again = data.draw(st.sampled_from(places(story)))
    where = data.draw(st.integers(again + 1, len(story.log.entries)))
    story.log.entries.insert(where, story.log.entries[again])
    verdict = story.verdict()
    assert verdict.duplicate == verdict.broken == 1


@given(sends, st.data())
def test_late_message_counts_as_out_of_order(events: list[tuple[str, str]], data: st.DataObject) -> None:
    story = delivered([*events, ("s", "a.0"), ("s", "a.0")])
    late = data.draw(st.sampled_from(places(story)[:-1]))
    frame = story.log.entries[late][1]
    of_same = [
        place
        for place in places(story)
        if key_of_frame(story.log.entries[place][1]).publisher == key_of_frame(frame).publisher
        and key_of_frame(story.log.entries[place][1]).number > key_of_frame(frame).number
    ]
    if of_same:
        where = data.draw(st.integers(of_same[0], len(story.log.entries) - 1))
        story.log.entries.insert(where, story.log.entries.pop(late))
        verdict = story.verdict()
        assert verdict.out_of_order == verdict.broken == 1


def key_of_frame(frame: Any) -> Key:
    key = key_of(frame_payload(frame) or b"")
    assert key is not None
    return key


@given(sends, st.data())
def test_unpublished_message_counts_as_forbidden(events: list[tuple[str, str]], data: st.DataObject) -> None:
    story = delivered(events)
    where = data.draw(st.integers(1, len(story.log.entries)))
    stranger = {"type": "message", "subject": "s", "data": data.draw(st.sampled_from(["x", ["a.0", 99, ""], None]))}
    story.log.entries.insert(where, (story.now, stranger))
    verdict = story.verdict()
    assert verdict.forbidden == verdict.broken == 1


# The place of a gap


def test_gap_announces_messages_missing_around_it() -> None:
    story = Story("s")
    story.send()
    story.publish()
    story.gap("s")
    story.publish()
    story.send()
    assert counts(story.verdict()) == {"delivered": 2, "announced": 2}


@pytest.mark.parametrize("before", [True, False])
def test_gap_does_not_announce_message_missing_elsewhere(before: bool) -> None:
    story = Story("s")
    if before:
        story.gap("s")
    story.send()
    story.publish()
    story.send()
    if not before:
        story.gap("s")
    assert counts(story.verdict()) == {"delivered": 2, "lost": 1}


def test_gap_announces_missing_message_of_its_pattern_only() -> None:
    story = Story("s", ">")
    story.send()
    story.publish()
    story.gap(">")
    story.send()
    assert counts(story.verdict()) == {"delivered": 4, "announced": 1, "lost": 1}


def test_gap_at_end_of_log_announces_missing_message() -> None:
    story = Story("s")
    story.send()
    story.publish()
    story.gap("s")
    assert counts(story.verdict()) == {"delivered": 1, "announced": 1}


def test_message_missing_at_end_is_lost_unless_client_disconnected() -> None:
    story = Story("s")
    story.send()
    story.publish()
    assert counts(story.verdict()) == {"delivered": 1, "lost": 1}
    assert counts(story.verdict(complete=False)) == {"delivered": 1}


@pytest.mark.parametrize("late", [True, False])
def test_missing_last_message_is_located_by_other_publisher(late: bool) -> None:
    story = Story("s")
    story.send(by="a.0")
    story.publish(by="a.0")
    if not late:
        story.gap("s")
    story.now += REORDERING_SECONDS
    story.send(by="a.1")
    if late:
        story.gap("s")
    assert counts(story.verdict()) == {"delivered": 2, ("lost" if late else "announced"): 1}


@pytest.mark.parametrize("early", [True, False])
def test_missing_first_message_is_located_by_other_publisher(early: bool) -> None:
    story = Story("s")
    if early:
        story.gap("s")
    story.send(by="a.0")
    story.now += REORDERING_SECONDS
    if not early:
        story.gap("s")
    story.publish(by="a.1")
    story.send(by="a.1")
    assert counts(story.verdict()) == {"delivered": 2, ("lost" if early else "announced"): 1}


def test_slight_reordering_between_publishers_is_tolerated() -> None:
    story = Story("s")
    first = story.publish(by="a.0")
    second = story.publish(by="b.0")
    story.deliver(second, "s")
    story.gap("s")
    story.deliver(first, "s")
    assert counts(story.verdict()) == {"delivered": 2}


# The number of a gap


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ([3], {"announced": 3}),
        ([1, 2], {"announced": 3}),
        ([None], {"announced": 3}),
        ([1, None], {"announced": 3}),
        ([2], {"announced": 2, "lost": 1}),
        ([5], {"announced": 3, "overstated": 2}),
        ([2, 2], {"announced": 3, "overstated": 1}),
    ],
)
def test_gap_counts_are_checked_against_missing_messages(numbers: list[int | None], found: dict[str, int]) -> None:
    story = Story("s")
    for by in ("a.0", "b.0"):
        story.send(by=by)
    for by in ("a.0", "b.0", "a.0"):
        story.publish(by=by)
    for lost in numbers:
        story.gap("s", lost=lost)
    for by in ("a.0", "b.0"):
        story.send(by=by)
    assert counts(story.verdict()) == {"delivered": 4} | found


def test_gap_count_applies_only_to_its_place() -> None:
    story = Story("s")
    story.send()
    story.publish()
    story.gap("s", lost=2)
    story.send()
    story.publish()
    story.publish()
    story.gap("s", lost=1)
    story.send()
    assert counts(story.verdict()) == {"delivered": 3, "announced": 2, "lost": 1, "overstated": 1}


def test_gap_count_without_missing_message_is_overstated() -> None:
    story = Story("s")
    story.send()
    story.gap("s", lost=1)
    story.gap("s")
    story.send()
    assert counts(story.verdict()) == {"delivered": 2, "overstated": 1}


def test_unconfirmed_message_may_be_missing_or_counted_in_gap() -> None:
    story = Story("s")
    story.send()
    story.publish(confirmed=False)
    story.send(by="a.1", confirmed=False)
    assert counts(story.verdict()) == {"delivered": 2}
    story.gap("s", lost=1)
    assert counts(story.verdict()) == {"delivered": 2}


# The beginning and the end of a subscription


def test_message_may_be_missing_before_subscription_is_active() -> None:
    story = Story("s", active=False)
    story.publish()
    story.frame("status", nats="connected")
    story.send()
    assert counts(story.verdict()) == {"delivered": 1}
    story.publish()
    assert counts(story.verdict()) == {"delivered": 1, "lost": 1}


def test_later_reply_activates_subscription() -> None:
    story = Story("s", active=False)
    story.subscribe("s")
    story.publish()
    assert counts(story.verdict()) == {"lost": 1}


@pytest.mark.parametrize("by_bridge", [True, False])
def test_message_after_end_of_subscription_is_forbidden(by_bridge: bool) -> None:
    story = Story("s")
    story.send()
    if by_bridge:
        story.frame("unsubscribed", subjects=["s"], code="nats.refused", message="")
    else:
        story.frame("reply", action="unsubscribe", success=True, subjects=["s"])
    story.send()
    assert counts(story.verdict()) == {"delivered": 1, "forbidden": 1}


def test_message_in_transit_at_unsubscribe_may_be_missing() -> None:
    story = Story("s")
    story.publish()
    story.send()
    story.publish()
    story.unsubscribe("s")
    assert counts(story.verdict()) == {"delivered": 1, "lost": 1}


def test_rejected_command_changes_nothing() -> None:
    story = Story("s")
    for action in ("subscribe", "unsubscribe"):
        story.frame("reply", action=action, success=False, subjects=["s", "t"], code="subject.forbidden")
    story.send()
    assert counts(story.verdict()) == {"delivered": 1}


def test_message_repeated_after_resubscribe_counts_as_duplicate() -> None:
    story = Story("s")
    sent = story.send()
    story.unsubscribe("s")
    story.subscribe("s")
    story.deliver(sent, "s")
    assert counts(story.verdict()) == {"delivered": 1, "duplicate": 1}


# Commands by POST, whose replies are not in the stream


def post(story: Story, action: str, pattern: str, **answer: Any) -> None:
    """Send a command, with an answer if one is given."""
    story.frame("sent", action=action, subjects=[pattern])
    if answer:
        story.frame("answer", action=action, subjects=[pattern], **{"success": True, "active": True} | answer)


def test_messages_are_optional_before_answer_and_required_after_it() -> None:
    story = Story()
    post(story, "subscribe", "s")
    story.publish()
    story.deliver(story.publish(), "s")
    post(story, "subscribe", "s", success=True)
    story.publish()
    story.deliver(story.publish(), "s")
    assert counts(story.verdict()) == {"delivered": 2, "lost": 1}


def test_nats_reconnect_does_not_replace_answer_to_subscribe() -> None:
    story = Story()
    post(story, "subscribe", "s")
    story.frame("status", nats="connected")
    story.publish()
    post(story, "subscribe", "s", active=False)
    story.publish()
    story.frame("status", nats="connected")
    story.publish()
    assert counts(story.verdict()) == {"lost": 1}


def test_repeated_subscribe_does_not_end_subscription() -> None:
    story = Story("s")
    post(story, "subscribe", "s")
    story.publish()
    post(story, "subscribe", "s", success=False)
    story.publish()
    assert counts(story.verdict()) == {"lost": 2}


def test_message_after_rejected_subscribe_is_forbidden() -> None:
    story = Story()
    post(story, "subscribe", "s", success=False)
    story.deliver(story.publish(), "s")
    assert counts(story.verdict()) == {"forbidden": 1}


def test_only_earlier_messages_may_follow_answer_to_unsubscribe() -> None:
    story = Story("s")
    story.frame("sent", action="unsubscribe", subjects=["s"])
    early = story.publish()
    story.frame("answer", action="unsubscribe", subjects=["s"], success=True)
    story.deliver(early, "s")
    story.gap("s")
    assert counts(story.verdict()) == {"delivered": 1}
    story.deliver(early, "s")
    story.deliver(story.publish(), "s")
    assert counts(story.verdict()) == {"delivered": 1, "duplicate": 1, "forbidden": 1}


def test_message_missing_before_late_message_is_lost() -> None:
    story = Story("s")
    story.publish()
    late = story.publish()
    post(story, "unsubscribe", "s", success=True)
    story.deliver(late, "s")
    assert counts(story.verdict()) == {"delivered": 1, "lost": 1}


def test_message_may_be_missing_while_subscription_propagates() -> None:
    story = Story("s")
    active = story.now
    story.publish()
    story.now += 1.0
    story.publish()
    story.log.propagations = [(active - 2, active + 2), (active, active + 0.5), (active + 0.7, active + 0.9)]
    assert counts(story.verdict()) == {"lost": 1}
    story.log.propagations = [(active - 2, active + 2)]
    assert counts(story.verdict()) == {}


# Copies, order, content


def test_each_matching_pattern_must_deliver_one_copy() -> None:
    story = Story("s", "*", ">")
    story.send()
    lost = story.publish()
    story.deliver(lost, "*")
    story.send()
    assert counts(story.verdict()) == {"delivered": 7, "lost": 2}


def test_order_is_checked_per_publisher_across_patterns() -> None:
    story = Story("s", "t")
    first, second, other = story.publish("s"), story.publish("t"), story.publish("s", "b.0")
    for each in (other, second, first):
        story.deliver(each, each.subject or "")
    assert counts(story.verdict()) == {"delivered": 2, "out_of_order": 1}


@pytest.mark.parametrize("changed", [{"data": "a.0 1 changed"}, {"encoding": "odd"}, {"encoding": "base64"}])
def test_changed_payload_is_forbidden(changed: dict[str, str]) -> None:
    story = Story("s")
    story.send()
    text = story.publish()
    story.deliver(text, "s", **changed)
    assert counts(story.verdict()) == {"delivered": 1, "forbidden": 1, "lost": 1}


def test_payload_on_wrong_subject_is_forbidden() -> None:
    story = Story(">")
    story.deliver(story.publish("s"), ">", subject="t")
    assert counts(story.verdict()) == {"forbidden": 1, "lost": 1}


def test_subscription_beyond_permissions_is_forbidden() -> None:
    story = Story("s.*", profile=PermissionProfile(("s.a", "t")))
    assert counts(story.verdict()) == {"forbidden": 1}
    story.send("s.a")
    story.send("s.b")
    assert counts(story.verdict()) == {"delivered": 1, "forbidden": 2, "lost": 1}


def test_denied_messages_must_be_skipped() -> None:
    story = Story("s.*", profile=PermissionProfile(("s.*",), denied=("s.b",)))
    story.send("s.a")
    story.publish("s.b")
    assert counts(story.verdict()) == {"delivered": 1}
    story.send("s.b")
    story.subscribe("s.b")
    assert counts(story.verdict()) == {"delivered": 1, "forbidden": 2}


def test_aliased_subject_is_expected_under_its_alias() -> None:
    story = Story("me.>", profile=PermissionProfile(("me.>",), aliases=(("users.7.", "me."),)))
    story.deliver(story.publish("users.7.a"), "me.>", subject="me.a")
    story.publish("users.7.b")
    story.publish("users.8.a")
    assert counts(story.verdict()) == {"delivered": 1, "lost": 1}


@pytest.mark.parametrize("shown", ["users.7.a", "me.b", "users.8.a"])
def test_wrong_name_of_aliased_subject_is_forbidden(shown: str) -> None:
    story = Story("me.>", profile=PermissionProfile(("me.>",), aliases=(("users.7.", "me."),)))
    story.deliver(story.publish("users.7.a"), "me.>", subject=shown)
    assert counts(story.verdict()) == {"forbidden": 1, "lost": 1}


def test_message_that_pattern_does_not_match_is_forbidden() -> None:
    story = Story("s.*")
    story.deliver(story.publish("t"), "s.*")
    story.deliver(story.publish("s.a"), "t.*")
    assert counts(story.verdict()) == {"forbidden": 2, "lost": 1}


def test_frame_for_pattern_without_subscription_is_forbidden() -> None:
    story = Story("s")
    story.gap("t")
    story.frame("unsubscribed", subjects=["t"], code="nats.refused", message="")
    assert counts(story.verdict()) == {"forbidden": 2}


def test_message_on_non_utf8_subject_is_not_expected() -> None:
    story = Story(">")
    story.publish(None)
    story.send()
    assert counts(story.verdict()) == {"delivered": 1}


def test_only_first_20_violations_are_described() -> None:
    story = Story("s")
    for _ in range(100):
        story.publish()
    verdict = story.verdict()
    assert (verdict.lost, len(verdict.notes)) == (100, 20)
    assert verdict.notes[0] == "c: silently lost by 's': number 0 of a.0 on 's'"


# Subjects and payloads

tokens = st.lists(st.sampled_from(["a", "b", "$c", "_d"]), min_size=1, max_size=4)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    drawn = draw(st.lists(st.sampled_from(["a", "b", "$c", "_d", "*"]), max_size=3))
    return ".".join([*drawn, draw(st.sampled_from(["a", "*", ">"]))])


@given(patterns(), tokens.map(".".join))
def test_checker_and_bridge_agree_on_matching_subjects(pattern: str, subject: str) -> None:
    assert matches(pattern, subject) == subjects.matches(pattern, subject)


@given(patterns(), patterns())
def test_checker_and_bridge_agree_on_covered_patterns(allowed: str, pattern: str) -> None:
    assert covers(allowed, pattern) == subjects.covers(allowed, pattern)


def test_subject_with_empty_token_matches_no_pattern() -> None:
    assert not matches(">", "a..b")


@given(st.integers(0, 5), st.binary(max_size=20))
def test_every_kind_of_payload_contains_message_key(number: int, filler: bytes) -> None:
    data = payload(Key("a.0", number), filler)
    assert frame_payload(payload_fields(data)) == data
    assert key_of(data) == Key("a.0", number)


def test_empty_payload_has_no_key() -> None:
    assert frame_payload({"data": None}) == b""
    assert key_of(b"") is None
