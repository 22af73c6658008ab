import gc
import json
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanic_nats_bridge.protocol.encoding import EncodedMessage, MessagePrefix, WireFormat, join
from sanic_nats_bridge.protocol.stream_messages import Operation, StreamMessage, operation_of
from tests.support.encoded import body, decoded, events_with_ids, payloads, subject_texts, websocket_payloads
from tests.support.growth import assert_linear

POSITION = "k3f9x2.m2l.sz3k20"
OTHER_POSITION = "k3f9x2.m2l.sz3k20~p2.1.sz3k1z"
STREAM = SimpleNamespace(key="k3f9x2")
ids = st.text("abcXYZ019._~-", min_size=1, max_size=128)


def stream_message(
    payload: bytes = b'{"key1":"value1"}',
    subject: str = "orders.1",
    *,
    pattern: str = "orders.>",
    headers: bytes = b"",
    position: str = POSITION,
    event_id: str = "",
    operation: Operation = "",
) -> StreamMessage:
    return StreamMessage(
        MessagePrefix(pattern),
        subject,
        headers,
        payload,
        7,
        stream=STREAM,
        seq=42,
        time=1_000,
        position=position,
        event_id=event_id,
        operation=operation,
    )


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            stream_message(),
            b'{"type":"message","pattern":"orders.>","subject":"orders.1","id":"%b","data":{"key1":"value1"}}',
        ),
        (
            stream_message(b"", pattern="orders.1", operation="purge"),
            b'{"type":"message","subject":"orders.1","id":"%b","operation":"purge","data":null}',
        ),
        (
            stream_message(b"\xff", operation="delete", headers=b'{"A":["1"]}', event_id=OTHER_POSITION),
            (
                b'{"type":"message","pattern":"orders.>","subject":"orders.1","id":"%b","operation":"delete",'
                b'"headers":{"A":["1"]},"data":"/w==","encoding":"base64"}'
            ),
        ),
    ],
    ids=["plain", "purge of a literal subject", "delete with headers"],
)
@pytest.mark.parametrize("shared", [False, True])
def test_stream_message_has_its_id_after_the_subject(message: StreamMessage, text: bytes, shared: bool) -> None:
    if shared:
        message = message.under(message.prefix, message.position, message.event_id)
    assert websocket_payloads(message.encoded(WireFormat.WEBSOCKET)) == [text % POSITION.encode()]
    assert message.encoded(WireFormat.JSON_LINES) == text % POSITION.encode() + b"\n"


@given(payloads, subject_texts, ids, st.just("") | ids)
@example(b"data: x\n\nid: 1\n\n", "\n\nid: y\n\n", POSITION, OTHER_POSITION)
def test_id_is_in_the_same_event_as_its_message(payload: bytes, subject: str, position: str, event_id: str) -> None:
    message = stream_message(payload, subject, pattern="a.>", position=position, event_id=event_id)
    (websocket,) = websocket_payloads(message.encoded(WireFormat.WEBSOCKET))
    expected = [("message", websocket.decode(), None, event_id or None)]
    assert events_with_ids(body(message.encoded(WireFormat.EVENT_STREAM))) == expected
    assert events_with_ids(message.encoded(WireFormat.EVENTS)) == expected
    assert decoded(websocket)["id"] == position


@given(payloads, st.lists(ids, min_size=1, max_size=4, unique=True))
def test_joined_stream_messages_are_events_with_their_ids(payload: bytes, positions: list[str]) -> None:
    first = stream_message(payload, position=positions[0], event_id=positions[0])
    messages = [
        first,
        *(first.under(first.prefix, position, position) for position in positions[1:]),
        EncodedMessage(MessagePrefix("a"), "a", b"", payload),
    ]
    joined = join(messages, WireFormat.EVENT_STREAM)
    found = events_with_ids(body(joined))
    assert [id_ for *_, id_ in found] == [*positions, None]
    assert [json.loads(data).get("id") for _, data, _, _ in found] == [*positions, None]


@pytest.mark.parametrize("wire_format", WireFormat)
@pytest.mark.parametrize("event_id", ["", POSITION])
def test_stream_message_is_encoded_once_per_wire_format(wire_format: WireFormat, event_id: str) -> None:
    message = stream_message(event_id=event_id)
    assert message.encoded(wire_format) is message.encoded(wire_format)


def test_variants_of_a_stream_message_share_the_encoded_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def encode_payload(payload: bytes) -> tuple[bytes, bytes]:
        calls.append(payload)
        return payload, b""

    monkeypatch.setattr("sanic_nats_bridge.protocol.encoding.encode_payload", encode_payload)
    first = stream_message(operation="delete", event_id=POSITION)
    alias = MessagePrefix("mine.*", "mine.", "orders.")
    variants = [
        first,
        first.under(alias),
        first.under(first.prefix, OTHER_POSITION, ""),
        first.under(first.prefix, OTHER_POSITION, "").under(alias),
        first.under(alias).under(alias, OTHER_POSITION, OTHER_POSITION),
        first.under(alias, OTHER_POSITION, ""),
    ]
    documents = []
    for variant in variants:
        (document,) = websocket_payloads(variant.encoded(WireFormat.WEBSOCKET))
        documents.append(decoded(document))
    assert calls == [first.payload]
    assert [(document["subject"], document["id"]) for document in documents] == [
        ("orders.1", POSITION),
        ("mine.1", POSITION),
        ("orders.1", OTHER_POSITION),
        ("mine.1", OTHER_POSITION),
        ("mine.1", OTHER_POSITION),
        ("mine.1", OTHER_POSITION),
    ]
    assert {document["operation"] for document in documents} == {"delete"}
    assert [variant.event_id for variant in variants] == [POSITION, POSITION, "", "", OTHER_POSITION, ""]
    assert {(variant.seq, variant.number, variant.subject) for variant in variants} == {(42, 7, "orders.1")}


# Operations


@pytest.mark.parametrize(
    ("lines", "operation"),
    [
        ([b"KV-Operation: DEL"], "delete"),
        ([b"KV-Operation: PURGE", b"Nats-Rollup: sub"], "purge"),
        ([b"Nats-TTL: 1s", b"KV-Operation:DEL"], "delete"),
        ([b"KV-Operation: PUT"], ""),
        ([b"Nats-Marker-Reason: MaxAge", b"Nats-Rollup: sub"], "purge"),
        ([b"Nats-Marker-Reason: Purge"], "purge"),
        ([b"Nats-Marker-Reason: Remove"], "delete"),
        ([b"Nats-Marker-Reason: Rewritten"], ""),
        ([b"Nats-Marker-Reason: Remove", b"KV-Operation: PURGE"], "purge"),
        ([b"KV-Operation: PUT", b"Nats-Marker-Reason: MaxAge"], "purge"),
        ([b"KV-Operation: DEL", b"KV-Operation: PURGE"], "delete"),
        ([b"X: KV-Operation: DEL"], ""),
        ([b"X-KV-Operation: DEL"], ""),
        ([b"kv-operation: DEL", b"KV-Operations: DEL", b"KV-Operation : DEL"], ""),
        ([b"KV-Operation: DELETE", b"KV-Operation:", b"KV-Operation"], ""),
        ([b"Nats-Stream: KV_prefs", b"Nats-Sequence: 7"], ""),
        ([], ""),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("ending", [b"\r\n\r\n", b"\r\n", b""], ids=ascii)
def test_operation_of_stored_message_is_read_from_its_headers(
    lines: Iterable[bytes], operation: Operation, ending: bytes
) -> None:
    assert operation_of(b"\r\n".join([b"NATS/1.0", *lines]) + ending) == operation


def test_message_without_headers_has_no_operation() -> None:
    assert operation_of(b"") == ""


@given(
    st.binary()
    | st.lists(
        st.sampled_from(
            [
                b"NATS/1.0",
                b"KV-Operation",
                b"Nats-Marker-Reason",
                b"DEL",
                b"MaxAge",
                b":",
                b" ",
                b"\r\n",
                b"\r",
                b"\xff",
            ]
        )
    ).map(b"".join)
)
def test_any_header_block_has_one_of_three_operations(block: bytes) -> None:
    assert operation_of(block) in ("", "delete", "purge")


@pytest.mark.parametrize(
    "line",
    [b"X-Y: 1\r\n", b"KV-Operation: x\r\n", b"\r\nKV-Operatio\r\nNats-Marker-Reaso", b"\r\n", b" "],
    ids=ascii,
)
def test_work_for_operation_grows_with_length_of_headers(line: bytes) -> None:
    def make(count: int) -> Callable[[], object]:
        block = b"NATS/1.0\r\n" + line * (count // len(line)) + b"\r\n"
        return lambda: [operation_of(block) for _ in range(20)]

    assert_linear(make, 800_000)


@pytest.mark.parametrize("shared", [False, True])
def test_stream_message_is_untracked_by_garbage_collector(shared: bool) -> None:
    message = stream_message(headers=b'{"h":["1"]}', event_id=POSITION)
    messages = [message, *([message.under(message.prefix, OTHER_POSITION, POSITION)] if shared else [])]
    for each in messages:
        for wire_format in WireFormat:
            each.encoded(wire_format)
        assert not gc.is_tracked(each)
        kept = {
            name: getattr(each, name) for name in each.__struct_fields__ if name not in ("prefix", "first", "stream")
        }
        assert [name for name, value in kept.items() if gc.is_tracked(value)] == []
