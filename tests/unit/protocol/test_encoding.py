import base64
import gc
import json
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanic_nats_bridge.protocol import encoding
from sanic_nats_bridge.protocol import messages as protocol
from sanic_nats_bridge.protocol.encoding import EncodedMessage, MessagePrefix, WireFormat
from tests.support.encoded import body, decoded, events, events_with_ids, payloads, subject_texts, websocket_payloads
from tests.support.growth import assert_linear


def new_message(payload: bytes, subject: str = "a.b", pattern: str = "", headers: bytes = b"") -> EncodedMessage:
    return EncodedMessage(MessagePrefix(pattern or subject), subject, headers, payload)


def published(frame: dict[str, Any]) -> bytes:
    """Return the payload that a client decodes from a `message` with an encoding."""
    data: str = frame["data"]
    assert frame["encoding"] in ("text", "base64")
    return data.encode() if frame["encoding"] == "text" else base64.b64decode(data)


# WebSocket frames


@given(st.binary(max_size=300))
def test_websocket_frame_is_one_complete_text_frame(payload: bytes) -> None:
    assert websocket_payloads(encoding.websocket_frame(payload)) == [payload]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 1_000_000])
def test_websocket_frame_is_complete_at_length_boundaries(size: int) -> None:
    payload = b"x" * size
    assert websocket_payloads(encoding.websocket_frame(payload)) == [payload]


# Events


@given(payloads, subject_texts)
@example(b'{"a":\r\n1}', "a\r\nb")
@example(b"data: x\n\nevent: close\n\n", "\n\ndata: y\n\n")
def test_message_event_is_unnamed_with_same_json_as_websocket(payload: bytes, subject: str) -> None:
    message = new_message(payload, subject, "a.>", b'{"A":["\\r\\n"]}')
    (websocket,) = websocket_payloads(message.encoded(WireFormat.WEBSOCKET))
    assert events(message.encoded(WireFormat.EVENT_STREAM)) == [("message", websocket.decode(), None)]
    assert decoded(websocket)["subject"] == subject


@pytest.mark.parametrize("retry", [None, 8_123])
def test_other_frame_is_event_named_after_its_type(retry: int | None) -> None:
    close = protocol.Close(code=1001, reason="Going\n\ndata: away", reconnect=True)
    (websocket,) = websocket_payloads(encoding.encode_frame(close, WireFormat.WEBSOCKET, retry))
    assert events(encoding.encode_frame(close, WireFormat.EVENT_STREAM, retry)) == [
        ("close", websocket.decode(), retry)
    ]
    assert websocket == protocol.encode(close)


def test_event_text_has_retry_id_event_and_data_fields() -> None:
    assert encoding.event_text(b"{}", "close", 5) == b"retry: 5\nevent: close\ndata: {}\n\n"
    assert encoding.event_text(b"{}", "x", 5, "a.1") == b"retry: 5\nid: a.1\nevent: x\ndata: {}\n\n"
    assert encoding.event_text(b"{}") == b"data: {}\n\n"


@pytest.mark.parametrize(
    "frame",
    [
        protocol.Heartbeat(id="a.1.2"),
        protocol.CaughtUp(subjects=["a.>"], replayed=0, recovered=True, position="a.1.2"),
    ],
    ids=protocol.event_name,
)
def test_id_of_other_frame_is_a_field_of_its_event(frame: protocol.Frame) -> None:
    document = protocol.encode(frame).decode()
    expected = [(protocol.event_name(frame), document, None, "a.1.2")]
    assert events_with_ids(body(encoding.encode_frame(frame, WireFormat.EVENT_STREAM, event_id="a.1.2"))) == expected
    assert events_with_ids(encoding.encode_frame(frame, WireFormat.EVENTS, event_id="a.1.2")) == expected
    for wire_format in (WireFormat.WEBSOCKET, WireFormat.JSON_LINES):
        with_id = encoding.encode_frame(frame, wire_format, event_id="a.1.2")
        assert with_id == encoding.encode_frame(frame, wire_format)


def test_heartbeat_without_id_is_the_same_in_every_wire_format() -> None:
    assert [encoding.encode_frame(protocol.Heartbeat(), wire_format) for wire_format in WireFormat] == [
        b'\x81\x14{"type":"heartbeat"}',
        b'2d\r\nevent: heartbeat\ndata: {"type":"heartbeat"}\n\n\r\n',
        b'{"type":"heartbeat"}\n',
        b'event: heartbeat\ndata: {"type":"heartbeat"}\n\n',
    ]


def test_joined_messages_decode_individually() -> None:
    messages = [new_message(b"%d" % number) for number in range(300)]
    assert [decoded(frame)["data"] for frame in websocket_payloads(encoding.join(messages, WireFormat.WEBSOCKET))] == [
        *range(300)
    ]
    assert [json.loads(data)["data"] for _, data, _ in events(encoding.join(messages, WireFormat.EVENT_STREAM))] == [
        *range(300)
    ]
    assert encoding.join([], WireFormat.WEBSOCKET) == b""


# Messages


@pytest.mark.parametrize("wire_format", WireFormat)
def test_message_is_encoded_once_per_wire_format(wire_format: WireFormat) -> None:
    message = new_message(b'{"a": 1}')
    assert message.encoded(wire_format) is message.encoded(wire_format)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (new_message(b'{"key1":"value1"}', "test.subject"), b'{"type":"message","subject":"test.subject","data":%b}'),
        (
            new_message(b'{"key1":"value1"}', "orders.1", "orders.>"),
            b'{"type":"message","pattern":"orders.>","subject":"orders.1","data":%b}',
        ),
        (
            new_message(b'{"key1":"value1"}', "a", headers=b'{"A":["1"]}'),
            b'{"type":"message","subject":"a","headers":{"A":["1"]},"data":%b}',
        ),
        (new_message(b'{"key1":"value1"}', 'a"\n'), b'{"type":"message","subject":"a\\"\\n","data":%b}'),
    ],
    ids=["plain", "by a wildcard", "with headers", "subject that needs escapes"],
)
def test_message_is_encoded_as_expected_json(message: EncodedMessage, text: bytes) -> None:
    assert websocket_payloads(message.encoded(WireFormat.WEBSOCKET)) == [text % b'{"key1":"value1"}']


# Payloads


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


EMBEDDED = {
    "object": b'{"a": {"b": [1, 2.50, -0, true, false, null]}}',
    "string": '"größe \U0001f600"'.encode(),
    "number": b"1",
    "true": b"true",
    "null": b"null",
    "empty object": b"{}",
    "digits of a fraction": b"0.10000000000000000555",
    "digits of an integer": b"12345678901234567890123",
    "10**400": b"1" + b"0" * 400,
    "10**5000": b"[1" + b"0" * 5_000 + b"]",
    "10**5000 beside a float overflow": b"[1e999, 1" + b"0" * 5_000 + b"]",
    "beyond a double": b"1e999999",
    "beyond a double, negative": b'{"a": -1E+400}',
    "below a double": b"1e-999999",
    "escaped lone surrogate": b'"cut \\ud83d"',
    "escaped lone surrogate as a key": b'{"\\uDFFF": [1e999]}',
    "escaped pair": b'"\\ud83d\\ude00"',
    "escaped NUL": b'"\\u0000"',
    "escaped line end": b'"\\r\\n"',
    "doubled keys": b'{"a": 1, "a": 2}',
    "spaces around": b" \t[1] ",
    "line separator": '["\u2028\u2029\x85"]'.encode(),
    "500 levels": nested(500),
}


@pytest.mark.parametrize("payload", EMBEDDED.values(), ids=EMBEDDED.keys())
def test_json_payload_is_embedded_unchanged(payload: bytes) -> None:
    assert encoding.encode_payload(payload) == (payload, b"")


@pytest.mark.parametrize(
    ("payload", "embedded"),
    [
        (b'{\n  "a": 1\n}\n', b'{   "a": 1 } '),
        (b'[1,\r\n2,\r"a\\nb"]', b'[1,  2, "a\\nb"]'),
        (b"[1,\r2]", b"[1, 2]"),
        (b"\n1e999\r", b" 1e999 "),
    ],
)
def test_line_ends_in_json_payload_become_spaces(payload: bytes, embedded: bytes) -> None:
    assert encoding.encode_payload(payload) == (embedded, b"")


TEXT = {
    "words": b"hello",
    "non-ASCII": "größe \U0001f600 \u2028".encode(),
    "spaces": b" ",
    "line ends": b"\r\n",
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "-Infinity": b'{"a": -Infinity}',
    "NaN beside a float overflow": b"[1e999, NaN]",
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "20,000 levels": nested(20_000),
    "20,000 levels of objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "20,000 levels beside a float overflow": b"[1e999," + nested(20_000) + b"]",
    "open levels": b"[" * 100_000,
    "two documents": b"1 2",
    "cut": b'{"a": 1',
    "trailing comma": b"[1,]",
    "single quotes": b"{'a': 1}",
    "comment": b"[1] // one",
    "leading zero": b"01",
    "leading plus": b"+1",
    "bare point": b"1.",
    "hexadecimal": b"0x1F",
    "other digits": "1\u0662".encode(),
    "other spaces": "1\xa0".encode(),
    "form feed": b"\x0c1",
    "raw line end in a string": b'"a\nb"',
    "raw control in a string beside a lone surrogate": b'["\\ud800", "\x01"]',
    "unknown escape": b'"\\x41"',
    "NUL": b"\0",
}


@pytest.mark.parametrize("payload", TEXT.values(), ids=TEXT.keys())
def test_text_that_is_not_json_is_encoded_as_string(payload: bytes) -> None:
    data, member = encoding.encode_payload(payload)
    assert (json.loads(data), member) == (payload.decode(), b',"encoding":"text"')


@pytest.mark.parametrize(
    "payload",
    [b"\xff", b'"\xff"', b'{"a": "\xc3"}', b'{"\xed\xa0\x80": 1}', b"[1]\xfe", bytes(range(256))],
    ids=["a byte", "in a string", "cut character", "surrogate in a key", "after JSON", "all bytes"],
)
def test_non_utf8_payload_is_encoded_as_base64(payload: bytes) -> None:
    data, member = encoding.encode_payload(payload)
    assert (base64.b64decode(json.loads(data)), member) == (payload, b',"encoding":"base64"')


def test_empty_payload_is_encoded_as_null() -> None:
    assert encoding.encode_payload(b"") == (b"null", b"")


@given(payloads)
def test_client_decodes_published_payload(payload: bytes) -> None:
    (websocket,) = websocket_payloads(new_message(payload).encoded(WireFormat.WEBSOCKET))
    frame = decoded(websocket)
    if "encoding" in frame:
        assert published(frame) == payload
        assert (frame["encoding"] == "base64") == (payload.decode("utf-8", "ignore").encode() != payload)
    else:
        assert frame["data"] == (json.loads(payload) if payload else None)
        assert websocket.endswith(b'"data":' + (payload or b"null").translate(bytes.maketrans(b"\r\n", b"  ")) + b"}")


# Headers

ALLOWED = frozenset({"Trace-Id", "Größe", "A"})


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ([b"Trace-Id: 7"], {"Trace-Id": ["7"]}),
        ([b"A:1", b"Trace-Id: 7", b"A:  2 "], {"A": ["1", "2"], "Trace-Id": ["7"]}),
        ([b"A: a:b: c"], {"A": ["a:b: c"]}),
        ([b"A:"], {"A": [""]}),
        ([b'A: "\\ \x01'], {"A": ['"\\ \x01']}),
        (["Größe: ä".encode()], {"Größe": ["ä"]}),
        ([b"A: \xff"], {"A": ["\ufffd"]}),
        ([b"a: 1", b"trace-id: 2", b"AA: 3", b" A: 4", b"A : 5", b"\xffA: 6"], {}),
        ([b"A", b"", b": 1", b"A\r: 2"], {}),
        ([], {}),
    ],
    ids=[
        "one",
        "several values",
        "colons",
        "empty",
        "escapes",
        "UTF-8",
        "not UTF-8",
        "not on the list",
        "malformed lines",
        "nothing",
    ],
)
def test_exactly_the_allowed_headers_are_exposed(lines: Iterable[bytes], shown: dict[str, list[str]]) -> None:
    block = b"\r\n".join([b"NATS/1.0", *lines, b"", b""])
    fields = encoding.header_fields(block, ALLOWED)
    assert (json.loads(fields) if fields else {}) == shown


def test_status_line_is_not_a_header() -> None:
    assert encoding.header_fields(b"A: 1\r\n\r\n", ALLOWED) == b""


@pytest.mark.parametrize("ending", [b"\r\n\r\n", b"\r\n", b""], ids=ascii)
def test_value_ends_with_its_line_or_with_the_block(ending: bytes) -> None:
    assert encoding.header_fields(b"NATS/1.0\r\nB: 1\r\nA: 2" + ending, ALLOWED) == b'{"A":["2"]}'


def test_header_after_many_others_is_found() -> None:
    block = b"NATS/1.0\r\n" + b"X-Y: 1\r\n" * 100_000 + b"A: 1\r\n\r\n"
    assert encoding.header_fields(block, ALLOWED) == b'{"A":["1"]}'


def test_header_has_64_values_at_most() -> None:
    block = b"NATS/1.0\r\n" + b"".join(b"A: %d\r\nB: 1\r\n" % number for number in range(1_000)) + b"\r\n"
    assert json.loads(encoding.header_fields(block, ALLOWED)) == {"A": [str(number) for number in range(64)]}


HEADER_LINES = {
    "others": b"X-Y: 1\r\n",
    "the wanted one": b"A: 1\r\n",
    "line ends": b"\r\n",
    "names without a colon": b"A\r\nTrace-Id\r\n",
    "beginnings": b"\r\nTrace-I",
    "carriage returns": b"\r",
    "spaces": b" ",
}


@pytest.mark.parametrize("line", HEADER_LINES.values(), ids=HEADER_LINES.keys())
def test_work_for_headers_grows_with_their_length(line: bytes) -> None:
    def make(count: int) -> Callable[[], object]:
        block = b"NATS/1.0\r\n" + line * (count // len(line)) + b"\r\n"
        return lambda: [encoding.header_fields(block, ALLOWED) for _ in range(20)]

    assert_linear(make, 800_000)


def test_headers_that_clients_do_not_get_take_no_memory() -> None:
    block = b"NATS/1.0\r\n" + b"X-Y: 1\r\n" * 100_000 + b"\r\n"
    tracemalloc.start()
    try:
        encoding.header_fields(block, ALLOWED)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


def test_status_after_many_spaces_is_none() -> None:
    assert not encoding.is_status(b"NATS/1.0" + b" " * 800_000)
    assert not encoding.is_status(b"NATS/1.0" + b"\t " * 400_000 + b"503\r\n\r\n")
    assert encoding.is_status(b"NATS/1.0" + b" " * 100 + b"503\r\n\r\n")


header_parts = st.sampled_from(
    [b"NATS/1.0", b"A", b"Trace-Id", b":", b" ", b"\r\n", b"\r", b"\n", b"\xff", b"\0", b'"']
)


@given(st.binary() | st.lists(header_parts).map(b"".join))
def test_header_parser_accepts_any_bytes(block: bytes) -> None:
    fields = encoding.header_fields(block, ALLOWED)
    if fields:
        assert msgspec.json.decode(fields, type=dict[str, list[str]]).keys() <= ALLOWED


def test_truncated_json_is_not_parsed_by_stdlib(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the slow way")

    monkeypatch.setattr("sanic_nats_bridge.protocol.encoding.json.loads", read)
    assert encoding.encode_payload(b"[1,2,3") == (b'"[1,2,3"', b',"encoding":"text"')


@pytest.mark.parametrize("shared", [False, True])
def test_encoded_message_is_untracked_by_garbage_collector(shared: bool) -> None:
    message = EncodedMessage(MessagePrefix("a.*"), "a.x", b'{"h":["1"]}', b'{"k": 1}', 7)
    messages = [message, *([message.under(MessagePrefix("b.*", "b.", "a."))] if shared else [])]
    for each in messages:
        for wire_format in WireFormat:
            each.encoded(wire_format)
        assert not gc.is_tracked(each)
        kept = {name: getattr(each, name) for name in each.__struct_fields__ if name not in ("prefix", "first")}
        assert [name for name, value in kept.items() if gc.is_tracked(value)] == []
