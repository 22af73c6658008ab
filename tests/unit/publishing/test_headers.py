from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.protocol.headers import header_block
from sanic_nats_bridge.publishing.headers import header_values


def test_values_of_a_name_are_read_in_order() -> None:
    block = header_block([("Trace", "x"), ("trace", "ü y"), ("Trace", ""), ("Url", "a:b")])
    assert header_values(block) == {"Trace": ["x", ""], "trace": ["ü y"], "Url": ["a:b"]}
    assert header_values(b"") == {}


@given(st.binary() | st.binary().map(lambda rest: b"NATS/1.0\r\n" + rest))
def test_values_of_any_block_are_read(block: bytes) -> None:
    assert all(isinstance(value, str) for values in header_values(block).values() for value in values)


def test_number_of_lines_is_bounded() -> None:
    assert len(header_values(b"NATS/1.0\r\n" + b"A: 1\r\n" * 1000)["A"]) == 255
