"""The descriptions of the routes by which clients publish and send requests."""

import json
import re
from typing import Any

import jsonschema_rs
import pytest

from sanic_nats_bridge import errors
from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.errors import BridgeError
from sanic_nats_bridge.protocol.messages import encode
from sanic_nats_bridge.protocol.publish import PublishAction, decode_publish
from sanic_nats_bridge.protocol.publish_replies import answered_reply, published_reply, stored_reply
from sanic_nats_bridge.routes.openapi_publish import describe_publish
from sanic_nats_bridge.settings import Settings
from tests.unit.routes.test_openapi_history import Json, body_schema, described

BOTH = pytest.mark.parametrize("action", ["publish", "request"])
STATUSES = {
    "publish": {200, 400, 401, 403, 413, 415, 422, 424, 429, 500, 503},
    "request": {200, 400, 401, 403, 413, 415, 424, 429, 500, 503},
}


def route(action: PublishAction) -> Json:
    return described(describe_publish(action, Settings()))


def contents(operation: Json) -> dict[int, Any]:
    return {int(status): response["content"]["application/json"] for status, response in operation["responses"].items()}


@BOTH
def test_every_example_is_valid_in_its_schema(action: PublishAction) -> None:
    operation = route(action)
    assert contents(operation).keys() == STATUSES[action]
    for content in (*contents(operation).values(), operation["requestBody"]["content"]["application/json"]):
        jsonschema_rs.Draft4Validator(content["schema"]).validate(content["example"])
        assert content["example"].keys() <= content["schema"]["properties"].keys()


@BOTH
def test_example_of_request_is_a_command_that_may_be_allowed(action: PublishAction) -> None:
    body = route(action)["requestBody"]["content"]["application/json"]["example"]
    command = decode_publish(json.dumps(body).encode(), action)
    assert json.loads(command.payload) == body["data"]
    settings = Settings.resolve({action: [command.subject]}, {})
    assert settings.publish_policy().authorize(settings.default_permissions, command).subject == command.subject


WRONG: list[Json] = [
    {"subject": ""},
    {"subject": "rooms.*"},
    {"subject": ">"},
    {"subject": "a b"},
    {"subject": 5},
    {"action": "subscribe"},
    {"encoding": "json"},
    {"headers": {"A": []}},
    {"headers": {"A": "x"}},
    {"headers": {"A": ["x\r\n"]}},
    {"headers": {"A": ["x"] * 17}},
    {"headers": {f"A{number}": ["x"] for number in range(17)}},
    {"id": 1.5},
    {"ack": "true"},
    {"ack": True, "msg_id": "a b"},
    {"timeout": 0},
    {"timeout": "2"},
]
RIGHT: list[Json] = [
    {},
    {"data": None},
    {"data": [1, "a", {}]},
    {"subject": "$KV.prefs.a"},
    {"data": "YQ==", "encoding": "base64"},
    {"data": "a", "encoding": "text"},
    {"headers": {"A": ["x", ""], "B": ["größe"]}},
    {"ack": True, "msg_id": "x" * 64},
    {"ack": False},
    {"timeout": 0.5},
    {"timeout": 60, "later": 1},
    {"id": 7},
]


@BOTH
@pytest.mark.parametrize("fields", [*WRONG, *RIGHT], ids=lambda fields: json.dumps(fields)[:40])
def test_command_is_valid_in_schema_if_bridge_accepts_it(action: PublishAction, fields: Json) -> None:
    given = {"subject": "a"} | fields
    schema = body_schema(route(action))
    accepted = True
    try:
        command = decode_publish(json.dumps(given).encode(), action)
        Permissions(publish=[">", "$KV.>"], request=[">", "$KV.>"]).authorize_publish(command.subject, action)
    except BridgeError:
        accepted = False
    assert accepted is (fields in RIGHT)
    if fields.keys() <= schema["properties"].keys() | {"later"}:  # not those of the other action
        assert jsonschema_rs.Draft4Validator(schema).is_valid(given) is accepted


def test_replies_are_valid_in_schemas() -> None:
    publish, request = (contents(route(action))[200]["schema"] for action in ("publish", "request"))
    command = decode_publish(b'{"subject":"a","id":"1"}', "publish")
    asked = decode_publish(b'{"subject":"a"}', "request")
    replies = [
        (publish, published_reply(command)),
        (publish, stored_reply(command, "S", 1, duplicate=True)),
        *((request, answered_reply(asked, payload, None, frozenset())) for payload in (b"", b"1", b"text", b"\xff")),
        (request, answered_reply(asked, b"1", b"NATS/1.0\r\nA: x\r\n\r\n", frozenset({"A"}))),
    ]
    for schema, reply in replies:
        shown = json.loads(encode(reply))
        jsonschema_rs.Draft4Validator(schema).validate(shown)
        assert shown.keys() <= schema["properties"].keys()


@BOTH
def test_every_code_belongs_to_its_status(action: PublishAction) -> None:
    described_codes = set()
    for status, content in contents(route(action)).items():
        if status == 200:
            continue
        codes = content["schema"]["properties"]["code"]["enum"]
        known = {error.code for error in vars(errors).values() if getattr(error, "http_status", None) == status}
        assert set(codes) <= known
        assert len(set(codes)) == len(codes)
        assert content["example"]["code"] == codes[0]
        described_codes |= set(codes)
    own = {f"{action}.{reason}" for reason in ("forbidden",)} | {"subject.invalid", "limit.size", "limit.publish"}
    others = {"publish.invalid", "publish.unstored", "publish.unknown"}
    if action == "request":
        others = {"request.no_responders", "request.timeout", "request.failed", "limit.requests", "publish.forbidden"}
    assert described_codes >= own | others
    assert ("limit.requests" in described_codes) is (action == "request")


@BOTH
def test_descriptions_have_no_names_of_fields(action: PublishAction) -> None:
    codes = re.compile("|".join(re.escape(code) for code in ("request.no_responders",)))
    for text in re.findall(r'"(?:description|summary)": "([^"]*)"', json.dumps(route(action))):
        assert not re.search(r"`|\w_\w|\(\)", codes.sub("", text)), text
