import json
from typing import Any

import msgspec
import pytest

from sanic_nats_bridge import errors
from sanic_nats_bridge.errors import BridgeError
from sanic_nats_bridge.protocol.encoding import EncodedMessage, MessagePrefix, WireFormat, encode_frame
from sanic_nats_bridge.protocol.messages import Outcome, Reply, encode, failure_reply
from sanic_nats_bridge.protocol.publish import PublishCommand
from sanic_nats_bridge.protocol.publish_replies import answered_reply, published_reply, stored_reply

PUBLISH = PublishCommand(action="publish", subject="rooms.7.say", payload=b"1", id="5")
REQUEST = PublishCommand(action="request", subject="svc.price", payload=b"1", id="6")
BLOCK = b"NATS/1.0\r\nTrace: x\r\nSecret: y\r\nTrace: z\r\n\r\n"


def shown(reply: Reply) -> Any:
    return json.loads(encode(reply))


def test_publish_without_acknowledgement_is_confirmed() -> None:
    assert shown(published_reply(PUBLISH)) == {
        "type": "reply",
        "id": "5",
        "action": "publish",
        "success": True,
        "message": "Successfully published to: 'rooms.7.say'",
    }
    assert "id" not in shown(published_reply(msgspec.structs.replace(PUBLISH, id=msgspec.UNSET)))


@pytest.mark.parametrize("duplicate", [False, True])
def test_stored_publish_names_its_place(duplicate: bool) -> None:
    reply = shown(stored_reply(PUBLISH, "ROOMS", 42, duplicate=duplicate))
    assert reply == shown(published_reply(PUBLISH)) | {"stream": "ROOMS", "sequence": 42, "duplicate": duplicate}


@pytest.mark.parametrize(
    "payload", [b'{"price": 9.50}', b"", b"text", b"\xff", b"[1,\r\n2]", b"12345678901234567890123", "größe".encode()]
)
@pytest.mark.parametrize("block", [None, b"", BLOCK])
@pytest.mark.parametrize("names", [frozenset(), frozenset({"Trace"})])
def test_answer_has_the_form_of_a_message(payload: bytes, block: bytes | None, names: frozenset[str]) -> None:
    reply = answered_reply(REQUEST, payload, block, names)
    headers = b'{"Trace":["x","z"]}' if block and names else b""
    message = EncodedMessage(MessagePrefix("svc.price"), "svc.price", headers, payload)
    expected = json.loads(message.encoded(WireFormat.JSON_LINES)) | {
        "type": "reply",
        "id": "6",
        "action": "request",
        "success": True,
        "message": "Successfully requested: 'svc.price'",
    }
    assert shown(reply) == expected
    assert encode_frame(reply, WireFormat.JSON_LINES).count(b"\n") == 1
    assert encode(msgspec.json.decode(encode(reply), type=Reply)) == encode(reply)


def test_answer_keeps_digits_of_numbers() -> None:
    assert b'"data":9.50000000000000000001' in encode(
        answered_reply(REQUEST, b"9.50000000000000000001", None, frozenset())
    )


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (
            errors.PublishUnstored("No", ["a"], "maximum messages exceeded"),
            {"description": "maximum messages exceeded"},
        ),
        (errors.PublishUnstored("No", ["a"]), {}),
        (errors.RequestFailed("No", ["a"], "404"), {"service_code": "404"}),
        (errors.RequestFailed("No", ["a"], ""), {}),
        (errors.PublishRateExceeded("No", ["a"], 0.0421), {"retry": 43}),
        (errors.RequestLimitExceeded("No", ["a"], 2), {"retry": 2000}),
        (errors.RequestLimitExceeded("No", ["a"]), {"retry": 0}),
        (errors.RateLimitExceeded("No", ["a"], 2), {}),
        (errors.PublishInvalid("No", ["a"]), {}),
        (errors.PublishForbidden("No", ["a"]), {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BridgeError) else "",
)
def test_failed_reply_has_the_fields_of_its_error(error: BridgeError, fields: dict[str, Any]) -> None:
    expected = {"type": "reply", "action": "publish", "success": False, "code": error.code, "message": "No"}
    assert shown(failure_reply(error, "publish")) == expected | {"subjects": ["a"]} | fields
    assert Outcome.rejected(error, "publish", "1").reply == failure_reply(error, "publish", "1")
