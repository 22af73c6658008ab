import json
from typing import Any

import jsonschema_rs
import pytest

from sanic_nats_bridge.errors import (
    BridgeError,
    InternalError,
    InvalidCommand,
    PublishUnstored,
    RequestFailed,
    RequestLimitExceeded,
    SizeLimitExceeded,
)
from sanic_nats_bridge.protocol.messages import encode, failure_reply
from sanic_nats_bridge.routes.openapi_parts import (
    MEANINGS,
    error_responses,
    object_schema,
    reply_schema,
    subjects_schema,
)


def content_of(response: Any) -> Any:
    (content,) = response.fields["content"].values()
    return content


def test_errors_are_described_by_status_with_example() -> None:
    examples = [InternalError("Internal error"), InvalidCommand("Not so")]
    responses = error_responses(examples, [SizeLimitExceeded], "subscribe", "1")
    assert [response.fields["status"] for response in responses] == [400, 500]
    content = content_of(responses[0])
    assert content["example"] == json.loads(encode(failure_reply(examples[1], "subscribe", "1")))
    assert content["schema"]["properties"]["code"]["enum"] == ["command.invalid"]
    assert responses[0].fields["description"] == f"command.invalid: {MEANINGS[InvalidCommand]}"


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (PublishUnstored("No", ["a"], "full"), "description"),
        (RequestFailed("No", ["a"], "404"), "service_code"),
        (RequestLimitExceeded("No", ["a"], 1), "retry"),
    ],
)
def test_failed_reply_has_the_fields_of_its_errors(error: BridgeError, field: str) -> None:
    meanings = MEANINGS | {type(error): "none"}
    (response,) = error_responses([error], [], "publish", meanings=meanings)
    content = content_of(response)
    assert field in content["example"]
    assert content["example"].keys() <= content["schema"]["properties"].keys()
    jsonschema_rs.Draft4Validator(content["schema"]).validate(content["example"])
    assert field not in content_of(error_responses([InternalError("No")], [], "publish")[0])["schema"]["properties"]


def test_schemas_require_the_fields_of_every_reply() -> None:
    schema = reply_schema("publish", {"success": {"type": "boolean"}})
    assert schema["required"] == ["type", "action", "success", "message"]
    assert "id" in schema["properties"]
    assert object_schema(a={"type": "string"})["required"] == ["a"]
    assert subjects_schema("Those")["items"] == {"type": "string"}
