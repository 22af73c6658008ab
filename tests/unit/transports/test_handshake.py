from types import SimpleNamespace
from typing import Any

import pytest
from sanic.compat import Header

from sanic_nats_bridge.errors import InvalidCommand
from sanic_nats_bridge.transports.handshake import check_handshake

UPGRADE = {"upgrade": "WebSocket"}


def fault(**headers: str) -> str | None:
    request: Any = SimpleNamespace(headers=Header({name.replace("_", "-"): text for name, text in headers.items()}))
    try:
        check_handshake(request)
    except InvalidCommand as error:
        return error.message
    return None


@pytest.mark.parametrize(
    "headers",
    [{}, {"content_length": "0"}, {"cookie": "caf\xe9"}, {"cookie": ""}, {"x": "\t !~"}],
    ids=str,
)  # fmt: skip
def test_handshake_with_valid_headers_is_accepted(headers: dict[str, str]) -> None:
    assert fault(**UPGRADE, **headers) is None


@pytest.mark.parametrize(
    "headers", [{"content_length": "5"}, {"content_length": "x"}, {"transfer_encoding": "chunked"}], ids=str
)
def test_handshake_with_body_is_rejected(headers: dict[str, str]) -> None:
    assert fault(**UPGRADE, **headers) == "A WebSocket handshake must not have a body"


@pytest.mark.parametrize("text", ["\udcff", "a\0", "\u0436", "\x7f", "a\nb"], ids=ascii)
def test_handshake_with_invalid_header_characters_is_rejected(text: str) -> None:
    assert fault(**UPGRADE, cookie=text) == "A header has invalid characters"


def test_request_without_websocket_upgrade_is_not_checked() -> None:
    assert fault(content_length="5", cookie="\udcff") is None
    assert fault(upgrade="h2c", transfer_encoding="chunked") is None
