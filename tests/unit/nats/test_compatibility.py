import inspect
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.transport import TcpTransport, WebSocketTransport

from sanic_nats_bridge.compatibility import IncompatiblePackageError
from sanic_nats_bridge.nats.compatibility import CLIENT_PARTS, check_nats_py


def test_installed_version_is_compatible() -> None:
    check_nats_py()


@pytest.mark.parametrize("change", ["renamed", "of another kind"])
@pytest.mark.parametrize("name", CLIENT_PARTS)
def test_changed_client_is_incompatible(name: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Client.__init__

    def initialize(client: Any) -> None:
        create(client)
        if change != "renamed":
            vars(client)[name] = "other"
        else:
            vars(client).pop(name, None)

    monkeypatch.setattr(Client, "__init__", initialize)
    if change == "renamed" and hasattr(Client, name):
        monkeypatch.delattr(Client, name)
    with pytest.raises(IncompatiblePackageError, match=rf"^sanic-nats-bridge .* nats-py [0-9.]+, .* '{name}' .*$"):
        check_nats_py()


async def _without_headers(self: Any, sid: int, subject: bytes, reply: bytes, data: bytes) -> None: ...


def test_changed_parameters_are_incompatible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "headers" in inspect.signature(Client._process_msg).parameters
    monkeypatch.setattr(Client, "_process_msg", _without_headers)
    with pytest.raises(IncompatiblePackageError, match="_process_msg"):
        check_nats_py()


@pytest.mark.parametrize("transport", [TcpTransport, WebSocketTransport])
def test_changed_transport_is_incompatible(transport: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(self: Any) -> None: ...

    monkeypatch.setattr(transport, "__init__", initialize)
    with pytest.raises(IncompatiblePackageError, match=transport.__name__):
        check_nats_py()
