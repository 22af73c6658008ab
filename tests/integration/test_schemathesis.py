"""The routes, held to their OpenAPI document by `schemathesis`."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, running

# sanic-ext has one OpenAPI document for all apps of the process.
PREFIX = "/described"
MAX_EXAMPLES = settings().max_examples * 2 // 5
REAL = st.sampled_from([["a"], ["b.*"], ["a", "b.*"], ["a", "closed"], None, None])


@pytest.fixture
async def described(shared_nats: NatsServer) -> AsyncIterator[Bridge]:
    # As many commands as come.
    limits: dict[str, Any] = {"command_rate": 1e6, "command_burst": 1_000_000, "max_bad_commands": 1_000_000}
    async with running(
        servers=shared_nats.url, subscribe=["a", "b.*"], prefix=PREFIX, metrics=True, **limits
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
    @given(case=operation.as_strategy(generation_mode=mode), real=REAL)
    def ask(case: Case[Any], real: list[str] | None) -> None:
        if real and isinstance(case.body, dict) and isinstance(case.body.get("session"), str):
            # What is valid stays valid, and what is not stays so.
            case.body["session"] = session
            if mode is GenerationMode.POSITIVE:
                case.body["subjects"] = [*real]
        statuses[case.call_and_validate(base_url=base_url, session=http).status_code] += 1

    with requests.Session() as http:
        ask()
    return statuses


# Hypothesis takes the random numbers of the bridge, which runs in another thread, for those of a strategy.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.parametrize(
    ("mode", "reached"),
    [
        (GenerationMode.POSITIVE, {"subscribe": {200, 403, 404}, "unsubscribe": {200, 404, 409}}),
        (GenerationMode.NEGATIVE, {"subscribe": {400}, "unsubscribe": {400}}),
    ],
)
async def test_post_command_responses_match_openapi_document(
    described: Bridge, mode: GenerationMode, reached: dict[str, set[int]]
) -> None:
    schema = schemathesis.openapi.from_dict(await document(described))
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
