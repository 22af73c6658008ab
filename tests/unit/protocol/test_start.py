import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanic_nats_bridge.errors import InvalidCommand, UnsupportedCommand, UnsupportedQuery
from sanic_nats_bridge.protocol.messages import (
    Command,
    check_websocket_query,
    decode_command,
    encode,
    query_command,
    query_has_start,
)
from sanic_nats_bridge.protocol.start import (
    MAX_ID_CHARACTERS,
    From,
    Last,
    Start,
    possible_id,
    read_after,
    read_from,
)

NEWEST = "k3f9x2.m2k.sz3k1x"
DEEP = b"[" * 20_000 + b"]" * 20_000  # deeper than the decoder follows on any Python


@pytest.mark.parametrize(
    ("value", "start"),
    [
        ("new", Start("new")),
        ("all", Start("all")),
        ("last_per_subject", Start("last_per_subject")),
        ({"last": 1}, Start("last", 1)),
        ({"last": 10}, Start("last", 10)),
        ({"last": 2**70}, Start("last", 2**70)),
    ],
)
def test_start_is_read_from_json_and_encoded_like_it(value: Any, start: Start) -> None:
    read = read_from(json.dumps(value, indent=1).encode())
    assert Start.of(read) == start
    assert json.loads(encode(read)) == value
    assert read_from(json.dumps(value)) == read  # in a query


@pytest.mark.parametrize("name", ["new", "all", "last_per_subject"])
def test_name_needs_no_quotes_in_query_only(name: str) -> None:
    assert read_from(name) == name
    with pytest.raises(InvalidCommand):
        read_from(name.encode())


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b'""',
        b'"New"',
        b'"last"',
        b'"oldest"',
        b'" new"',
        b"null",
        b"true",
        b"false",
        b"0",
        b"1",
        b"1.5",
        b"[]",
        b'["new"]',
        b"{}",
        b'{"last":0}',
        b'{"last":-1}',
        b'{"last":1.5}',
        b'{"last":true}',
        b'{"last":null}',
        b'{"last":"10"}',
        b'{"last":{}}',
        b'{"last":%b}' % (b"9" * 5_000),
        b'{"Last":1}',
        b'{"last":1,"more":2}',
        b'{"first":1}',
        b'{"last":1}{"last":1}',
        b'"new',
        b'"\xff"',
        b'"\\ud800"',
        DEEP,
        b'{"last":%b}' % DEEP,
    ],
    ids=lambda document: ascii(document[:20]),
)
@pytest.mark.parametrize("in_query", [False, True])
def test_other_start_is_rejected_with_one_line_of_help(document: bytes, in_query: bool) -> None:
    with pytest.raises(InvalidCommand) as raised:
        read_from(document.decode("utf-8", "surrogateescape") if in_query else document)
    assert raised.value.message == (
        "Not a valid command: 'from' must be 'new', 'all', 'last_per_subject' or an object with the number 'last'"
    )


@pytest.mark.parametrize(
    "document",
    [b"null", b"true", b"1", b"{}", b"[]", b'["a"]', b'"a', b'"\xff"', b'"\\ud800"', b"", DEEP],
    ids=lambda document: ascii(document[:20]),
)
def test_after_other_than_string_is_rejected(document: bytes) -> None:
    with pytest.raises(InvalidCommand, match=r"^Not a valid command: 'after' must be a string$"):
        read_after(document)


@given(st.text(max_size=200))
@example("k3f9x2.m2k.sz3k1x")
@example("a" * MAX_ID_CHARACTERS)
@example("a" * (MAX_ID_CHARACTERS + 1))
@example("a\n")
@example("a\nevent: close")
@example("\u0661")
@example("")
def test_only_strings_that_may_be_ids_are_kept(text: str) -> None:
    allowed = all(character.isascii() and (character.isalnum() or character in "._~-") for character in text)
    kept = text if allowed and len(text) <= 128 else ""
    assert possible_id(text) == kept
    assert read_after(json.dumps(text).encode()) == kept


@given(st.integers(min_value=1))
def test_number_of_last_messages_survives_encoding(number: int) -> None:
    value: From = Last(number)
    assert read_from(msgspec.json.encode(value)) == value
    assert Start.of(value) == Start("last", number)


# Commands


@pytest.mark.parametrize(
    ("fields", "command", "start"),
    [
        ({}, {}, None),
        ({"from": "new"}, {"from_": "new"}, Start("new")),
        ({"from": "all"}, {"from_": "all"}, Start("all")),
        ({"from": "last_per_subject"}, {"from_": "last_per_subject"}, Start("last_per_subject")),
        ({"from": {"last": 10}}, {"from_": Last(10)}, Start("last", 10)),
        ({"after": NEWEST}, {"after": NEWEST}, Start("new")),
        ({"after": NEWEST, "from": "all"}, {"after": NEWEST, "from_": "all"}, Start("all")),
        ({"after": "not an id\n"}, {"after": ""}, Start("new")),
        ({"after": "x" * 200}, {"after": ""}, Start("new")),
    ],
)
def test_start_of_command_is_decoded_if_server_has_history(
    fields: dict[str, Any], command: dict[str, Any], start: Start | None
) -> None:
    decoded = decode_command(json.dumps({"subjects": ["a"]} | fields).encode(), history=True)
    assert decoded == Command(action="subscribe", subjects=["a"], **command)
    assert decoded.start == start
    # As another worker gets it.
    assert decode_command(encode(decoded), history=True) == decoded


@pytest.mark.parametrize(
    "fields",
    [
        {"from": None},
        {"from": True},
        {"from": "oldest"},
        {"from": {"last": 0}},
        {"from": {"last": 1, "more": 2}},
        {"after": None},
        {"after": 7},
        {"after": {"id": NEWEST}},
        {"after": NEWEST, "from": 1},
        {"after": 1, "from": "new"},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("action", ["subscribe", "unsubscribe", "ping"])
def test_invalid_start_is_rejected_in_every_command(action: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommand, match=r"^Not a valid command: '(from|after)' must be "):
        decode_command(json.dumps({"action": action, "subjects": ["a"]} | fields).encode(), history=True)


@pytest.mark.parametrize("action", ["unsubscribe", "ping"])
def test_start_of_other_command_than_subscribe_is_ignored(action: str) -> None:
    data = json.dumps({"action": action, "subjects": ["a"], "after": NEWEST, "from": "all"}).encode()
    assert decode_command(data, history=True) == Command(action=action, subjects=["a"])


def test_reserved_action_is_unsupported_with_any_start() -> None:
    with pytest.raises(UnsupportedCommand, match="'publish'"):
        decode_command(json.dumps({"action": "publish", "from": 1}).encode(), history=True)


# Queries


@pytest.mark.parametrize(
    ("query", "last_event_id", "command"),
    [
        ({}, None, {}),
        ({}, NEWEST, {}),
        ({"from": ["new"]}, None, {"from_": "new"}),
        ({"from": ['"all"']}, None, {"from_": "all"}),
        ({"from": ['{"last": 10}']}, None, {"from_": Last(10)}),
        ({"after": ["a.b.c"]}, None, {"after": "a.b.c"}),
        ({"after": ["a.b.c"]}, NEWEST, {"after": NEWEST}),
        ({"from": ["all"]}, NEWEST, {"from_": "all", "after": NEWEST}),
        ({"from": ["all"], "after": ["a.b.c"]}, NEWEST, {"from_": "all", "after": NEWEST}),
        ({"after": ["a.b.c"]}, "", {"after": "a.b.c"}),
        ({"from": ["all"]}, "", {"from_": "all"}),
        ({"from": ["new"]}, "of another\xa0server", {"from_": "new", "after": ""}),
        ({"after": [""]}, None, {"after": ""}),
    ],
)
def test_start_in_query_is_that_of_the_command(
    query: dict[str, list[str]], last_event_id: str | None, command: dict[str, Any]
) -> None:
    assert query_has_start(query) == bool(command)
    subscribe = Command(action="subscribe", subjects=["a", "b.>"], **command)
    assert query_command({"subjects": ["a", "b.>"]} | query, last_event_id, history=True) == subscribe
    assert query_command(query, last_event_id, history=True) is None


@pytest.mark.parametrize("query", [{"from": ["new"]}, {"after": [NEWEST]}, {"from": ["oldest"]}], ids=str)
def test_start_in_query_is_unsupported_without_history_and_on_websocket(query: dict[str, list[str]]) -> None:
    with pytest.raises(UnsupportedQuery, match=r"^Not supported here: 'from' and 'after'$"):
        query_command({"subjects": ["a"]} | query, NEWEST)
    with pytest.raises(UnsupportedQuery, match=r"^Not supported here: 'from' and 'after'$"):
        check_websocket_query(query)


def test_last_event_id_is_ignored_without_history() -> None:
    assert query_command({"subjects": ["a"]}, NEWEST) == Command(action="subscribe", subjects=["a"])


@pytest.mark.parametrize("query", [{"from": ["new", "new"]}, {"after": ["a", "b"], "from": ["new"]}], ids=str)
def test_repeated_start_in_query_is_unsupported(query: dict[str, list[str]]) -> None:
    with pytest.raises(UnsupportedQuery, match=r"^'from' and 'after' must not be repeated in the query$"):
        query_command({"subjects": ["a"]} | query, history=True)


@pytest.mark.parametrize("value", ["", "oldest", "NEW", "{}", '{"last":0}', '{"last":true}', "null", "10"])
@pytest.mark.parametrize("subjects", [{"subjects": ["a"]}, {}])
def test_invalid_start_in_query_is_rejected(value: str, subjects: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidCommand, match=r"^Not a valid command: 'from' must be "):
        query_command({"from": [value]} | subjects, history=True)
