import base64
import json
from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from sanic_nats_bridge.errors import InvalidCommand, UnsupportedCommand
from sanic_nats_bridge.protocol.headers import header_block
from sanic_nats_bridge.protocol.messages import Action, Command, decode_command
from sanic_nats_bridge.protocol.publish import PublishAction, PublishCommand, decode_publish, message_id

DEEP = b"[" * 20_000 + b"]" * 20_000  # deeper than the decoder follows on any Python
ACTIONS: tuple[PublishAction, ...] = ("publish", "request")
PATHS: tuple[Action | None, ...] = (None, "subscribe", "unsubscribe")
ID = "f2c9a1b7e4d05c8836aa1e"

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(codec="utf-8")),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=4),
    ),
    max_leaves=8,
)


def dumped(**fields: Any) -> bytes:
    return json.dumps({"subject": "a"} | fields).encode()


def rejected(data: bytes, action: PublishAction = "publish", **options: Any) -> str:
    with pytest.raises(InvalidCommand, match=r"^Not a valid command: ") as refused:
        decode_publish(data, action, **options)
    return refused.value.message.removeprefix("Not a valid command: ")


def test_publish_is_decoded() -> None:
    data = dumped(
        action="publish", id="5", subject="rooms.7.say", data={"text": "hi"}, headers={"Trace": ["x", "y"]}, ack=True,
        msg_id=ID, session="ignored", later=[1],
    )  # fmt: skip
    assert decode_publish(data, "publish") == PublishCommand(
        action="publish",
        subject="rooms.7.say",
        payload=b'{"text": "hi"}',
        encoding="json",
        headers=(("Trace", "x"), ("Trace", "y")),
        id="5",
        ack=True,
        msg_id=ID,
    )


def test_request_is_decoded() -> None:
    data = dumped(action="request", id=6, subject="svc.price", data={"sku": 7}, timeout=2)
    assert decode_publish(data, "request", needs_id=True) == PublishCommand(
        action="request", subject="svc.price", payload=b'{"sku": 7}', encoding="json", id=6, timeout=2.0
    )


def test_only_subject_is_required() -> None:
    for action in ACTIONS:
        assert decode_publish(b'{"subject":"a"}', action) == PublishCommand(action=action, subject="a", payload=b"")


@pytest.mark.parametrize("subject", ["", "a.*", "a b", "größe", "$JS.API.x"])
def test_subject_of_any_text_is_left_to_the_policy(subject: str) -> None:
    assert decode_publish(dumped(subject=subject), "publish").subject == subject


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subject": None}, "Expected `str`, got `null`"),
        ({"subject": ["a"]}, "Expected `str`, got `array`"),
        ({"action": "request"}, "the action is not 'publish'"),
        ({"action": "subscribe"}, "the action is not 'publish'"),
        ({"action": 5}, "Expected `str`"),
        ({"id": 1.5}, "Expected `int | str`"),
        ({"id": None}, "Expected `int | str`"),
        ({"ack": 1}, "Expected `bool`"),
        ({"ack": "true"}, "Expected `bool`"),
        ({"ack": None}, "Expected `bool`"),
        ({"encoding": "json"}, "Invalid enum value 'json'"),
        ({"encoding": ""}, "Invalid enum value ''"),
        ({"encoding": None}, "Expected `str`"),
        ({"timeout": "2"}, "Expected `float`"),
        ({"timeout": None}, "Expected `float`"),
        ({"timeout": True}, "Expected `float`"),
        ({"timeout": 0}, "'timeout' must be a number of seconds above 0"),
        ({"timeout": -0.0}, "'timeout' must be a number of seconds above 0"),
        ({"timeout": -1}, "'timeout' must be a number of seconds above 0"),
        ({"ack": True, "msg_id": 7}, "Expected `str`"),
        ({"ack": True, "msg_id": ""}, "'msg_id' must be 1 to 64 letters, digits and any of . _ ~ -"),
        ({"ack": True, "msg_id": "x" * 65}, "'msg_id' must be"),
        ({"ack": True, "msg_id": "a b"}, "'msg_id' must be"),
        ({"ack": True, "msg_id": "a\n"}, "'msg_id' must be"),
        ({"ack": True, "msg_id": "größe"}, "'msg_id' must be"),
        ({"msg_id": "1"}, "'msg_id' requires 'ack'"),
        ({"ack": False, "msg_id": "1"}, "'msg_id' requires 'ack'"),
        ({"headers": []}, "Expected `object`"),
        ({"headers": None}, "Expected `object`"),
        ({"headers": {"A": "x"}}, "Expected `array`"),
        ({"headers": {"A": [1]}}, "Expected `str`"),
        ({"headers": {"A": []}}, "a header must have at least one value"),
        ({"headers": {"": ["x"]}}, "the name of a header must be"),
        ({"headers": {"A b": ["x"]}}, "the name of a header must be"),
        ({"headers": {"A:": ["x"]}}, "the name of a header must be"),
        ({"headers": {"A\r\nB": ["x"]}}, "the name of a header must be"),
        ({"headers": {"A\n": ["x"]}}, "the name of a header must be"),
        ({"headers": {"größe": ["x"]}}, "the name of a header must be"),
        ({"headers": {"x" * 65: ["x"]}}, "the name of a header must be"),
        ({"headers": {"A": ["x\r\nNats-Msg-Id: 1"]}}, "a header value must not have CR, LF and NUL"),
        ({"headers": {"A": ["x\r"]}}, "a header value must not have CR, LF and NUL"),
        ({"headers": {"A": ["x\n"]}}, "a header value must not have CR, LF and NUL"),
        ({"headers": {"A": ["x", "\0"]}}, "a header value must not have CR, LF and NUL"),
        ({"headers": {"A": ["x" * 1025]}}, "a header value must be at most 1024 bytes"),
        ({"headers": {"A": ["ä" * 513]}}, "a header value must be at most 1024 bytes"),
        ({"headers": {"A": ["x"] * 17}}, "at most 16 header values"),
        ({"headers": {f"A{number}": ["x"] for number in range(17)}}, "at most 16 header values"),
        ({"headers": {"A": ["x"] * 9, "B": ["x"] * 8}}, "at most 16 header values"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value!a:.50}",
)
def test_wrong_field_is_rejected(fields: dict[str, Any], message: str) -> None:
    assert rejected(dumped(**fields)).startswith(message)


def test_limits_of_headers_are_inclusive() -> None:
    headers = {"x" * 64: ["y" * 1024], "A": ["ä" * 512] * 15}
    assert len(decode_publish(dumped(headers=headers), "publish").headers) == 16
    assert decode_publish(dumped(ack=True, msg_id="x" * 64), "publish").msg_id == "x" * 64


def test_request_needs_id_on_websocket_only() -> None:
    assert rejected(dumped(), "request", needs_id=True) == "a request must have an 'id'"
    assert decode_publish(dumped(), "request").id is UNSET
    assert decode_publish(dumped(), "publish", needs_id=True).id is UNSET


def test_missing_subject_is_rejected() -> None:
    assert rejected(b'{"data":1}') == "'subject' is missing"


def test_fields_of_the_other_action_are_ignored() -> None:
    assert decode_publish(dumped(timeout=2), "publish").timeout is None
    command = decode_publish(dumped(ack=True, msg_id=ID), "request")
    assert (command.ack, command.msg_id) == (False, None)
    # But checked.
    assert rejected(dumped(msg_id="a b"), "request").startswith("'msg_id' must be")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"subject":"a"',
        b'{"subject":"a"} {}',
        b'{"subject":"a","data":nul}',
        b'{"subject":"a","data":01}',
        b'{"subject":"a","data":NaN}',
        b'{"subject":"a","data":[1,]}',
        b'{"subject":"a","data":"\n"}',
        b'{"subject":"a","data":"\\ud800"}',
        b'{"subject":"a","data":"\xff"}',
        b'{"subject":"a","data":{"b":["\xed\xa0\x80"]}}',
        b'{"subject":"\xff"}',
        b'{"subject":"a","headers":{"A":["\xff"]}}',
        b'{"subject":"a","data":%b}' % DEEP,
        b"null",
        b"[]",
        b'"a"',
        DEEP,
    ],
    ids=range(18),
)
def test_data_other_than_json_object_is_rejected(data: bytes) -> None:
    for action in ACTIONS:
        rejected(data, action)


# Data


@pytest.mark.parametrize(
    "data",
    [
        "null",
        "0",
        "12345678901234567890123456789",
        "1.50e+07",
        "-0",
        '""',
        '"\\u00e9\\n"',
        '"\u00e9 \U0001f600"',
        "[ 1 ,\t2\n]",
        '{"a":1,"a":2}',
        '{ "a" : [ ] }',
        "1e400",
    ],
)
def test_data_goes_out_byte_for_byte(data: str) -> None:
    for around in ("%s", " %s ", "\n%s\r\n"):
        command = decode_publish(f'{{"data":{around % data},"subject":"a"}}'.encode(), "publish")
        assert (command.payload, command.encoding) == (data.encode(), "json")


@given(json_values, st.sampled_from((None, 1, "\t")), st.booleans(), st.booleans())
def test_any_json_goes_out_byte_for_byte(value: Any, indent: Any, is_ascii: bool, is_first: bool) -> None:
    data = json.dumps(value, indent=indent, ensure_ascii=is_ascii).encode()
    document = b'{"data":%b,"subject":"a"}' if is_first else b'{"subject":"a","data": %b }'
    for action in ACTIONS:
        assert decode_publish(document % data, action).payload == data


def test_absent_data_is_an_empty_payload_and_null_is_not() -> None:
    absent, null = (
        decode_publish(b'{"subject":"a"}', "publish"),
        decode_publish(b'{"subject":"a","data":null}', "publish"),
    )
    assert (absent.payload, absent.encoding) == (b"", "")
    assert (null.payload, null.encoding) == (b"null", "json")


@given(st.text(st.characters(codec="utf-8")))
def test_text_goes_out_as_utf8(text: str) -> None:
    command = decode_publish(dumped(data=text, encoding="text"), "publish")
    assert (command.payload, command.encoding) == (text.encode(), "text")


@given(st.binary())
def test_base64_goes_out_as_bytes(payload: bytes) -> None:
    command = decode_publish(dumped(data=base64.b64encode(payload).decode(), encoding="base64"), "publish")
    assert (command.payload, command.encoding) == (payload, "base64")


@pytest.mark.parametrize(
    "data",
    ["YQ", "YQ=", "YQ==YQ==", "YQ== ", " YQ==", "Y Q==", "YQ\n==", "=", "====", "YWJj=", "YW-_", "YR==", "ä", "Y"],
)
def test_base64_is_strict(data: str) -> None:
    assert rejected(dumped(data=data, encoding="base64")) == "'data' is not base64"


@pytest.mark.parametrize("encoding", ["text", "base64"])
@pytest.mark.parametrize("fields", [{}, {"data": None}, {"data": 5}, {"data": ["a"]}, {"data": {"a": 1}}], ids=str)
def test_encoded_data_must_be_a_string(encoding: str, fields: dict[str, Any]) -> None:
    message = f"'data' must be a string, as its encoding is '{encoding}'"
    assert rejected(dumped(encoding=encoding, **fields)) == message


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8),
        st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=3),
        max_size=4,
    )
)
def test_every_accepted_header_fits_into_a_block(headers: dict[str, list[str]]) -> None:
    try:
        command = decode_publish(dumped(headers=headers), "publish")
    except InvalidCommand:
        return
    assert command.headers == tuple((name, value) for name, values in headers.items() for value in values)
    assert header_block(command.headers).count(b"\r\n") == (len(command.headers) + 2 if headers else 0)


# Beside the other commands


def test_websocket_decodes_both_kinds_of_commands() -> None:
    subscribe = b'{"action":"subscribe","subjects":["a"],"subject":5,"data":1}'
    assert (
        decode_command(subscribe, publish=True)
        == decode_command(subscribe)
        == Command(action="subscribe", subjects=["a"])
    )
    published = decode_command(dumped(action="publish", data=[1]), publish=True)
    assert published == PublishCommand(action="publish", subject="a", payload=b"[1]", encoding="json")
    with pytest.raises(InvalidCommand, match="a request must have an 'id'"):
        decode_command(dumped(action="request"), publish=True)
    with pytest.raises(InvalidCommand, match="'subject' is missing"):
        decode_command(b'{"action":"publish","subjects":["a"]}', publish=True)
    with pytest.raises(UnsupportedCommand):
        decode_command(b'{"action":"authenticate"}', publish=True)


@pytest.mark.parametrize("action", ACTIONS)
def test_paths_of_other_commands_do_not_publish(action: PublishAction) -> None:
    for path in PATHS:
        with pytest.raises((UnsupportedCommand, InvalidCommand)):
            decode_command(dumped(action=action, id="1"), path)


# The id by which JetStream knows a repeated message


def test_message_id_differs_by_author_subject_and_id() -> None:
    triples: list[tuple[str | None, str, str]] = [
        (None, "a", ID),
        ("ada", "a", ID),
        ("bob", "a", ID),
        ("ada", "b", ID),
        ("ada", "a", f"{ID}x"),
        ("x", "a", ID),
        # If the parts were only joined, these would be equal to others.
        ("\0ada", "a", ID),
        (f"{ID}\0ada", "a", "x"),
        ("", "a", ID),
    ]
    ids = {triple: message_id(*triple) for triple in triples}
    assert len(set(ids.values())) == len(triples)
    assert ids == {triple: message_id(*triple) for triple in triples}


@given(
    st.lists(
        st.tuples(st.none() | st.text("a\0-", max_size=3), st.sampled_from("ab"), st.sampled_from("ab")), max_size=8
    )
)
def test_message_id_is_a_short_token(triples: list[tuple[str | None, str, str]]) -> None:
    for one, other in combinations(triples, 2):
        assert (message_id(*one) == message_id(*other)) is (one == other)
    for triple in triples:
        assert len(message_id(*triple)) == 32
        assert header_block([("Nats-Msg-Id", message_id(*triple))])


def test_commands_are_frozen() -> None:
    command = decode_publish(dumped(), "publish")
    with pytest.raises(AttributeError):
        command.subject = "b"  # type: ignore[misc]
    assert msgspec.structs.replace(command, subject="b").subject == "b"
