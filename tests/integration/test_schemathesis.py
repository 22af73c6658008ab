"""The routes, held to their OpenAPI document by `schemathesis`."""

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from sanic_nats_bridge.protocol.headers import MAX_HEADERS, MAX_VALUE_BYTES, is_header_name
from sanic_nats_bridge.protocol.publish import MIN_ANONYMOUS_ID_CHARACTERS
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, running

# sanic-ext has one OpenAPI document for all apps of the process.
PREFIX = "/described"
MAX_EXAMPLES = settings().max_examples * 2 // 5
REAL = st.sampled_from([["a"], ["b.*"], ["a", "b.*"], ["a", "closed"], None, None])
# A valid command may be refused, but not as an invalid one. NATS has neither a stream nor a service.
EXPECTED = ["2xx", "403", "404", "409", "424"]
CONFIG = schemathesis.Config.from_dict({"checks": {"positive_data_acceptance": {"expected-statuses": EXPECTED}}})
SUBJECTS = st.sampled_from(["a", "b.c", "stored.a", "closed", "$SYS.a", None])


@pytest.fixture
async def described(shared_nats: NatsServer) -> AsyncIterator[Bridge]:
    # As many commands as come.
    limits: dict[str, Any] = {
        "command_rate": 1e6,
        "command_burst": 1_000_000,
        "publish_rate": 1e6,
        "publish_burst": 1_000_000,
        "max_bad_commands": 1_000_000,
    }
    async with running(
        servers=shared_nats.url,
        subscribe=["a", "b.*"],
        publish=["a", "b.*", "stored.*"],
        request=["a", "b.*"],
        publish_headers=["Trace"],
        prefix=PREFIX,
        metrics=True,
        **limits,
    ) as bridge:
        yield bridge


async def document(bridge: Bridge) -> dict[str, Any]:
    async with bridge.http.get(f"http://127.0.0.1:{bridge.port}/docs/openapi.json") as response:
        described: dict[str, Any] = await response.json()
    return described


def answers(operation: Any, mode: GenerationMode, base_url: str, session: str) -> Counter[int]:
    """Count the responses by status, and check that each response is as documented."""
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=MAX_EXAMPLES,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],  # made of a schema
    )
    @given(case=operation.as_strategy(generation_mode=mode), real=REAL, subject=SUBJECTS)
    def ask(case: Case[Any], real: list[str] | None, subject: str | None) -> None:
        if real and isinstance(case.body, dict) and isinstance(case.body.get("session"), str):
            # What is valid stays valid, and what is not stays so.
            case.body["session"] = session
            if mode is GenerationMode.POSITIVE:
                case.body["subjects"] = [*real]
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "subject" in case.body:
            case.body["subject"] = subject or case.body["subject"]
            follow_descriptions(case.body)
        statuses[case.call_and_validate(base_url=base_url, session=http).status_code] += 1

    with requests.Session() as http:
        ask()
    return statuses


def follow_descriptions(body: dict[str, Any]) -> None:
    """Change a publish or a request so that it keeps the rules that OpenAPI 3.0 can't express."""
    headers = body.get("headers", {})
    for name in [name for name in headers if not is_header_name(name)]:
        headers[f"X-{len(headers)}"] = headers.pop(name)
    while sum(map(len, headers.values())) > MAX_HEADERS:
        headers.popitem()
    for name, values in headers.items():
        headers[name] = [value.encode()[:MAX_VALUE_BYTES].decode(errors="ignore") for value in values]
    if not body.get("ack"):
        body.pop("msg_id", None)
    if "msg_id" in body:
        # This client has no identity.
        body["msg_id"] = body["msg_id"].ljust(MIN_ANONYMOUS_ID_CHARACTERS, "0")
    if "encoding" in body:
        body |= {"data": base64.b64encode(repr(body.get("data")).encode()).decode()}


# Hypothesis takes the random numbers of the bridge, which runs in another thread, for those of a strategy.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.parametrize(
    ("mode", "reached"),
    [
        (
            GenerationMode.POSITIVE,
            {
                "subscribe": {200, 403, 404},
                "unsubscribe": {200, 404, 409},
                "publish": {200, 403, 424},
                "request": {403, 424},
            },
        ),
        (GenerationMode.NEGATIVE, {name: {400} for name in ("subscribe", "unsubscribe", "publish", "request")}),
    ],
)
async def test_post_command_responses_match_openapi_document(
    described: Bridge, mode: GenerationMode, reached: dict[str, set[int]]
) -> None:
    schema = schemathesis.openapi.from_dict(await document(described), config=CONFIG)
    base_url = f"http://127.0.0.1:{described.port}"
    async with described.websocket() as client:
        await client.follow("a")
        for name, expected in reached.items():
            operation = schema[f"{PREFIX}/{name}"]["POST"]
            statuses = await asyncio.to_thread(answers, operation, mode, base_url, client.session)
            assert statuses.keys() >= expected, statuses
        assert (await client.ask({"action": "ping"}))["message"] == "pong"


# Not /events: an accepted stream doesn't end, and so its response is never complete.
@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
async def test_get_responses_match_openapi_document(described: Bridge, path: str) -> None:
    schema = schemathesis.openapi.from_dict(await document(described))
    operation = schema[f"{PREFIX}{path}"]["GET"]
    base_url = f"http://127.0.0.1:{described.port}"
    statuses = await asyncio.to_thread(answers, operation, GenerationMode.POSITIVE, base_url, "")
    assert statuses.keys() == {200}
