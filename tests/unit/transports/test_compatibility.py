from typing import Any

import pytest
from sanic import Request
from sanic.http import Http
from sanic.http.stream import Stream
from sanic.models.asgi import MockTransport
from sanic.server.protocols.base_protocol import SanicProtocol
from sanic.server.protocols.http_protocol import HttpProtocol
from sanic.server.websockets.frame import WebsocketFrameAssembler
from sanic.server.websockets.impl import WebsocketImplProtocol
from websockets.protocol import Protocol

from sanic_nats_bridge.compatibility import IncompatiblePackageError
from sanic_nats_bridge.transports.compatibility import check_sanic


def test_installed_versions_are_compatible() -> None:
    check_sanic()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (SanicProtocol, "_can_write"),
        (SanicProtocol, "_data_received"),
        (SanicProtocol, "_time"),
        (SanicProtocol, "receive_more"),
        (HttpProtocol, "recv_buffer"),
        (HttpProtocol, "_callback_check_timeouts"),
        (WebsocketImplProtocol, "data_received"),
        (WebsocketImplProtocol, "eof_received"),
        (WebsocketImplProtocol, "fail_connection"),
        (WebsocketImplProtocol, "process_events"),
        (WebsocketImplProtocol, "resume_frames"),
        (WebsocketFrameAssembler, "put"),
        (Request, "stream"),
        (Http, "expecting_continue"),
        (Http, "keep_alive"),
        (Http, "log_response"),
        (Http, "protocol"),
        (Http, "request_body"),
        (Stream, "request_max_size"),
        (Http, "response_func"),
        (Http, "stage"),
        (HttpProtocol, "access_log"),
        (HttpProtocol, "request_max_size"),
        (Protocol, "fail"),
    ],
)
def test_renamed_part_is_incompatible(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = "websockets" if owner is Protocol else "sanic"
    monkeypatch.delattr(owner, name)
    with pytest.raises(IncompatiblePackageError, match=rf"^sanic-nats-bridge .* {package} [0-9.]+, .* '{name}' .*$"):
        check_sanic()


def _other(self: Any, *arguments: Any) -> None: ...


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HttpProtocol, "send"),
        (HttpProtocol, "_can_write"),
        (Http, "http1"),
        (WebsocketImplProtocol, "__init__"),
        (WebsocketImplProtocol, "process_events"),
        (WebsocketFrameAssembler, "__init__"),
        (MockTransport, "__init__"),
        (Protocol, "fail"),
    ],
)
def test_part_of_another_kind_is_incompatible(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, _other, raising=False)
    with pytest.raises(IncompatiblePackageError, match=name):
        check_sanic()
