import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from sanic_nats_bridge.errors import ForbiddenSubject, InvalidCommand, UnsupportedCommand
from sanic_nats_bridge.protocol import messages as protocol
from sanic_nats_bridge.protocol.messages import (
    Action,
    Command,
    Frame,
    Reply,
    command_id_of,
    decode_command,
    query_command,
    success_reply,
)

DEEP = b"[" * 20_000 + b"]" * 20_000  # deeper than the decoder follows on any Python


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("data", "path_action", "command"),
    [
        ({"action": "subscribe", "subjects": ["a", "b.>"]}, None, Command(action="subscribe", subjects=["a", "b.>"])),
        ({"action": "unsubscribe", "subjects": ["a"]}, None, Command(action="unsubscribe", subjects=["a"])),
        ({"action": "ping"}, None, Command(action="ping")),
        ({"action": "ping", "subjects": []}, None, Command(action="ping", subjects=[])),
        ({"subjects": ["a"]}, None, Command(action="subscribe", subjects=["a"])),
        ({"subjects": ["a"]}, "subscribe", Command(action="subscribe", subjects=["a"])),
        ({"subjects": ["a"]}, "unsubscribe", Command(action="unsubscribe", subjects=["a"])),
        (
            {"action": "unsubscribe", "subjects": ["a"]},
            "unsubscribe",
            Command(action="unsubscribe", subjects=["a"]),
        ),
        (
            {"session": "3f9c", "subjects": ["a"], "id": "4"},
            "subscribe",
            Command(action="subscribe", session="3f9c", subjects=["a"], id="4"),
        ),
        (
            {"subjects": ["a"], "later": {"from": 1}, "Action": 5, "data": None, "number": 1.5},
            None,
            Command(action="subscribe", subjects=["a"]),
        ),
        ({"subjects": ["a b", "größe", ""]}, None, Command(action="subscribe", subjects=["a b", "größe", ""])),
    ],
    ids=[
        "subscribe",
        "unsubscribe",
        "ping",
        "ping with an unused field",
        "subscribe by default",
        "subscribe by path",
        "unsubscribe by path",
        "action like its path",
        "by POST",
        "unknown fields",
        "subjects of any text",
    ],
)
def test_valid_command_is_decoded(data: Any, path_action: Action | None, command: Command) -> None:
    assert decode_command(dumped(data), path_action) == command


@pytest.mark.parametrize("id_", ["1", "", "größe \u2028 😀", 0, 7, -1, 2**53 + 1, 10**40])
def test_command_id_is_returned_unchanged(id_: str | int) -> None:
    data = dumped({"action": "ping", "id": id_})
    assert decode_command(data).id == id_
    assert command_id_of(data) == id_
    assert json.loads(protocol.encode(Reply(id=id_, success=True, message="pong")))["id"] == id_


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"subscribe",
        b'{"subjects": ["a"]',
        b'{"subjects": ["a"]} {}',
        b'{"subjects": ["a",]}',
        b"{'subjects': ['a']}",
        b'{"subjects": ["a"], "later": NaN}',
        b'\xef\xbb\xbf{"subjects": ["a"]}',
        b'{"subjects": ["\xff"]}',
        b'{"subjects": ["a"], "id": "\xed\xa0\x80"}',
        b'{"subjects": ["\\ud800"]}',
        b'{"subjects": ["a"], "id": "\\udfff"}',
        b'{"subjects": ["a"], "later": "\\ud800"}',
        b"null",
        b"7",
        b'"subscribe"',
        b"[]",
        b'[{"subjects": ["a"]}]',
        DEEP,
        b'{"subjects": %b}' % DEEP,
        b'{"subjects": ["a"], "later": %b}' % DEEP,
        b'{"subjects": ["a"], "from": %b}' % DEEP,
        b'{"subjects": ["a"], "id": %b}' % DEEP,
    ],
    ids=[
        "nothing",
        "text",
        "cut",
        "two documents",
        "trailing comma",
        "single quotes",
        "NaN",
        "byte order mark",
        "invalid UTF-8",
        "UTF-8 of a surrogate",
        "lone surrogate in a subject",
        "lone surrogate in the id",
        "lone surrogate in an unknown field",
        "null",
        "number",
        "string",
        "array",
        "array of commands",
        "deep array",
        "deep subjects",
        "deep unknown field",
        "deep reserved field",
        "deep id",
    ],
)
def test_data_other_than_json_object_is_rejected(data: bytes) -> None:
    with pytest.raises(InvalidCommand, match=r"^Not a valid command: "):
        decode_command(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"subjects": None},
        {"subjects": "a"},
        {"subjects": {"a": 1}},
        {"subjects": [1]},
        {"subjects": ["a", None]},
        {"subjects": []},
        {"action": None},
        {"action": 1},
        {"action": ["subscribe"]},
        {"action": ""},
        {"action": "Subscribe"},
        {"action": "close"},
        {"action": "publish "},
        {"id": None},
        {"id": True},
        {"id": 1.5},
        {"id": ["1"]},
        {"id": {}},
        {"session": None},
        {"session": 7},
    ],
    ids=json.dumps,
)
def test_field_of_wrong_type_or_value_is_rejected(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommand, match=r"^Not a valid command: "):
        decode_command(dumped({"subjects": ["a"]} | fields))


@pytest.mark.parametrize("action", ["subscribe", "unsubscribe"])
def test_command_without_subjects_is_rejected(action: str) -> None:
    with pytest.raises(InvalidCommand, match="'subjects'"):
        decode_command(dumped({"action": action}))


@pytest.mark.parametrize(
    ("path_action", "action"), [("subscribe", "unsubscribe"), ("unsubscribe", "subscribe"), ("subscribe", "ping")]
)
def test_action_that_contradicts_path_is_rejected(path_action: Action, action: str) -> None:
    with pytest.raises(InvalidCommand, match=f"not '{path_action}'"):
        decode_command(dumped({"action": action, "subjects": ["a"]}), path_action)


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "publish"},
        {"action": "request"},
        {"action": "authenticate"},
        {"action": "publish", "subjects": [], "data": 1},
        {"from": 1},
        {"from": None},
        {"after": "x"},
        {"after": None},
        {"from": {"deep": [1]}, "after": []},
    ],
    ids=json.dumps,
)
def test_reserved_action_or_field_is_unsupported(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedCommand, match=r"^Not supported here: "):
        decode_command(dumped({"subjects": ["a"]} | fields))


@pytest.mark.parametrize(
    ("data", "id_"),
    [
        (b'{"id": "7", "subjects": 1}', "7"),
        (b'{"id": 7, "action": null}', 7),
        (b'{"from": 1, "id": "7"}', "7"),
        (b'{"subjects": ["a"]}', UNSET),
        (b'{"id": null}', UNSET),
        (b'{"id": true}', UNSET),
        (b'{"id": 1.5}', UNSET),
        (b'{"id": ["7"]}', UNSET),
        (b'{"id": "\xff"}', UNSET),
        (b'{"id": "\\ud800"}', UNSET),
        (b'{"id": %b}' % DEEP, UNSET),
        (b'["id"]', UNSET),
        (b'{"id": "7"', UNSET),
        (b"", UNSET),
    ],
)
def test_id_of_rejected_command_is_returned_if_readable(data: bytes, id_: str | int | UnsetType) -> None:
    assert command_id_of(data) == id_


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("a"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["action", "subjects", "id", "session", "from", "after", "last", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(st.binary(max_size=60) | json_like.map(dumped) | json_like.map(lambda v: dumped({"subjects": ["a"], "x": v})))
def test_decoder_raises_only_command_errors_for_any_bytes(data: bytes) -> None:
    assert command_id_of(data) is UNSET or isinstance(command_id_of(data), str | int)
    for history in (False, True):
        try:
            command = decode_command(data, history=history)
        except (InvalidCommand, UnsupportedCommand):
            continue
        assert command.action in ("subscribe", "unsubscribe", "ping")
        assert command.action == "ping" or command.subjects
        assert command.start is None or (history and command.action == "subscribe")


@given(json_like.filter(lambda value: not isinstance(value, dict) or not {"from", "after"} & value.keys()).map(dumped))
def test_command_without_start_is_decoded_alike_with_and_without_history(data: bytes) -> None:
    results = []
    for history in (False, True):
        try:
            results.append(repr(decode_command(data, history=history)))
        except (InvalidCommand, UnsupportedCommand) as error:
            results.append(repr(error))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("query", "command"),
    [
        ({}, None),
        ({"protocol": ["1"], "theme": ["dark"]}, None),
        ({"subjects": ["a", "b.>"]}, Command(action="subscribe", subjects=["a", "b.>"])),
        ({"subjects": ["a"], "protocol": ["1"], "id": ["7"]}, Command(action="subscribe", subjects=["a"])),
        ({"subjects": [""]}, Command(action="subscribe", subjects=[""])),
    ],
    ids=["nothing", "no subjects", "subjects", "more than subjects", "an empty subject"],
)
def test_sse_query_is_parsed_as_subscribe_command(query: dict[str, list[str]], command: Command | None) -> None:
    assert query_command(query) == command


@pytest.mark.parametrize(
    "query",
    [
        {"from": ["1"]},
        {"after": [""]},
        {"protocol": ["2"]},
        {"protocol": [""]},
        {"protocol": ["1", "1"]},
        {"subject": ["a"]},
        {"subjects[]": ["a"]},
        {"topics": ["a"]},
        {"TOPIC": ["a"]},
        {"subjects": ["a", "b,c"]},
    ],
    ids=str,
)
def test_reserved_query_parameter_or_protocol_is_unsupported(query: dict[str, list[str]]) -> None:
    with pytest.raises(UnsupportedCommand):
        query_command({"subjects": ["a"]} | query)


@pytest.mark.parametrize(
    ("resumable", "shown"),
    [
        (UNSET, {}),
        (["a", "b"], {"resumable": True}),
        (["b"], {"resumable": False, "resumable_subjects": ["b"]}),
        ([], {"resumable": False}),
    ],
)
def test_success_reply_names_resumable_subjects_only_if_some_are(
    resumable: list[str] | UnsetType, shown: dict[str, Any]
) -> None:
    reply = success_reply(Command(action="subscribe"), ["a", "b"], True, resumable=resumable)
    encoded = protocol.encode(reply)
    assert {key: value for key, value in json.loads(encoded).items() if key.startswith("resumable")} == shown
    # As the worker that relays the reply reads it.
    assert protocol.encode(msgspec.json.decode(encoded, type=Reply)) == encoded


FORBIDDEN = ForbiddenSubject("Not allowed: 'secret.>'", ["secret.>"])


@pytest.mark.parametrize(
    ("action", "id_", "shown"),
    [
        ("subscribe", "9", {"id": "9", "action": "subscribe"}),
        ("ping", 9, {"id": 9, "action": "ping"}),
        ("publish", UNSET, {"action": "publish"}),
        ("request", 1, {"id": 1, "action": "request"}),
        ("authenticate", UNSET, {}),
        (UNSET, UNSET, {}),
    ],
)
def test_failure_reply_contains_action_id_code_and_subjects(
    action: str | UnsetType, id_: str | int | UnsetType, shown: dict[str, Any]
) -> None:
    assert json.loads(protocol.encode(protocol.failure_reply(FORBIDDEN, action, id_))) == shown | {
        "type": "reply",
        "success": False,
        "code": "subject.forbidden",
        "message": "Not allowed: 'secret.>'",
        "subjects": ["secret.>"],
    }


def test_failure_reply_omits_subjects_if_error_has_none() -> None:
    assert "subjects" not in json.loads(protocol.encode(protocol.failure_reply(InvalidCommand("Not a valid command"))))


CONNECTED = "Successfully connected to events: 'test.subject', 'orders.>'"
FRAMES: Sequence[tuple[Frame, str]] = [
    (
        protocol.Welcome(session="3f9c", heartbeat=15, nats="connected"),
        (
            '{"type":"welcome","success":true,"data":"Successfully connected","session":"3f9c","protocol":1,'
            '"features":[],"heartbeat":15,"nats":"connected"}'
        ),
    ),
    (
        Reply(
            id="1",
            action="subscribe",
            success=True,
            message=CONNECTED,
            subjects=["test.subject", "orders.>"],
            active=True,
        ),
        (
            f'{{"type":"reply","id":"1","action":"subscribe","success":true,"message":"{CONNECTED}",'
            '"subjects":["test.subject","orders.>"],"active":true}'
        ),
    ),
    (
        protocol.failure_reply(FORBIDDEN, "subscribe", "9"),
        (
            '{"type":"reply","id":"9","action":"subscribe","success":false,"code":"subject.forbidden",'
            '"message":"Not allowed: \'secret.>\'","subjects":["secret.>"]}'
        ),
    ),
    (
        Reply(id="3", action="ping", success=True, message="pong"),
        '{"type":"reply","id":"3","action":"ping","success":true,"message":"pong"}',
    ),
    (
        success_reply(Command(action="subscribe", id="7"), ["orders.>"], True, resumable=["orders.>"], recovered=True),
        (
            '{"type":"reply","id":"7","action":"subscribe","success":true,'
            '"message":"Successfully connected to events: \'orders.>\'","subjects":["orders.>"],"active":true,'
            '"resumable":true,"recovered":true}'
        ),
    ),
    (
        protocol.CaughtUp(subjects=["orders.>"], replayed=17, recovered=True, position="k3f9x2.m31.sz3k9q"),
        '{"type":"caught_up","subjects":["orders.>"],"replayed":17,"recovered":true,"position":"k3f9x2.m31.sz3k9q"}',
    ),
    (
        protocol.Gap(subjects=["orders.>"], lost=None, reason="expired"),
        '{"type":"gap","subjects":["orders.>"],"lost":null,"reason":"expired"}',
    ),
    (protocol.Heartbeat(id="a.m2k.1x"), '{"type":"heartbeat","id":"a.m2k.1x"}'),
    (
        protocol.Gap(subjects=["orders.>"], lost=17, reason="nats_reconnect"),
        '{"type":"gap","subjects":["orders.>"],"lost":17,"reason":"nats_reconnect"}',
    ),
    (
        protocol.Gap(subjects=["a", "b"], lost=None, reason="nats_reconnect"),
        '{"type":"gap","subjects":["a","b"],"lost":null,"reason":"nats_reconnect"}',
    ),
    (
        protocol.Unsubscribed(subjects=["orders.>"], code="nats.refused", message="No"),
        '{"type":"unsubscribed","subjects":["orders.>"],"code":"nats.refused","message":"No"}',
    ),
    (protocol.Status(nats="disconnected"), '{"type":"status","nats":"disconnected"}'),
    (protocol.Heartbeat(), '{"type":"heartbeat"}'),
    (
        protocol.Close(code=1001, reason="Going", reconnect=True, retry=8123),
        '{"type":"close","code":1001,"reason":"Going","reconnect":true,"retry":8123}',
    ),
    (
        protocol.Close(code=1009, reason="Too big", reconnect=False),
        '{"type":"close","code":1009,"reason":"Too big","reconnect":false}',
    ),
]


@pytest.mark.parametrize(("frame", "text"), FRAMES, ids=[protocol.event_name(frame) for frame, _ in FRAMES])
def test_frame_encodes_to_expected_json_and_event_name(frame: Frame, text: str) -> None:
    assert protocol.encode(frame) == text.encode()
    assert protocol.event_name(frame) == json.loads(text)["type"]
