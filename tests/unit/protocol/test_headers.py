import re
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanic_nats_bridge.protocol.headers import (
    Header,
    author,
    header_block,
    is_header_name,
    is_header_value,
    is_reserved_header,
)

tokens = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}", fullmatch=True)
values = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=40)
anything = st.text(st.characters(codec="utf-8"), max_size=40)


def lines_of(block: bytes) -> list[Header]:
    """Return the headers of a block as a reader of NATS sees them: everything between two line ends is one line."""
    assert block.startswith(b"NATS/1.0\r\n")
    assert block.endswith(b"\r\n\r\n")
    lines = re.split(rb"\r\n|\r|\n", block)[1:-2]
    return [(name.decode(), value.decode()) for name, _, value in (line.partition(b": ") for line in lines)]


@pytest.mark.parametrize("name", ["Trace", "x", "A-b_c.d~1", "!#$%&'*+.^_`|~", "x" * 64])
def test_token_of_at_most_64_characters_is_a_name(name: str) -> None:
    assert is_header_name(name)


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "a:", ":", "a\r\n", "a\n", "a\r", "\na", "a\0", "a\t", "größe", "a;", "a\u2028", "(a)", "x" * 65],
)
def test_other_string_is_not_a_name(name: str) -> None:
    assert not is_header_name(name)
    with pytest.raises(ValueError, match="token"):
        header_block([(name, "x")])


@pytest.mark.parametrize("value", ["\r", "\n", "\0", "a\r\nNats-Msg-Id: 1", "a\r\n\r\nPUB x 0\r\n", "\na", "a\n"])
def test_value_with_line_end_is_rejected(value: str) -> None:
    assert not is_header_value(value)
    with pytest.raises(ValueError, match="without CR, LF and NUL"):
        header_block([("A", value)])


@pytest.mark.parametrize("name", ["Nats-Msg-Id", "nats-ttl", "NATS-", "Nats-Expected-Stream", "Status", "DESCRIPTION"])
def test_header_of_nats_is_reserved(name: str) -> None:
    assert is_reserved_header(name)


@pytest.mark.parametrize("name", ["Nats", "NatsX", "X-Nats-Msg-Id", "Statuses", "Trace"])
def test_other_header_is_not_reserved(name: str) -> None:
    assert not is_reserved_header(name)


def test_message_without_headers_has_no_block() -> None:
    assert header_block([]) == b""


def test_block_has_a_line_for_each_value() -> None:
    assert header_block([("A", "x"), ("A", ""), ("B", "größe : y")]) == (
        "NATS/1.0\r\nA: x\r\nA: \r\nB: größe : y\r\n\r\n".encode()
    )


@given(st.lists(st.tuples(tokens, values), min_size=1, max_size=8))
def test_reader_of_block_sees_exactly_these_headers(headers: list[Header]) -> None:
    assert lines_of(header_block(headers)) == headers


@given(st.lists(st.tuples(anything, anything), min_size=1, max_size=4))
@example([("A", "x\r\nB: y")])
@example([("A: x\r\nB", "y")])
@example([("A", "x\x0bB: y")])
@example([("A", "x\x85B: y\u2028C: z")])
def test_no_string_adds_a_line(headers: list[Header]) -> None:
    try:
        block = header_block(headers)
    except ValueError:
        assert not all(is_header_name(name) and is_header_value(value) for name, value in headers)
    else:
        assert lines_of(block) == headers


@given(st.text(st.characters(codec="utf-8"), min_size=1))
@example("ada\r\nNats-Msg-Id: 1")
@example("größe %20+")
@example("\0")
def test_author_is_unreserved_ascii_and_decodes_to_identity(identity: str) -> None:
    encoded = author(identity)
    assert re.fullmatch(r"(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+", encoded)
    assert unquote(encoded) == identity


def test_plain_identity_is_its_own_author() -> None:
    assert author("auth0-user_7.a~b") == "auth0-user_7.a~b"
    assert author("ada@example.com") == "ada%40example.com"
