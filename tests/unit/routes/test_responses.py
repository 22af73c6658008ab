import ast
from pathlib import Path

import pytest

import sanic_nats_bridge
from sanic_nats_bridge import errors
from sanic_nats_bridge.errors import BridgeError
from sanic_nats_bridge.routes.replies import rejection_response
from sanic_nats_bridge.routes.responses import BRIDGE_HEADER, json_response, response

ROUTES = Path(sanic_nats_bridge.__file__).parent / "routes"
KINDS = [
    kind
    for kind in map(vars(errors).get, errors.__all__)
    if isinstance(kind, type) and issubclass(kind, BridgeError) and kind is not BridgeError
]
FACTORIES = {
    "BodyDiscardingResponse", "HTTPResponse", "JSONResponse", "ResponseStream", "empty", "file", "file_stream", "html",
    "json", "raw", "redirect", "text",
}  # fmt: skip
"""The functions and classes of Sanic that make a response."""


def calls(path: Path) -> set[str]:
    """Return the names of the functions that a module calls."""
    called = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {call.attr if isinstance(call, ast.Attribute) else ast.unparse(call) for call in called}


def test_response_has_bridge_header_and_those_of_route() -> None:
    assert dict(response(b"x", 200, {"etag": '"1"'}, "text/plain").headers) == {"sanic-nats-bridge": "1", "etag": '"1"'}
    assert dict(json_response(b"{}", 400).headers) == {
        "sanic-nats-bridge": "1",
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }


def test_responses_do_not_share_headers() -> None:
    response().headers["x-own"] = "1"
    assert dict(response().headers) == {"sanic-nats-bridge": "1"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_bridge_header(kind: type[BridgeError]) -> None:
    assert rejection_response(kind("a reason"), "subscribe").headers[BRIDGE_HEADER] == "1"


@pytest.mark.parametrize("path", sorted(ROUTES.glob("*.py")), ids=lambda path: path.stem)
def test_responses_are_made_in_one_module(path: Path) -> None:
    assert calls(path) & FACTORIES == ({"BodyDiscardingResponse"} if path.stem == "responses" else set())
