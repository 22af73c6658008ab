"""The bodies of POSTs, on every route that takes one."""

import gzip
import json
from typing import Any

import pytest

from tests.support.bridge import Bridge

BODIES: dict[str, dict[str, Any]] = {
    "/subscribe": {"session": "none", "subjects": ["a"]},
    "/unsubscribe": {"session": "none", "subjects": ["a"]},
    "/publish": {"subject": "a"},
    "/request": {"subject": "a"},
}


@pytest.fixture(params=BODIES)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def refusal(bridge: Bridge, path: str, body: bytes, **headers: str) -> tuple[int, str]:
    status, reply = await bridge.post(path, body, **headers)
    assert (reply["action"], reply["success"]) == (path.removeprefix("/"), False)
    return status, reply["code"]


async def test_body_must_be_declared_as_json(bridge: Bridge, path: str) -> None:
    body = json.dumps(BODIES[path]).encode()
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert await refusal(bridge, path, body, **{"Content-Type": media_type}) == (415, "command.invalid")


async def test_body_must_not_be_compressed(bridge: Bridge, path: str) -> None:
    body = gzip.compress(json.dumps(BODIES[path]).encode())
    assert await refusal(bridge, path, body, **{"Content-Encoding": "gzip"}) == (415, "command.invalid")


async def test_body_beyond_the_limit_is_refused(bridge: Bridge, path: str) -> None:
    body = json.dumps(BODIES[path] | {"padding": "x" * bridge.extension.settings.max_command_bytes}).encode()
    assert await refusal(bridge, path, body) == (413, "limit.size")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"subject":1,"subjects":1}', b"[" * 60_000])
async def test_body_must_be_a_command(bridge: Bridge, path: str, body: bytes) -> None:
    assert await refusal(bridge, path, body) == (400, "command.invalid")


async def test_body_names_the_id_of_the_reply(bridge: Bridge, path: str) -> None:
    body: dict[str, Any] = {"id": "7", "subject": 1, "subjects": 1}
    _, reply = await bridge.post(path, body)
    assert reply["id"] == "7"
