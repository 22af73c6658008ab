import contextlib
import json
import string
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.streams.answers import (
    Batch,
    ConsumerMissing,
    JetStreamError,
    JetStreamUnavailable,
    MessageMissing,
    StoredMessage,
    StreamMissing,
    batch_of,
    check,
    direct_message,
    ends_batch,
    feed_metadata,
    message_of_json,
    pending_of_consumer,
    status_of,
    stream_info,
)

CREATED = "2026-11-30T16:19:48.78183458Z"
TIME = "2026-11-30T16:19:48.783151891Z"
MILLISECONDS = 1_796_055_588_783

CONFIG: dict[str, Any] = {"name": "S", "subjects": ["o.>"], "retention": "limits", "storage": "memory", "max_age": 0}
STATE: dict[str, Any] = {"messages": 9, "first_seq": 1, "first_ts": TIME, "last_seq": 9, "last_ts": TIME}
INFO: dict[str, Any] = {"type": "x", "config": CONFIG, "state": STATE, "created": CREATED, "domain": "hub"}
MESSAGE: dict[str, Any] = {"subject": "o.1", "seq": 9, "hdrs": "QTogMQ==", "data": "YWJj", "time": TIME}


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


# JSON


def test_stream_info() -> None:
    info = stream_info(encoded(INFO))
    assert (info.name, info.created, info.subjects) == ("S", CREATED, ("o.>",))
    assert (info.first_time, info.last_time) == (MILLISECONDS, MILLISECONDS)
    assert (info.max_msgs, info.max_bytes, info.max_msgs_per_subject, info.allow_direct) == (-1, -1, -1, False)


def test_times_of_an_empty_stream_are_zero() -> None:
    empty = STATE | {"first_ts": "0001-01-01T00:00:00Z", "last_ts": "0001-01-01T00:00:00Z"}
    info = stream_info(encoded(INFO | {"state": empty}))
    assert (info.first_time, info.last_time) == (0, 0)


def test_subjects_of_a_mirror_are_empty() -> None:
    config = CONFIG | {"subjects": None, "mirror": {"name": "T"}, "sources": [], "subject_transform": {"src": ">"}}
    info = stream_info(encoded(INFO | {"config": config}))
    assert (info.subjects, info.is_mirror, info.has_sources, info.has_transform) == ((), True, True, True)


@pytest.mark.parametrize(
    ("time", "milliseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-30T16:19:48Z", MILLISECONDS - 783),
        ("2026-11-30T16:19:48.7Z", MILLISECONDS - 83),
        ("2026-11-30T16:19:48.78399999Z", MILLISECONDS),
        ("2026-11-30T16:19:48.001Z", MILLISECONDS - 782),
    ],
)
def test_times_are_cut_to_milliseconds(time: str, milliseconds: int) -> None:
    assert message_of_json(encoded({"message": MESSAGE | {"time": time}})).time == milliseconds


def test_message_of_json() -> None:
    assert message_of_json(encoded({"message": MESSAGE})) == StoredMessage(9, MILLISECONDS, "o.1", b"A: 1", b"abc")
    bare = {"subject": "o", "seq": 1, "time": TIME}
    assert message_of_json(encoded({"message": bare})) == StoredMessage(1, MILLISECONDS, "o", b"", b"")


def test_pending_of_consumer() -> None:
    assert pending_of_consumer(encoded({"name": "c", "num_pending": 7}), "c") == 7


FUNCTIONS: list[Callable[[bytes], object]] = [
    stream_info,
    message_of_json,
    check,
    partial(pending_of_consumer, name="c"),
]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ({"code": 404, "err_code": 10059, "description": "stream not found"}, StreamMissing),
        ({"code": 404, "err_code": 10014, "description": "consumer not found"}, ConsumerMissing),
        ({"code": 404, "err_code": 10037, "description": "no message found"}, MessageMissing),
        ({"code": 503, "err_code": 10039, "description": "not enabled"}, JetStreamUnavailable),
        ({"code": 500, "err_code": 10118, "description": "stream is offline"}, JetStreamUnavailable),
        ({"code": 400, "err_code": 10026, "description": "maximum consumers limit reached"}, JetStreamError),
        ({}, JetStreamError),
        ({"description": "a\nb" + "c" * 1_000}, JetStreamError),
    ],
    ids=lambda value: value.get("description", "empty")[:12] if isinstance(value, dict) else value.__name__,
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_errors_of_the_api(
    function: Callable[[bytes], object], failure: dict[str, Any], kind: type[JetStreamError]
) -> None:
    with pytest.raises(JetStreamError) as error:
        function(encoded({"type": "x", "error": failure}))
    assert type(error.value) is kind
    assert (error.value.code, error.value.err_code) == (failure.get("code", 0), failure.get("err_code", 0))
    assert str(error.value) == error.value.description
    assert error.value.description.isprintable()
    assert 0 < len(error.value.description) <= 300


WRONG = [None, True, -1, 2**70, 1.5, "", "x", "\ud800", [], [1], {}, {"name": 1}, "0001", "2026-13-01T00:00:00Z"]


def damaged(document: dict[str, Any]) -> list[bytes]:
    """Return the document with each of its members replaced or removed."""
    changed: list[Any] = []
    for name, value in document.items():
        changed += [{**document, name: wrong} for wrong in WRONG]
        changed.append({other: document[other] for other in document if other != name})
        if isinstance(value, dict):
            changed += [{**document, name: json.loads(inner)} for inner in damaged(value)]
    return [encoded(each) for each in changed]


NESTED = b'{"config":' + b"[" * 100_000
GARBAGE = [b"", b"{", b"null", b"[]", b"1", b'"x"', b"{}", b'{"error":null}', b"\xff", b'{"error":1}', NESTED]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_lying_answer_is_an_error_and_nothing_else(function: Callable[[bytes], object]) -> None:
    for answer in [*GARBAGE, *damaged(INFO), *damaged({"message": MESSAGE}), *damaged({"name": "c", "num_pending": 1})]:
        with contextlib.suppress(JetStreamError):
            function(answer)


@given(st.binary())
def test_any_answer_is_valid_or_an_error(answer: bytes) -> None:
    for function in FUNCTIONS:
        with contextlib.suppress(JetStreamError):
            function(answer)


@pytest.mark.parametrize("answer", [b"", b"null", b"[]", NESTED, encoded(INFO | {"created": ""})], ids=range(5))
def test_incomplete_answer_is_an_error(answer: bytes) -> None:
    with pytest.raises(JetStreamError, match="invalid answer"):
        stream_info(answer)


def test_answer_about_another_consumer_is_an_error() -> None:
    with pytest.raises(JetStreamError):
        pending_of_consumer(encoded({"name": "other", "num_pending": 7}), "c")


# Header blocks


def block(seq: int, previous: int, subject: bytes = b"o.1", own: bytes = b"NATS/1.0\r\n", **changed: bytes) -> bytes:
    fields = {b"Nats-Stream": b"S", b"Nats-Subject": subject, b"Nats-Sequence": b"%d" % seq}
    fields |= {b"Nats-Time-Stamp": TIME.encode(), b"Nats-Num-Pending": b"5", b"Nats-Last-Sequence": b"%d" % previous}
    fields |= {b"Nats-" + name.replace("_", "-").encode(): value for name, value in changed.items()}
    return own + b"".join(b"%b: %b\r\n" % field for field in fields.items()) + b"\r\n"


def end(previous: int, pending: int = 0) -> tuple[bytes, bytes]:
    fields = b"Nats-Num-Pending: %d\r\nNats-Last-Sequence: %d" % (pending, previous)
    return b"NATS/1.0 204 EOB\r\n%b\r\n\r\n" % fields, b""


NOT_FOUND = (b"NATS/1.0 404 Message Not Found\r\n\r\n", b"")


def test_batch() -> None:
    replies = [(block(3, 0), b"a"), (block(7, 3, b"o.2", b"NATS/1.0\r\nA: 1\r\n"), b"b"), end(7, 2)]
    first = StoredMessage(3, MILLISECONDS, "o.1", b"", b"a")
    second = StoredMessage(7, MILLISECONDS, "o.2", b"NATS/1.0\r\nA: 1\r\n\r\n", b"b")
    assert batch_of(replies, 3) == Batch([first, second], is_end=False, pending=2)
    assert batch_of([*replies[:2], end(7)], 1).is_end
    assert batch_of([NOT_FOUND], 1) == Batch([], is_end=True, pending=0)


@pytest.mark.parametrize(
    "replies",
    [
        [(block(3, 2), b""), end(3)],
        [(block(3, 0), b""), (block(7, 5), b""), end(7)],
        [(block(3, 0), b""), end(5)],
        [end(5)],
        [(block(3, 0), b""), NOT_FOUND],
    ],
    ids=["first", "middle", "last", "all", "end"],
)
def test_missing_message_makes_batch_unavailable(replies: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(JetStreamUnavailable, match="missing"):
        batch_of(replies, 1)


@pytest.mark.parametrize(
    "status", [b"408 Malformed Request", b"413 Too Many Results", b"503", b"100 Idle Heartbeat", b"503 \xff\x00"]
)
def test_other_status_makes_batch_unavailable(status: bytes) -> None:
    headers = b"NATS/1.0 %b\r\n\r\n" % status
    with pytest.raises(JetStreamUnavailable, match=f"status {status[:3].decode()}") as error:
        batch_of([(headers, b"")], 1)
    assert error.value.code == int(status[:3])
    assert str(error.value).isprintable()
    with pytest.raises(JetStreamUnavailable):
        direct_message(headers, b"")


@pytest.mark.parametrize(
    "replies",
    [
        [(block(3, 0), b""), (block(3, 3), b""), end(3)],
        [(block(1, 0), b""), end(1)],
        [(block(3, 0, Sequence=b"-3"), b""), end(3)],
        [(block(3, 0, Sequence="³".encode()), b""), end(3)],
        [(block(3, 0, Sequence=b"3" * 5_000), b""), end(3)],
        [(block(3, 0, Last_Sequence=b"x"), b""), end(3)],
        [(block(3, 0, Time_Stamp=b"\xff"), b""), end(3)],
        [(block(3, 0, Time_Stamp=b"2026-02-31T00:00:00Z"), b""), end(3)],
        [(b"", b""), end(0)],
        [(b"NATS/1.0\r\nNats-Stream: S\r\n\r\n", b""), end(0)],
        [(b"NATS/1.0 204 EOB\r\n\r\n", b"")],
        [(b"NATS/1.0 204 EOB\r\nNats-Num-Pending: x\r\nNats-Last-Sequence: 0\r\n\r\n", b"")],
    ],
    ids=range(12),
)
def test_lying_batch_is_an_error(replies: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(JetStreamError):
        batch_of(replies, 2)


def test_lines_of_publisher_are_not_those_of_the_server() -> None:
    forged = block(99, 98, b"x")[:-2]
    (message,) = batch_of([(block(3, 0, own=forged), b"a"), end(3)], 1).messages
    assert (message.seq, message.subject, message.headers) == (3, "o.1", forged + b"\r\n")


@pytest.mark.parametrize("status", [b"204 EOB", b"404 Message Not Found", b"503"])
def test_status_of_publisher_does_not_end_a_batch(status: bytes) -> None:
    stored = block(3, 0, own=b"NATS/1.0 %b\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 2\r\n" % status)
    assert not ends_batch(stored)
    assert batch_of([(stored, b"a"), end(3)], 1).messages[0].seq == 3
    assert direct_message(stored, b"a") is not None


def test_repeated_names_of_publisher_take_time_in_proportion() -> None:
    stored = block(3, 0, own=b"NATS/1.0\r\nA: " + b"Nats-Stream: " * 80_000 + b"\r\n")
    assert batch_of([(stored, b""), end(3)], 1).messages[0].seq == 3


def test_unreadable_subject_is_empty() -> None:
    message = direct_message(block(3, 0, b"o.\xff"), b"a")
    assert message is not None
    assert message.subject == ""


def test_subject_may_have_a_carriage_return() -> None:
    for subject in (b"o.\r", b"o.\r.x", b"\r"):
        message = direct_message(block(3, 0, subject), b"a")
        assert message is not None
        assert message.subject.encode() == subject


@pytest.mark.parametrize(
    ("fraction", "milliseconds"), [(".783151891", 783), (".783", 783), (".78", 780), (".7", 700), ("", 0)]
)
def test_times_of_stored_messages_may_be_short(fraction: str, milliseconds: int) -> None:
    message = direct_message(block(3, 0, Time_Stamp=TIME.replace(".783151891", fraction).encode()), b"a")
    assert message == StoredMessage(3, MILLISECONDS // 1_000 * 1_000 + milliseconds, "o.1", b"", b"a")


def test_lines_of_the_server_may_have_another_order_and_be_more() -> None:
    first, *lines = block(3, 2).removesuffix(b"\r\n\r\n").removeprefix(b"NATS/1.0\r\n").split(b"\r\n")
    for others in (lines[::-1], [*lines, b"Nats-New: 1"], [b"Nats-New: 1", *lines]):
        headers = b"\r\n".join([b"NATS/1.0", b"A: 1", first, *others, b"", b""])
        message = direct_message(headers, b"a")
        assert message == StoredMessage(3, MILLISECONDS, "o.1", b"NATS/1.0\r\nA: 1\r\n\r\n", b"a")


def test_message_asked_for_alone() -> None:
    lines = b"Nats-Stream: S\r\nNats-Subject: o.1\r\nNats-Sequence: 4\r\nNats-Time-Stamp: %b\r\n\r\n" % TIME.encode()
    assert direct_message(b"NATS/1.0\r\n" + lines, b"a") == StoredMessage(4, MILLISECONDS, "o.1", b"", b"a")
    assert direct_message(*NOT_FOUND) is None
    with pytest.raises(JetStreamError):
        direct_message(b"", b"a")


@given(st.lists(st.tuples(st.binary(), st.binary()), min_size=1))
def test_any_replies_are_a_batch_or_an_error(replies: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(JetStreamError):
        batch_of(replies, 1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 6\r\n\r\n", 100),
        (b"NATS/1.0 503\r\n\r\n", 503),
        (b"NATS/1.0 404", 404),
        (b"", 0),
        (b"NATS/1.0\r\nA: 1\r\n\r\n", 0),
        (b"NATS/1.0 4", 0),
        (b"NATS/1.0 -10 x", 0),
        (b"NATS/1.0 x\r\n\r\n", 0),
        (b"X: NATS/1.0 404", 0),
    ],
)
def test_status_of(headers: bytes, status: int) -> None:
    assert status_of(headers) == status


# Messages of a feed

NANOSECONDS = b"1796055588783159783"
ACK = b"$JS.ACK.S.c1.1.1003.43.%b.5" % NANOSECONDS


@pytest.mark.parametrize(
    "reply",
    [
        ACK,
        b"$JS.ACK.hub.hash.S.c1.1.1003.43.%b.5" % NANOSECONDS,
        b"$JS.ACK._.hash.S.c1.1.1003.43.%b.5.token" % NANOSECONDS,
        b"$JS.ACK.hub.hash.S.c1.1.1003.43.%b.5.token.more.still" % NANOSECONDS,
    ],
)
def test_feed_metadata(reply: bytes) -> None:
    assert feed_metadata(reply) == (1003, 43, MILLISECONDS, 5)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"$JS.FC.S.c1.x",
        b"a.b.c.d.e.1.1.%b.1" % NANOSECONDS,
        ACK.rpartition(b".")[0],
        ACK + b".x",
        b"$JS.ACK.S.c1.1.x.43.%b.5" % NANOSECONDS,
        b"$JS.ACK.S.c1.1.1003.43.12345.5",
        b"$JS.ACK.S.c1.1.1003..%b.5" % NANOSECONDS,
        b"$JS.ACK.S.c1.1.%b.43.%b.5" % (b"9" * 5_000, NANOSECONDS),
        b"." * 10_000,
    ],
    ids=range(10),
)
def test_other_reply_subjects_have_no_metadata(reply: bytes) -> None:
    assert feed_metadata(reply) is None


@given(st.text(string.digits + ".-_ ACKJS$", max_size=60))
def test_any_reply_subject_has_metadata_or_none(reply: str) -> None:
    metadata = feed_metadata(b"$JS.ACK.S.c1.1." + reply.encode())
    assert metadata is None or len(metadata) == 4
