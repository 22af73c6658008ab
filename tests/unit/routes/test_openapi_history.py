"""The parts of the OpenAPI document that a server with history adds."""

import json
import re
from typing import Any

import jsonschema_rs
import pytest
from sanic_ext.extensions.openapi.builders import OperationStore

from sanic_nats_bridge.errors import InvalidCommand
from sanic_nats_bridge.protocol.messages import Action, Command, decode_command, encode, query_command, success_reply
from sanic_nats_bridge.protocol.start import read_from
from sanic_nats_bridge.routes.openapi import describe_command, describe_events
from sanic_nats_bridge.settings import Settings

Json = dict[str, Any]


def described(decorate: Any) -> Json:
    """Return the description of a route."""

    async def handler() -> None:
        """Serve nothing."""

    # The store is replaced as long as it is empty.
    decorated = decorate(handler)
    built = OperationStore()[decorated].build()  # type: ignore[no-untyped-call]
    operation: Json = json.loads(json.dumps(built.serialize()))
    return operation


def command(action: Action, *, history: bool) -> Json:
    return described(describe_command(action, Settings(), history=history))


def events(*, history: bool) -> Json:
    return described(describe_events(Settings(), history=history))


def body_schema(operation: Json) -> Json:
    schema: Json = operation["requestBody"]["content"]["application/json"]["schema"]
    return schema


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"from": "new"},
        {"from": "all"},
        {"from": "last_per_subject"},
        {"from": {"last": 1}},
        {"from": {"last": 5}, "after": "k3f9x2.m2k.sz3k1x"},
        {"from": "oldest"},
        {"from": {"last": 0}},
        {"from": {"last": "1"}},
        {"from": {"last": 1, "more": 1}},
        {"from": {}},
        {"from": None},
        {"from": True},
        {"after": 7},
        {"after": None},
    ],
    ids=json.dumps,
)
def test_start_is_valid_in_schema_if_decoder_accepts_it(start: Json) -> None:
    given = {"session": "3f9c", "subjects": ["orders.new"]} | start
    validator = jsonschema_rs.Draft4Validator(body_schema(command("subscribe", history=True)))
    try:
        decode_command(json.dumps(given).encode(), "subscribe", history=True)
    except InvalidCommand:
        assert not validator.is_valid(given)
    else:
        validator.validate(given)


def test_reply_with_history_is_valid_in_schema() -> None:
    schema = command("subscribe", history=True)["responses"]["200"]["content"]["application/json"]["schema"]
    asked = Command(action="subscribe", id="1")
    for resumable in (["a", "b"], ["a"], []):
        reply = success_reply(asked, ["a", "b"], True, resumable=resumable, recovered=True)
        shown = json.loads(encode(reply))
        jsonschema_rs.Draft4Validator(schema).validate(shown)
        assert shown.keys() <= schema["properties"].keys()
    assert {"resumable", "recovered"} & set(schema["required"]) == set()


def test_start_parameters_of_query_have_valid_examples() -> None:
    parameters = {parameter["name"]: parameter for parameter in events(history=True)["parameters"]}
    assert list(parameters) == ["subjects", "protocol", "after", "from"]
    query = {name: [parameters[name]["schema"]["example"]] for name in ("after", "from")}
    asked = query_command({"subjects": ["a"]} | query, history=True)
    assert asked == Command(
        action="subscribe", subjects=["a"], after=query["after"][0], from_=read_from(query["from"][0])
    )


@pytest.mark.parametrize("path", ["subscribe", "events"])
def test_errors_of_history_are_described_by_status(path: str) -> None:
    operation = events(history=True) if path == "events" else command("subscribe", history=True)
    for status, code in (("403", "history.forbidden"), ("409", "history.unavailable")):
        (content,) = operation["responses"][status]["content"].values()
        assert code in content["schema"]["properties"]["code"]["enum"]
        assert f"{code}: " in operation["responses"][status]["description"]
        jsonschema_rs.Draft4Validator(content["schema"]).validate(content["example"])


def test_descriptions_have_no_names_of_fields() -> None:
    for operation in (events(history=True), command("subscribe", history=True)):
        for text in re.findall(r'"description": "([^"]*)"', json.dumps(operation)):
            assert not re.search(r"`|\w_\w|\(\)", text.replace("history.", ""))


def test_server_without_history_describes_nothing_of_it() -> None:
    shown = json.dumps([events(history=False), command("subscribe", history=False)])
    assert not re.search(r'history|resum|recovered|"after"|"from"', shown)


def test_unsubscribe_has_no_history() -> None:
    assert command("unsubscribe", history=True) == command("unsubscribe", history=False)
