import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.errors import BridgeError, NoResponders, PublishUnknown, PublishUnstored, RequestFailed
from sanic_nats_bridge.publishing.results import Acknowledgement, Answer, read_acknowledgement, read_answer

NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"


@pytest.mark.parametrize(
    ("payload", "acknowledgement"),
    [
        (b'{"stream":"S","seq":42}', Acknowledgement("S", 42)),
        (b'{"stream":"S","domain":"hub","seq":1,"duplicate":true}', Acknowledgement("S", 1, duplicate=True)),
        (b'{"type":"x","error":null,"stream":"S","seq":18446744073709551615}', Acknowledgement("S", 2**64 - 1)),
    ],
)
def test_acknowledgement_names_stream_and_sequence(payload: bytes, acknowledgement: Acknowledgement) -> None:
    assert read_acknowledgement(b"", payload) == acknowledgement


def test_refusal_of_jetstream_has_its_description() -> None:
    answer = b'{"error":{"code":503,"err_code":10077,"description":"maximum messages\\nexceeded"},"stream":"S","seq":0}'
    with pytest.raises(PublishUnstored, match="JetStream has refused the message") as raised:
        read_acknowledgement(b"", answer)
    assert raised.value.description == "maximum messages\ufffdexceeded"


def test_earlier_attempt_in_process_leaves_the_outcome_unknown() -> None:
    error = b'{"code":409,"err_code":10158,"description":"duplicate message id is in process"}'
    with pytest.raises(PublishUnknown, match="still processes an earlier attempt"):
        read_acknowledgement(b"", b'{"error":%b,"stream":"S","seq":0}' % error)


def test_status_of_nats_means_that_nothing_receives_the_subject() -> None:
    with pytest.raises(PublishUnstored, match="no stream and no subscriber") as raised:
        read_acknowledgement(NO_RESPONDERS, b"")
    assert raised.value.description is None
    with pytest.raises(NoResponders):
        read_answer(NO_RESPONDERS, b"")


@pytest.mark.parametrize(
    "payload",
    [b"", b"ok", b"{}", b"[1]", b'{"stream":"S"}', b'{"stream":"","seq":1}', b'{"stream":"S","seq":0}', b"\xff",
     b'{"stream":"S","seq":-1}', b'{"stream":"S","seq":1e99}', b"[" * 100_000],
)  # fmt: skip
def test_answer_of_another_than_jetstream_leaves_the_outcome_unknown(payload: bytes) -> None:
    with pytest.raises(PublishUnknown, match="a subscriber that is not a stream"):
        read_acknowledgement(b"", payload)


def test_answer_has_data_and_headers() -> None:
    headers = b"NATS/1.0\r\nTrace: x\r\nTrace: y\r\n\r\n"
    answer = read_answer(headers, b'{"price":9.5}')
    assert (answer.data, answer.headers) == (b'{"price":9.5}', {"Trace": ["x", "y"]})
    assert answer.json() == {"price": 9.5}
    assert answer.json(dict[str, float]) == {"price": 9.5}
    assert (Answer(b"").headers, Answer(b"").data) == ({}, b"")


@pytest.mark.parametrize(
    ("headers", "code", "message"),
    [
        (b"NATS/1.0\r\nNats-Service-Error: sold out\r\nNats-Service-Error-Code: 410\r\n\r\n", "410", "sold out"),
        (b"NATS/1.0\r\nNats-Service-Error-Code: 500\r\n\r\n", "500", "500"),
        (b"NATS/1.0 408 Request Timeout\r\n\r\n", "408", "Request Timeout"),
        (b"NATS/1.0 404\r\n\r\n", "404", "404"),
        (b"NATS/1.0\r\nNats-Service-Error-Code: " + b"9" * 1000 + b"\r\n\r\n", "9" * 300, "9" * 300),
    ],
)
def test_error_of_a_service_has_its_code(headers: bytes, code: str, message: str) -> None:
    with pytest.raises(RequestFailed) as raised:
        read_answer(headers, b"{}")
    assert raised.value.service_code == code
    assert raised.value.message == f"The service has reported an error: {message}"


@pytest.mark.parametrize(
    "headers", [b"NATS/1.0\r\nNats-Service-Error-Code: \r\n\r\n", b"NATS/1.0\r\nX-service-a: 1\r\n\r\n"]
)
def test_answer_without_error_code_has_data(headers: bytes) -> None:
    assert read_answer(headers, b"1").data == b"1"


@given(st.binary() | st.binary().map(lambda rest: b"NATS/1.0 " + rest), st.binary())
def test_any_answer_has_a_result_or_a_bridge_error(headers: bytes, payload: bytes) -> None:
    for read in (read_acknowledgement, read_answer):
        with contextlib.suppress(BridgeError):
            read(headers, payload)
