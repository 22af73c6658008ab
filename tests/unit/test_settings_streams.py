"""The settings of streams and history."""

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import pytest
from sanic import Sanic

from sanic_nats_bridge import NatsBridge, SettingsError
from sanic_nats_bridge.settings import Settings
from tests.unit.test_settings import resolve, settings_error

RULE = 'must be a dict such as {"ORDERS": None, "KV_prefs": ["$KV.prefs.>"]}, or JSON with null'

STREAMS: list[tuple[Any, dict[str, tuple[str, ...] | None]]] = [
    ({}, {}),
    ("", {}),
    (" ", {}),
    ("{}", {}),
    ({"ORDERS": None}, {"ORDERS": None}),
    ('{"ORDERS": null}', {"ORDERS": None}),
    ({"KV_prefs": ["$KV.prefs.>"], "ORDERS": None}, {"KV_prefs": ("$KV.prefs.>",), "ORDERS": None}),
    ('{"ORDERS": null, "KV_prefs": ["$KV.prefs.>"]}', {"ORDERS": None, "KV_prefs": ("$KV.prefs.>",)}),
    ({"ORDERS": "orders.> returns.*"}, {"ORDERS": ("orders.>", "returns.*")}),
    ({"ORDERS": ("b", "a", "b")}, {"ORDERS": ("b", "a")}),
    ({"ORDERS": ["{user}.>", "a,b"]}, {"ORDERS": ("{user}.>", "a,b")}),
    ({"$größe:1|?": [">"]}, {"$größe:1|?": (">",)}),
    ({"ä" * 127: None}, {"ä" * 127: None}),
    ({f"S{number}": None for number in range(8)}, {f"S{number}": None for number in range(8)}),
]


@pytest.mark.parametrize(("value", "meant"), STREAMS, ids=[f"{value!a:.40}" for value, _ in STREAMS])
def test_streams_are_kept_in_order(value: Any, meant: Mapping[str, Any]) -> None:
    for settings in (resolve(streams=value), resolve({"NATS_BRIDGE_STREAMS": value})):
        assert list(settings.streams.items()) == list(meant.items())


def test_streams_are_empty_by_default() -> None:
    assert resolve().streams == Settings().streams == {}
    assert resolve({"NATS_BRIDGE_STREAMS": {"A": None}}, streams={}).streams == {}


def test_streams_cannot_be_changed() -> None:
    patterns = ["a"]
    given: dict[str, Any] = {"A": patterns}
    settings = resolve(streams=given)
    given["B"] = None
    patterns.append("b")
    assert settings.streams == {"A": ("a",)}
    assert isinstance(settings.streams, MappingProxyType)
    with pytest.raises(TypeError):
        settings.streams["B"] = None  # type: ignore[index]


def test_settings_with_streams_can_be_compared_and_hashed() -> None:
    one, other = resolve(streams={"A": ["a"]}), resolve(streams='{"A": "a"}')
    assert one == other != resolve(streams={"A": None})
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("KV", f"{RULE}, got 'KV'"),
        ('["KV"]', f"""{RULE}, got '["KV"]'"""),
        ('{"A": null, "A": null}', "must have each stream once, got '{\"A\": null, \"A\": null}'"),
        ({f"S{number}": None for number in range(9)}, "must be at most 8 streams, got 9"),
        ({"a.b": None}, "must have names of 1 to 255 bytes without spaces, slashes and any of . * >, got 'a.b'"),
        ({"A": []}, "must have a list of patterns, or None for all subjects, for 'A', got []"),
        ({"A": ["a", "b..c"]}, "must have valid patterns for 'A', got 'b..c'"),
        ({"A": ["_NATSBRIDGE.>"]}, "must have valid patterns for 'A', got '_NATSBRIDGE.>'"),
    ],
)  # fmt: skip
def test_error_for_wrong_streams_gives_the_rule(value: Any, rule: str) -> None:
    assert settings_error(streams=value) == f"NatsBridge setting 'streams' {rule}"


@pytest.mark.parametrize(("name", "value"), [("history", ["orders.>"]), ("jetstream_domain", "hub")])
def test_setting_without_effect_is_rejected(name: str, value: Any) -> None:
    assert settings_error(**{name: value}) == f"NatsBridge setting '{name}' requires 'streams'"
    assert settings_error(streams={}, **{name: value}) == f"NatsBridge setting '{name}' requires 'streams'"
    assert getattr(resolve(streams={"ORDERS": None}, **{name: value}), name) in (value, tuple(value))
    assert resolve(streams={"ORDERS": None}).streams == {"ORDERS": None}


def test_history_accepts_words_and_lists() -> None:
    for value in ("orders.> $KV.prefs.*", ["orders.>", "$KV.prefs.*"], '["orders.>", "$KV.prefs.*"]'):
        assert resolve(streams={"A": None}, history=value).history == ("orders.>", "$KV.prefs.*")


# A real app


@pytest.fixture
def app() -> Iterator[Sanic[Any, Any]]:
    name = f"streams_{uuid4().hex}"
    yield Sanic(name, configure_logging=False)
    Sanic._app_registry.pop(name, None)


@pytest.fixture
def make_app(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Make an app whose environment is set before."""

    def make(**environment: str) -> Sanic[Any, Any]:
        for name, value in environment.items():
            monkeypatch.setenv(f"SANIC_NATS_BRIDGE_{name.upper()}", value)
        made: Sanic[Any, Any] = request.getfixturevalue("app")
        return made

    return make


def test_streams_are_read_from_environment(make_app: Any) -> None:
    streams = {"ORDERS": None, "KV_prefs": ["$KV.prefs.>"]}
    app = make_app(
        streams=json.dumps(streams), history="orders.>", resume_window="0", max_replays="3", jetstream_domain="42"
    )
    bridge = NatsBridge()
    bridge.init_app(app)
    assert list(bridge.settings.streams.items()) == [("ORDERS", None), ("KV_prefs", ("$KV.prefs.>",))]
    assert (bridge.settings.history, bridge.settings.resume_window) == (("orders.>",), 0.0)
    assert (bridge.settings.max_replays, bridge.settings.jetstream_domain) == (3, "42")


@pytest.mark.parametrize("written", ["ORDERS", "5", "yes", '["ORDERS"]', '{"ORDERS": 5}', "{"])
def test_wrong_streams_in_environment_are_rejected(make_app: Any, written: str) -> None:
    with pytest.raises(SettingsError, match=r"^NatsBridge setting 'streams' "):
        NatsBridge().init_app(make_app(streams=written))


def test_streams_in_app_config_override_environment(make_app: Any) -> None:
    app = make_app(streams='{"A": null}')
    app.config.NATS_BRIDGE_STREAMS = {"B": ["b"]}
    bridge = NatsBridge()
    bridge.init_app(app)
    assert bridge.settings.streams == {"B": ("b",)}
