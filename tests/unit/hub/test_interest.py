import pytest

from sanic_nats_bridge.hub.interest import Interest, State
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


def test_new_interest_is_disconnected_and_unused() -> None:
    interest = Interest("orders")
    assert interest.state is State.DISCONNECTED
    assert (interest.sid, interest.claims, interest.unsubscribe_timer, interest.views) == (None, 0, None, {})
