import pytest

from sanic_nats_bridge.hub.interest import Interest, State
from tests.support.fakes import FakeSubscriber, granted


@pytest.mark.parametrize(
    ("pattern", "excludes_reserved", "head"),
    [
        ("orders.new", False, b'{"type":"message","subject":"orders.new"'),
        ("orders.*", False, b'{"type":"message","pattern":"orders.*","subject":"a"'),
        ("*.new", True, b'{"type":"message","pattern":"*.new","subject":"a"'),
        (">", True, b'{"type":"message","pattern":">","subject":"a"'),
        ('say."hi"', False, b'{"type":"message","subject":"say.\\"hi\\""'),
        ('"hi".*', False, b'{"type":"message","pattern":"\\"hi\\".*","subject":"a"'),
        ("$KV.>", False, b'{"type":"message","pattern":"$KV.>","subject":"a"'),
    ],
)
def test_pattern_determines_frame_head_and_reserved_exclusion(
    pattern: str, excludes_reserved: bool, head: bytes
) -> None:
    interest = Interest(pattern)
    view = interest.add(FakeSubscriber(), *granted(pattern))
    assert (interest.excludes_reserved, view.prefix.head("a")) == (excludes_reserved, head)


def test_new_interest_is_disconnected_and_unused() -> None:
    interest = Interest("orders")
    assert interest.state is State.DISCONNECTED
    assert (interest.sid, interest.claims, interest.unsubscribe_timer, interest.views) == (None, 0, None, {})
