import pytest

from sanic_nats_bridge.interest import Interest, State


@pytest.mark.parametrize(
    ("pattern", "wildcard", "shuns_reserved", "head"),
    [
        ("orders.new", False, False, b'{"type":"message"'),
        ("orders.*", True, False, b'{"type":"message","pattern":"orders.*"'),
        ("*.new", True, True, b'{"type":"message","pattern":"*.new"'),
        (">", True, True, b'{"type":"message","pattern":">"'),
        ('say."hi"', False, False, b'{"type":"message"'),
        ('"hi".*', True, False, b'{"type":"message","pattern":"\\"hi\\".*"'),
        ("$KV.>", True, False, b'{"type":"message","pattern":"$KV.>"'),
    ],
)
def test_what_a_pattern_says_of_its_messages(pattern: str, wildcard: bool, shuns_reserved: bool, head: bytes) -> None:
    interest = Interest(pattern)
    assert (interest.wildcard, interest.shuns_reserved, interest.head) == (wildcard, shuns_reserved, head)


def test_a_new_interest_is_nobodys_and_unknown_to_nats() -> None:
    interest = Interest("orders")
    assert interest.state is State.AWAY
    assert (interest.sid, interest.claims, interest.linger, interest.subscribers) == (None, 0, None, {})
