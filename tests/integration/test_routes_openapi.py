"""The OpenAPI document of the bridge: the listed routes, the schemas, and the examples against real responses."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any
from uuid import uuid4

import aiohttp
import jsonschema_rs
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from sanic import Request, Sanic

from sanic_nats_bridge import NatsBridge, Permissions, errors
from sanic_nats_bridge.errors import BridgeError
from sanic_nats_bridge.protocol import messages
from sanic_nats_bridge.protocol.session_ids import worker_of
from sanic_nats_bridge.protocol.subjects import is_valid
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, WebSocketClient, running, served, until

Json = dict[str, Any]

COMMANDS = {"/subscribe", "/unsubscribe"}
PUBLISHES = {"/publish", "/request"}
HEALTH = {"/health/live", "/health/ready"}
LISTED = {path: {"post"} for path in COMMANDS | PUBLISHES} | {
    path: {"get"} for path in {"/events", "/metrics"} | HEALTH
}
STATUSES = {
    "/subscribe": {200, 400, 401, 403, 404, 413, 415, 429, 500, 503},
    "/unsubscribe": {200, 400, 401, 403, 404, 409, 413, 415, 429, 500, 503},
    "/publish": {200, 400, 401, 403, 413, 415, 422, 424, 429, 500, 503},
    "/request": {200, 400, 401, 403, 413, 415, 424, 429, 500, 503},
    "/events": {200, 400, 401, 403, 429},
    "/health/live": {200},
    "/health/ready": {200, 503},
    "/metrics": {200},
}
KINDS = [
    kind
    for kind in map(vars(errors).get, errors.__all__)
    if isinstance(kind, type) and issubclass(kind, BridgeError) and kind is not BridgeError
]
PYTHON_NAMES = {name for name in (*errors.__all__, *messages.__all__) if "_" in name or re.search(r"[a-z][A-Z]", name)}


def permissions(request: Request) -> Permissions | None:
    """Return the permissions of a client, by a header."""
    client = request.headers.get("x-client")
    if client == "broken":
        raise RuntimeError("the app's own fault")
    if client == "unknown":
        return None
    return Permissions(["orders.new"] if client == "narrow" else [">"])


# sanic-ext has one document for all apps of the process, and so each app has a prefix of its own.
_numbers = count()


def new_prefix() -> str:
    return f"/openapi{next(_numbers)}"


async def described_paths(bridge: Bridge) -> Json:
    """Return the bridge's part of the document, by the paths below its prefix."""
    async with bridge.http.get(f"http://127.0.0.1:{bridge.port}/docs/openapi.json") as response:
        paths = (await response.json())["paths"]
    return {path.removeprefix(bridge.prefix): item for path, item in paths.items() if path.startswith(bridge.prefix)}


@pytest.fixture
async def described(shared_nats: NatsServer) -> AsyncIterator[Bridge]:
    async with running(
        servers=shared_nats.url, permissions=permissions, prefix=new_prefix(), metrics=True, max_subscriptions=2
    ) as bridge:
        yield bridge


@pytest.fixture
async def paths(described: Bridge) -> Json:
    return await described_paths(described)


def operations(paths: Json) -> Iterator[tuple[str, Json]]:
    for path, item in paths.items():
        yield from ((path, operation) for operation in item.values())


def example_of(paths: Json, path: str, status: int) -> Any:
    """Return the example of the first content type."""
    (operation,) = paths[path].values()
    return next(iter(operation["responses"][str(status)]["content"].values()))["example"]


def request_of(paths: Json, path: str) -> Json:
    request: Json = paths[path]["post"]["requestBody"]["content"]["application/json"]["example"]
    return request


def nested(value: Any) -> Iterator[Json]:
    """Yield all objects in a document."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from nested(inner)


def frames_of(stream: str) -> list[tuple[list[str], Json]]:
    """Return the names of the fields and the data of each complete event, without heartbeats, which time decides."""
    found = []
    for event in stream.split("\n\n")[:-1]:
        fields = [line.partition(": ") for line in event.split("\n")]
        frame = json.loads(fields[-1][2])
        if frame["type"] != "heartbeat":
            found.append(([name for name, _, _ in fields], frame))
    return found


# The listed routes


async def test_document_lists_http_routes_without_head_websocket_and_scripts(paths: Json) -> None:
    assert {path: set(item) for path, item in paths.items()} == LISTED
    for path, operation in operations(paths):
        assert {int(status) for status in operation["responses"]} == STATUSES[path]
        assert operation["tags"] == ["NATS bridge"]
        assert operation["summary"]


async def test_metrics_are_listed_only_if_served(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, prefix=new_prefix()) as bridge:
        assert set(await described_paths(bridge)) == LISTED.keys() - {"/metrics"}


async def test_bridge_without_prefix_is_listed_at_root(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, prefix="", metrics=True) as bridge:
        paths = await described_paths(bridge)
    # The paths of other apps of this process are empty.
    assert {path: set(item) for path, item in paths.items() if item} == LISTED


async def test_bridge_works_if_app_has_disabled_openapi(shared_nats: NatsServer) -> None:
    app: Sanic[Any, Any] = Sanic(f"test_{uuid4().hex}", configure_logging=False)
    app.config.OAS = False
    bridge = NatsBridge(app, servers=shared_nats.url, subscribe=["a"], metrics=True)
    async with served(app) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        await until(lambda: bridge._on_app.sessions.hub.connected)
        async with http.get("/docs/openapi.json") as response:
            assert response.status == 404
        for path in ("/nats/health/live", "/nats/metrics"):
            async with http.get(path) as response:
                assert response.status == 200
        async with Bridge(app, bridge, port).websocket() as client:
            command = {"session": client.session, "subjects": ["a"]}
            async with http.post("/nats/subscribe", json=command) as response:
                assert (response.status, (await response.json())["active"]) == (200, True)


async def test_parameters_of_event_stream_are_those_of_protocol(paths: Json) -> None:
    subjects, protocol = paths["/events"]["get"]["parameters"]
    assert [(part["name"], part["in"], part.get("required", False)) for part in (subjects, protocol)] == [
        ("subjects", "query", False),
        ("protocol", "query", False),
    ]
    # Form and explode are the defaults of a query in OpenAPI: the parameter is repeated.
    assert not {"style", "explode"} & subjects.keys()
    assert (subjects["schema"]["type"], subjects["schema"]["maxItems"]) == ("array", 2)
    assert protocol["schema"]["enum"] == [messages.PROTOCOL_VERSION]


async def test_descriptions_have_no_python_names(paths: Json) -> None:
    texts = [part[key] for part in nested(paths) for key in ("summary", "description", "title") if key in part]
    # One field of the replies has the name of such a key.
    texts = [text for text in texts if isinstance(text, str)]
    assert len(texts) > 50
    codes = re.compile("|".join(re.escape(kind.code) for kind in KINDS))
    for text in texts:
        prose = codes.sub("", text)
        assert not re.search(r"`|\w_\w|\(\)", prose), text
        assert not PYTHON_NAMES & set(re.findall(r"\w+", prose)), text


# The schemas


async def test_every_example_is_valid_in_its_schema(paths: Json) -> None:
    contents = [part for part in nested(paths) if "schema" in part and "example" in part]
    assert len(contents) == sum(map(len, STATUSES.values())) + len(COMMANDS | PUBLISHES) + 1  # requests, OpenMetrics
    for content in contents:
        jsonschema_rs.Draft4Validator(content["schema"]).validate(content["example"])
    schemas = [part for part in nested(paths) if "type" in part and "example" in part and "success" not in part]
    assert schemas
    for schema in schemas:
        jsonschema_rs.Draft4Validator(schema).validate(schema["example"])


async def test_every_response_has_an_example_and_no_other_field_in_it(paths: Json) -> None:
    for _, operation in operations(paths):
        for response in operation["responses"].values():
            for media_type, content in response["content"].items():
                if media_type == "application/json":
                    assert content["example"].keys() <= content["schema"]["properties"].keys()
                else:
                    assert content["example"].endswith("\n")


@pytest.mark.parametrize("path", [*sorted(COMMANDS | PUBLISHES), "/events"])
async def test_error_example_and_codes_belong_to_their_status(paths: Json, path: str) -> None:
    (operation,) = paths[path].values()
    for status, response in operation["responses"].items():
        if status == "200":
            continue
        (content,) = response["content"].values()
        codes = content["schema"]["properties"]["code"]["enum"]
        assert set(codes) <= {kind.code for kind in KINDS if str(kind.http_status) == status}
        assert len(codes) == len(set(codes))
        assert all(f"{code}: " in response["description"] for code in codes)
        assert content["example"]["code"] == codes[0]
        assert content["example"]["success"] is False


@pytest.mark.parametrize("path", sorted(LISTED))
async def test_success_is_true_under_200_and_false_under_errors(paths: Json, path: str) -> None:
    (operation,) = paths[path].values()
    name = {"/health/live": "live", "/health/ready": "ready"}.get(path, "success")
    for status, response in operation["responses"].items():
        for media_type, content in response["content"].items():
            if media_type == "application/json":
                schema = content["schema"]
                assert (schema["properties"][name]["enum"], name in schema["required"]) == ([status == "200"], True)
                wrong = content["example"] | {name: status != "200"}
                assert not jsonschema_rs.Draft4Validator(schema).is_valid(wrong)


async def test_request_examples_are_plausible(paths: Json) -> None:
    for path in COMMANDS:
        request = request_of(paths, path)
        assert worker_of(request["session"]) is not None
        assert all(map(is_valid, request["subjects"]))
        assert request["subjects"] == paths["/events"]["get"]["parameters"][0]["schema"]["example"]


async def test_examples_keep_to_limit_of_one_subscription(shared_nats: NatsServer) -> None:
    async with running(servers=shared_nats.url, prefix=new_prefix(), max_subscriptions=1) as bridge:
        paths = await described_paths(bridge)
    for content in (part for part in nested(paths) if "schema" in part and "example" in part):
        jsonschema_rs.Draft4Validator(content["schema"]).validate(content["example"])


# Real responses


@pytest.mark.parametrize("path", sorted(COMMANDS))
async def test_example_of_command_is_answered_by_example_of_reply(described: Bridge, paths: Json, path: str) -> None:
    command = request_of(paths, path)
    async with described.websocket() as client:
        if path == "/unsubscribe":
            await client.follow(*command["subjects"])
        answer = await described.post(path, command | {"session": client.session})
    assert answer == (200, example_of(paths, path, 200))


async def rejected(bridge: Bridge, client: WebSocketClient, path: str, status: int, command: Json) -> Any:
    """Return the response to the example of a command, changed so that it has this status."""
    valid = command | {"session": client.session}
    if status == 400:
        return await bridge.post(path, {**valid, "subjects": []})
    if status == 413:
        return await bridge.post(path, valid | {"rest": "x" * 65_536})
    if status == 403 and path == "/unsubscribe":
        return await bridge.post(path, valid, Origin="https://evil.example")
    # No worker has the session of the example.
    body = command if status == 404 else valid
    headers = {401: {"X-Client": "unknown"}, 415: {"Content-Type": "text/plain"}, 500: {"X-Client": "broken"}}
    return await bridge.post(path, body, **headers.get(status, {}))


@pytest.mark.parametrize(
    ("path", "status"),
    [(path, status) for path in sorted(COMMANDS) for status in sorted(STATUSES[path] - {200, 429, 503})],
)
async def test_example_of_error_matches_response(described: Bridge, paths: Json, path: str, status: int) -> None:
    async with described.websocket(additional_headers={"X-Client": "narrow"}) as client:
        await client.follow("orders.new")
        answer = await rejected(described, client, path, status, request_of(paths, path))
    expected = example_of(paths, path, status)
    if path == "/unsubscribe" and status == 403:
        del expected["id"]  # rejected before the body is read
    assert answer == (status, expected)


@pytest.mark.parametrize("path", sorted(COMMANDS))
async def test_example_of_rate_limit_matches_response(shared_nats: NatsServer, path: str) -> None:
    # The next command would be accepted after more than a day.
    limits: Json = {"command_rate": 1e-5, "command_burst": 1}
    async with running(servers=shared_nats.url, subscribe=[">"], prefix=new_prefix(), **limits) as bridge:
        paths = await described_paths(bridge)
        async with bridge.websocket() as client:
            await client.follow("orders.new")
            answer = await bridge.post(path, request_of(paths, path) | {"session": client.session})
    assert answer == (429, example_of(paths, path, 429))


@pytest.mark.parametrize("path", sorted(COMMANDS))
async def test_example_of_disconnected_nats_matches_response(nats_server: NatsServer, path: str) -> None:
    nats_server.stop()
    async with running(servers=nats_server.url, subscribe=[">"], prefix=new_prefix(), connected=False) as bridge:
        paths = await described_paths(bridge)
        assert await bridge.post(path, request_of(paths, path)) == (503, example_of(paths, path, 503))


async def test_example_of_event_stream_matches_response(described: Bridge, paths: Json) -> None:
    subjects = paths["/events"]["get"]["parameters"][0]["schema"]["example"]
    content_types = paths["/events"]["get"]["responses"]["200"]["content"].keys()
    stream = ""
    params = [("subjects", subject) for subject in subjects]
    async with described.http.get(f"{described.url}/events", params=params) as response:
        assert response.content_type in content_types
        while len(frames_of(stream)) < 2:
            stream += (await response.content.readany()).decode()
        assert described.extension.client is not None
        await described.extension.client.publish("orders.new", b'{"order":42}')
        while len(frames_of(stream)) < 3:
            stream += (await response.content.readany()).decode()
    sent, expected = frames_of(stream), frames_of(example_of(paths, "/events", 200))
    assert len(sent[0][1].pop("session")) == len(expected[0][1].pop("session"))
    assert sent == expected


@pytest.mark.parametrize(
    ("status", "client", "subjects"),
    [
        (400, "", ["orders..new"]),
        (401, "unknown", []),
        (403, "narrow", ["orders.new", "invoices.>"]),
        (429, "", ["a", "b", "c"]),
    ],
)
async def test_example_of_rejected_event_stream_matches_response(
    described: Bridge, paths: Json, status: int, client: str, subjects: list[str]
) -> None:
    params = [("subjects", subject) for subject in subjects]
    async with described.http.get(f"{described.url}/events", params=params, headers={"X-Client": client}) as response:
        answer = response.status, await response.json()
    if status == 429:
        assert answer[1].pop("subjects") == subjects
    assert answer == (status, example_of(paths, "/events", status))


async def test_examples_of_health_match_responses(described: Bridge, paths: Json) -> None:
    for path, status in (("/health/live", 200), ("/health/ready", 200), ("/health/ready", 503)):
        if status == 503:
            described.runtime.sessions.close_all("The server is going away")
        async with described.http.get(f"{described.url}{path}") as response:
            assert (response.status, await response.json()) == (status, example_of(paths, path, status))


@pytest.mark.parametrize(
    ("media_type", "parser"), [("text/plain", parse), ("application/openmetrics-text", parse_openmetrics)]
)
async def test_example_of_metrics_has_series_of_bridge(
    described: Bridge, paths: Json, media_type: str, parser: Any
) -> None:
    async with described.http.get(f"{described.url}/metrics", headers={"Accept": media_type}) as response:
        assert response.content_type == media_type
        served_text = await response.text()
    example = paths["/metrics"]["get"]["responses"]["200"]["content"][media_type]["example"]

    def series(text: str) -> set[tuple[str, str, str, tuple[str, ...]]]:
        return {
            (family.name, family.type, family.documentation, tuple(sorted(sample.labels)))
            for family in parser(text)
            for sample in family.samples
        }

    assert series(example)
    assert series(example) <= series(served_text)
