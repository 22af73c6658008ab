"""The settings of what clients publish."""

from typing import Any

import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.errors import PublishForbidden, SizeLimitExceeded
from sanic_nats_bridge.protocol.publish import PublishCommand
from sanic_nats_bridge.settings import Settings
from tests.unit.test_settings import resolve, settings_error


def test_clients_publish_nothing_by_default() -> None:
    settings = Settings()
    assert settings.publish == settings.request == settings.publish_headers == ()
    assert (settings.publish_rate, settings.publish_burst, settings.max_publish_bytes) == (20, 40, 65_000)
    assert (settings.max_requests, settings.max_requests_per_worker, settings.request_timeout) == (16, 1_000, 5)
    assert settings.max_publish_bytes < settings.max_command_bytes


@pytest.mark.parametrize("name", ["Bridge-Identity", "bridge-identity", "BRIDGE-IDENTITY"])
def test_client_cannot_be_allowed_to_name_the_author(name: str) -> None:
    line = "NatsBridge setting 'publish_headers' must not have 'identity_header': no client may name another one"
    assert settings_error(publish_headers=["Trace", name]) == line
    assert settings_error(publish_headers="X-User", identity_header="x-uSER") == line
    assert resolve(publish_headers=[name], identity_header="X-User").publish_headers == (name,)


@pytest.mark.parametrize("name", ["publish", "request"])
def test_subjects_of_answers_and_workers_cannot_be_published_to(name: str) -> None:
    def error(pattern: str, **others: Any) -> str:
        return settings_error(**others | {name: ["a.>", pattern]})

    rule = f"NatsBridge setting '{name}' must not allow the bridge's own subjects, got"
    assert error("_INBOX.>") == f"{rule} '_INBOX.>'"
    assert error("_APP.x.*", inbox_prefix="_APP.x") == f"{rule} '_APP.x.*'"
    assert error("_SHOP.bridge.worker", control_prefix="_SHOP.bridge") == f"{rule} '_SHOP.bridge.worker'"
    allowed: dict[str, Any] = {name: [">", "_APP.y", "_INBOX.>"], "inbox_prefix": "_APP.x"}
    assert resolve(**allowed).default_permissions == Permissions(**{name: allowed[name]})


def test_publish_policy_is_that_of_settings() -> None:
    settings = resolve(
        publish="> _SHOP.x",
        max_publish_bytes=2,
        publish_headers="Trace",
        identity_header="X-User",
        control_prefix="_SHOP.b",
    )
    permissions = Permissions(publish=[">", "_A.>"], aliases={"me.": "_SHOP.b."}, identity="ada")

    def publish(subject: str, payload: bytes = b"1") -> bytes:
        command = PublishCommand(action="publish", subject=subject, payload=payload, headers=(("trace", "x"),))
        return settings.publish_policy().authorize(permissions, command).block

    assert publish("a") == b"NATS/1.0\r\nX-User: ada\r\nTrace: x\r\n\r\n"
    with pytest.raises(PublishForbidden):
        publish("me.x")
    with pytest.raises(SizeLimitExceeded):
        publish("a", b"123")
    with pytest.raises(ValueError, match="the bridge's own subjects"):
        resolve().publish_policy("_A").check(Permissions(publish=["_A.b"]))
