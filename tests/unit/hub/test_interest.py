from collections.abc import Callable

import pytest

from sanic_nats_bridge.hub.interest import Interest, State
from sanic_nats_bridge.protocol import subjects
from tests.support.fakes import FakeSubscriber, granted


@pytest.mark.parametrize(
    ("pattern", "matches_reserved", "head"),
    [
        ("$orders.new", True, b'{"type":"message","subject":"$orders.new"'),
        ("$orders.*", True, b'{"type":"message","pattern":"$orders.*","subject":"a"'),
        ("*.new", False, b'{"type":"message","pattern":"*.new","subject":"a"'),
        (">", False, b'{"type":"message","pattern":">","subject":"a"'),
        ('say."hi"', False, b'{"type":"message","subject":"say.\\"hi\\""'),
        ('"hi".*', False, b'{"type":"message","pattern":"\\"hi\\".*","subject":"a"'),
        ("$KV.>", True, b'{"type":"message","pattern":"$KV.>","subject":"a"'),
    ],
)
def test_pattern_determines_frame_head_and_match_of_reserved_subjects(
    pattern: str, matches_reserved: bool, head: bytes
) -> None:
    interest = Interest(pattern)
    view = interest.add(FakeSubscriber(), *granted(pattern))
    assert view.prefix.head("a") == head
    reserved = [b"$orders.new", b"$KV.a.b"]
    assert any(map(interest.matches, reserved)) is matches_reserved


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("orders.new", [b"orders.new"], [b"orders.ne", b"orders.new.x", b"orders"]),
        ("orders.*", [b"orders.new", b"orders.*"], [b"orders", b"orders.a.b"]),
        ("orders.>", [b"orders.a", b"orders.a.b"], [b"orders", b"orders.", b"other.a"]),
        (">", [b"a", b"a.b"], [b"$SYS.a", b"_INBOX.a", b""]),
    ],
)
def test_subjects_are_matched_alike_before_and_after_compiling(
    pattern: str, matched: list[bytes], others: list[bytes]
) -> None:
    interest = Interest(pattern)
    for _ in range(30):
        assert all(map(interest.matches, matched))
        assert not any(map(interest.matches, others))
    assert "matches" in vars(interest)


def test_interest_that_sees_few_subjects_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def encoded_matcher(pattern: str) -> Callable[[bytes], object]:
        compiled.append(pattern)
        return bool

    monkeypatch.setattr(subjects, "encoded_matcher", encoded_matcher)
    interest = Interest("orders.*")
    for number in range(100):
        assert interest.matches(b"orders.%d" % number)
        assert len(compiled) == (number >= 15)


def test_new_interest_is_disconnected_and_unused() -> None:
    interest = Interest("orders")
    assert interest.state is State.DISCONNECTED
    assert (interest.sid, interest.claims, interest.unsubscribe_timer, interest.views) == (None, 0, None, {})
