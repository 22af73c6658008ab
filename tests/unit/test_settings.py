import json
import ssl
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from uuid import uuid4

import certifi
import pytest
from sanic import Sanic

from sanic_nats_bridge import NatsBridge, SettingsError
from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.settings import SettingKeywords, Settings

NAMES = [option.name for option in fields(Settings)]
THIS_FILE = __file__
OTHER_FILE = str(Path(__file__).with_name("test_errors.py"))
CREDENTIALS = "-----BEGIN NATS USER JWT-----\nhidden\n------END NATS USER JWT------\n"


def resolve(config: dict[str, Any] | None = None, **keywords: Any) -> Settings:
    return Settings.resolve(keywords, config or {})


def settings_error(config: dict[str, Any] | None = None, **keywords: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        resolve(config, **keywords)
    return str(refused.value)


NOT_SECONDS = [0.0, -1, "5", True, float("nan"), float("inf"), 10**400, [5]]
NOT_COUNTS = [0, -1, 1.5, "5", True, float("inf")]
NOT_RATES = [0, -1, "5", True, float("nan"), float("inf"), [5]]
NOT_FLAGS = [2, -1, 1.0, 0.0, "true", "", []]
NOT_TEXTS = ["", 42, True, ["a"], b"a"]
NOT_FILES = ["", 42, "/no/such/file", Path("/no/such/file"), str(Path(THIS_FILE).parent), "x" * 5_000, "a\nb", "a\0b"]
NOT_STREAMS = ["", 5, None, "a b", "a\tb", "a\n", "a.b", "*", "a>", "a/b", "a\\b", "a\0", "a\udcff", "ä" * 128]
NOT_LISTS = [5, {"a": 1}, ["a", 1], '["a"', "[1]", '["a", null]', b"a"]

WRONG: dict[str, list[Any]] = {
    "servers": [
        *NOT_LISTS,
        "",
        [],
        "http://h",
        "nats://",
        "nats://user:pw@",
        "nats://h:0",
        "nats://h:port",
        "nats://h:99999",
        "nats://[::1",
        ["nats://h h:1"],
        ["nats://h:1", "ws://h:2"],
        ["nats://h:1", "WS://h:2"],
        ["nats://h:1", "nats://"],
    ],
    "prefix": ["nats", "//", "/nats//", "//nats", "/a//b", "/größe", "/<id:int>", "/a b", "/nats\n", 5, ["/nats"]],
    "public_prefix": ["app", "//app.example", "/app//", "https://app.example/app", "/a/../b", '/a"b', 5, ["/app"]],
    "subscribe": [
        *NOT_LISTS,
        "a..b",
        "a.>.b",
        ["a", ""],
        ["a b"],
        ["a\nb"],
        "_NATSBRIDGE",
        "_NATSBRIDGE.>",
        "{user}.>",
    ],
    "deny": [*NOT_LISTS, "a..b", ["a", ""], "{user}.>"],
    "history": [*NOT_LISTS, "a..b", ["a", ""], "_NATSBRIDGE.>", "{user}.>"],
    "publish": [*NOT_LISTS, "a..b", ["a", ""], "_NATSBRIDGE.>", "_INBOX.>", "_INBOX.a.*", "{user}.>"],
    "request": [*NOT_LISTS, "a..b", ["a", ""], "_NATSBRIDGE.>", "_INBOX.>", "_INBOX.a.*", "{user}.>"],
    "permissions": [True, "function", Permissions(), [print]],
    "permissions_timeout": NOT_SECONDS,
    "allowed_origins": [
        *NOT_LISTS,
        "*",
        "app.example",
        "https://app.example/",
        "https://*.app.example",
        "https://größe",
        "NULL",
    ],
    "allowed_hosts": [
        *NOT_LISTS,
        "",
        [],
        "*",
        "*.",
        "app.*",
        "a.*.example",
        "app.example:8000",
        "https://app.example",
        "größe.example",
        "10.0.0.0/99",
        "[::1",
        "app.example/8",
        ".example",
    ],
    "expose_headers": [*NOT_LISTS, ["Status"], [""], ["a b"], "a:b", ["größe"], ["a\n"]],
    "heartbeat": NOT_SECONDS,
    "retry": NOT_SECONDS,
    "reconnect_spread": NOT_SECONDS[1:],
    "unsubscribe_delay": NOT_SECONDS[1:],
    "confirm_timeout": NOT_SECONDS[1:],
    "relay_timeout": NOT_SECONDS,
    "max_relays": NOT_COUNTS,
    "max_relays_per_client": NOT_COUNTS,
    "max_subscriptions": NOT_COUNTS,
    "max_overlap": NOT_COUNTS,
    "max_patterns": NOT_COUNTS,
    "max_patterns_per_client": NOT_COUNTS,
    "max_subscribe_rate": NOT_RATES,
    "max_sessions": NOT_COUNTS,
    "max_sessions_per_identity": NOT_COUNTS,
    "max_sessions_per_address": NOT_COUNTS,
    "max_permissions_calls": NOT_COUNTS,
    "max_permissions_calls_per_client": NOT_COUNTS,
    "request_rate": NOT_RATES[1:],
    "request_burst": NOT_COUNTS,
    "command_rate": NOT_RATES,
    "command_burst": NOT_COUNTS,
    "max_bad_commands": NOT_COUNTS,
    "max_command_bytes": [*NOT_COUNTS, 63],
    "publish_rate": NOT_RATES,
    "publish_burst": NOT_COUNTS,
    "max_publish_bytes": NOT_COUNTS,
    "max_requests": NOT_COUNTS,
    "max_requests_per_worker": NOT_COUNTS,
    "request_timeout": NOT_SECONDS,
    "identity_header": [*NOT_TEXTS, "a b", "a:", "größe", "x" * 65, "a\r\n", "Nats-Identity", "NATS-X", "Status"],
    "publish_headers": [
        *NOT_LISTS,
        [""],
        ["a b"],
        "a:b",
        ["größe"],
        ["a\n"],
        ["a\r\nb"],
        ["x" * 65],
        "Trace Nats-Msg-Id",
        "nats-ttl",
        "status",
        "Description",
        "Trace trace",
    ],
    "max_body_parts": NOT_COUNTS,
    "read_timeout": NOT_SECONDS,
    "max_pending_bytes": [*NOT_COUNTS, 1023],
    "overflow": ["", "Gap", "drop", 1, True, ["gap"]],
    "write_timeout": NOT_SECONDS,
    "max_stream_age": [*NOT_SECONDS[1:], 0.5, 86_401],
    "flush_interval": [*NOT_SECONDS[1:], 1.01],
    "ready_needs_nats": NOT_FLAGS,
    "metrics": NOT_FLAGS,
    "streams": [
        5,
        True,
        "ORDERS",
        "{",
        "[" * 100_000,
        "null",
        '["ORDERS"]',
        '{"A": null, "A": ["a"]}',
        ["ORDERS"],
        [("ORDERS", None)],
        {f"S{number}": None for number in range(9)},
        *({name: None} for name in NOT_STREAMS),
        *({"ORDERS": patterns} for patterns in ("", [], 5, True, {}, {"a": 1}, [5], [None], "a, b", '["a"', b"a")),
        *({"ORDERS": [pattern]} for pattern in ("", "a..b", "a.>.b", "a b", "größe", "_NATSBRIDGE", "_NATSBRIDGE.>")),
    ],
    "resume_window": [*NOT_SECONDS[1:], 86_401],
    "max_replays": NOT_COUNTS,
    "max_replay_messages": NOT_COUNTS,
    "max_replay_bytes": [*NOT_COUNTS, 1023],
    "max_snapshot_subjects": NOT_COUNTS,
    "history_buffer_bytes": [*NOT_COUNTS, 65_535],
    "jetstream_domain": [*NOT_TEXTS, "a.b", "a b", "*", ">", "größe"],
    "ignore_discovered_servers": NOT_FLAGS,
    "name": NOT_TEXTS,
    "user": NOT_TEXTS,
    "password": NOT_TEXTS,
    "token": NOT_TEXTS,
    "credentials": NOT_FILES,
    "nkeys_seed": NOT_FILES,
    "inbox_prefix": [*NOT_TEXTS, "a b", "a.", ".a", "a..b", "a.*", "a.>", "größe"],
    "control_prefix": [*NOT_TEXTS, "a", "$a", "_a b", "_a.", "_a.*", "_a.>", "_" * 129],
    "control_key": [
        *NOT_LISTS,
        "",
        [],
        "k" * 31,
        ["k" * 32, "o" * 31],
        ["k" * 32] * 2,
        ["k" * 32, "o" * 32, "x" * 32],
        f"{'k' * 32},{'o' * 32}",
    ],
    "tls": [True, "default", THIS_FILE],
    "tls_ca": NOT_FILES,
    "tls_cert": NOT_FILES,
    "tls_key": NOT_FILES,
    "tls_hostname": NOT_TEXTS,
    "tls_handshake_first": NOT_FLAGS,
    "connect_timeout": NOT_SECONDS,
    "ping_interval": NOT_SECONDS,
}


def test_table_of_wrong_values_covers_every_setting() -> None:
    assert list(WRONG) == NAMES


def test_keywords_are_exactly_the_settings() -> None:
    assert set(SettingKeywords.__annotations__) == set(NAMES)


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}={value!a:.40}") for name, values in WRONG.items() for value in values],
)
def test_wrong_value_is_rejected_in_one_line_with_setting_name(name: str, value: Any) -> None:
    for line in (settings_error(**{name: value}), settings_error({f"NATS_BRIDGE_{name.upper()}": value})):
        assert line.startswith(f"NatsBridge setting '{name}' ")
        assert line.isprintable()


RIGHT: list[tuple[str, Any, Any]] = [
    ("servers", "nats://h:4222", ("nats://h:4222",)),
    ("servers", "h:4222 tls://user:pw@[::1]:4223", ("h:4222", "tls://user:pw@[::1]:4223")),
    ("servers", ["ws://h:1", "wss://h:2"], ("ws://h:1", "wss://h:2")),
    ("servers", "wss://user:pw@h/nats/socket", ("wss://user:pw@h/nats/socket",)),
    ("prefix", "", ""),
    ("prefix", "/", ""),
    ("prefix", "/nats/", "/nats"),
    ("prefix", "/live/v1.0_~-", "/live/v1.0_~-"),
    ("public_prefix", "", ""),
    ("public_prefix", "/app/", "/app"),
    ("subscribe", "orders.> test.*\n $KV.flags.>", ("orders.>", "test.*", "$KV.flags.>")),
    ("subscribe", ' ["orders.>", "test.*"]', ("orders.>", "test.*")),
    ("subscribe", ["orders.>", "test.*"], ("orders.>", "test.*")),
    ("subscribe", {"orders.>"}, ("orders.>",)),
    ("subscribe", "", ()),
    ("subscribe", "[]", ()),
    ("allowed_hosts", "app.example *.app.example", ("app.example", "*.app.example")),
    ("allowed_hosts", ["192.0.2.1", "[::1]", "2001:db8::/32"], ("192.0.2.1", "[::1]", "2001:db8::/32")),
    ("request_rate", 0, 0.0),
    ("request_rate", 0.5, 0.5),
    ("request_burst", 1, 1),
    ("expose_headers", "Trace-Id Nats-Msg-Id", ("Trace-Id", "Nats-Msg-Id")),
    ("publish", "rooms.*.say $KV.prefs.*", ("rooms.*.say", "$KV.prefs.*")),
    ("request", ["svc.>"], ("svc.>",)),
    ("publish_rate", 0.5, 0.5),
    ("publish_burst", 1, 1),
    ("max_publish_bytes", 1, 1),
    ("max_publish_bytes", 1_000_000, 1_000_000),
    ("max_requests", 1, 1),
    ("max_requests_per_worker", 1, 1),
    ("request_timeout", 0.1, 0.1),
    ("identity_header", "X-User", "X-User"),
    ("publish_headers", "Trace X-Room", ("Trace", "X-Room")),
    ("publish_headers", "", ()),
    ("heartbeat", 0.1, 0.1),
    ("heartbeat", 20, 20.0),
    ("unsubscribe_delay", 0, 0.0),
    ("confirm_timeout", 0, 0.0),
    ("max_subscriptions", 1, 1),
    ("max_overlap", 1, 1),
    ("max_command_bytes", 64, 64),
    ("max_body_parts", 1, 1),
    ("read_timeout", 0.1, 0.1),
    ("max_pending_bytes", 1024, 1024),
    ("overflow", "latest", "latest"),
    ("write_timeout", 0.1, 0.1),
    ("flush_interval", 0.01, 0.01),
    ("flush_interval", 1, 1.0),
    ("token", "0042", "0042"),
    ("inbox_prefix", "_INBOX.app", "_INBOX.app"),
    ("control_prefix", "_SHOP.bridge", "_SHOP.bridge"),
    ("control_key", "k" * 32, ("k" * 32,)),
    ("control_key", f"{'k' * 32} {'o' * 40}", ("k" * 32, "o" * 40)),
    ("control_key", ["k" * 32, "o" * 32], ("k" * 32, "o" * 32)),
    ("max_relays", 1, 1),
    ("credentials", Path(THIS_FILE), THIS_FILE),
    ("nkeys_seed", THIS_FILE, THIS_FILE),
    ("tls_handshake_first", True, True),
    ("metrics", 1, True),
    ("metrics", 0, False),
    ("resume_window", 0, 0.0),
    ("max_replays", 1, 1),
    ("max_replay_bytes", 1024, 1024),
    ("history_buffer_bytes", 65_536, 65_536),
]


@pytest.mark.parametrize(("name", "value", "meant"), RIGHT, ids=[f"{name}={value!a:.40}" for name, value, _ in RIGHT])
def test_valid_value_is_accepted_from_keyword_and_config(name: str, value: Any, meant: Any) -> None:
    for settings in (resolve(**{name: value}), resolve({f"NATS_BRIDGE_{name.upper()}": value})):
        assert getattr(settings, name) == meant
        assert type(getattr(settings, name)) is type(meant)


def test_defaults_allow_no_subject_and_are_valid() -> None:
    settings = resolve()
    assert settings.subscribe == settings.expose_headers == ()
    assert settings.prefix == "/nats"
    values = {name: getattr(settings, name) for name in NAMES}
    assert resolve(**values) == settings


@pytest.mark.parametrize(
    ("name", "keyword", "configured"),
    [
        ("servers", ("nats://k",), ("nats://c",)),
        ("prefix", "", "/c"),
        ("subscribe", (), ("c",)),
        ("heartbeat", 1.0, 2.0),
        ("max_sessions", 1, 2),
        ("token", "k", "c"),
        ("tls_handshake_first", False, True),
        ("credentials", THIS_FILE, OTHER_FILE),
    ],
)
def test_keyword_overrides_config_which_overrides_default(name: str, keyword: Any, configured: Any) -> None:
    config = {f"NATS_BRIDGE_{name.upper()}": configured, "NATS_BRIDGES": "another's"}
    assert getattr(resolve(config, **{name: keyword}), name) == keyword
    assert getattr(resolve(config), name) == configured
    assert getattr(resolve({"NATS_BRIDGES": "another's"}), name) == getattr(Settings, name)


def test_unknown_setting_is_rejected() -> None:
    assert settings_error(subject="orders.>") == "NatsBridge has no setting 'subject'"
    assert settings_error({"NATS_BRIDGE_FOO": 1}) == "NatsBridge has no setting 'foo'"
    assert settings_error({"NATS_BRIDGE_FOO": None}) == "NatsBridge has no setting 'foo'"


# TLS


def test_tls_context_is_none_unless_configured() -> None:
    assert resolve().tls_context() is None


def test_configured_tls_context_is_used() -> None:
    context = ssl.create_default_context()
    assert resolve(tls=context, tls_hostname="nats.example").tls_context() is context


def test_ca_file_yields_verifying_tls_context() -> None:
    context = resolve(tls_ca=certifi.where()).tls_context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.cert_store_stats()["x509_ca"] > 0


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["tls_key"], "NatsBridge setting 'tls_key' requires 'tls_cert'"),
        (["tls_key", "tls_ca"], "NatsBridge setting 'tls_key' requires 'tls_cert'"),
        (["tls", "tls_ca"], "NatsBridge setting 'tls' excludes 'tls_ca', 'tls_cert' and 'tls_key'"),
        (["tls", "tls_cert"], "NatsBridge setting 'tls' excludes 'tls_ca', 'tls_cert' and 'tls_key'"),
    ],
    ids="+".join,
)
def test_inconsistent_tls_settings_are_rejected(names: list[str], line: str) -> None:
    values: dict[str, Any] = {"tls": ssl.create_default_context(), "tls_ca": certifi.where()}
    assert settings_error(**{name: values.get(name, THIS_FILE) for name in names}) == line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tls", ssl.create_default_context()),
        ("tls_ca", certifi.where()),
        ("tls_hostname", "h"),
        ("tls_handshake_first", True),
    ],
    ids=["tls", "tls_ca", "tls_hostname", "tls_handshake_first"],
)
def test_tls_setting_applies_to_all_servers_and_rejects_ws_urls(name: str, value: Any) -> None:
    keywords: dict[str, Any] = {name: value}
    assert resolve(servers="nats://a", **keywords).tls_only
    assert resolve(servers="wss://a", **keywords).tls_only
    assert settings_error(servers=["wss://a", "WS://b"], **keywords) == (
        "NatsBridge setting 'servers' must be wss:// URLs, not ws://, if TLS is configured"
    )
    assert not resolve(servers=["wss://a", "ws://b"]).tls_only


@pytest.mark.parametrize("name", ["tls_ca", "tls_cert"])
def test_tls_file_that_does_not_load_is_rejected(name: str) -> None:
    option: dict[str, Any] = {name: THIS_FILE}
    assert f"'{name}'" in settings_error(**option)


# Packages that are not there


@pytest.mark.parametrize(
    ("name", "value", "module", "package"),
    [
        ("metrics", True, "prometheus_client", "sanic-nats-bridge[metrics]"),
        ("credentials", THIS_FILE, "nkeys", "nats-py[nkeys]"),
        ("nkeys_seed", THIS_FILE, "nkeys", "nats-py[nkeys]"),
        ("servers", "ws://h", "aiohttp", "nats-py[aiohttp]"),
        ("servers", ["WSS://h"], "aiohttp", "nats-py[aiohttp]"),
    ],
)
def test_setting_is_rejected_if_its_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, module: str, package: str
) -> None:
    resolve(**{name: value})
    monkeypatch.setattr("sanic_nats_bridge.settings.find_spec", lambda asked: None if asked == module else True)
    assert settings_error(**{name: value}) == f"NatsBridge setting '{name}' requires a package: pip install '{package}'"
    resolve(servers="tls://h", subscribe="a")


# Secrets


def test_repr_of_settings_contains_no_secret() -> None:
    secrets: dict[str, Any] = {"servers": "nats://u:hidden-1@h", "password": "hidden-2", "token": "hidden-3"}
    settings = resolve(**secrets)
    for shown in (repr(settings), str(settings), repr([settings])):
        assert "hidden" not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("servers", "nats://user:hidden@h:port"),
        ("servers", "nats://user:hidden@[::1"),
        ("servers", "nats://user:hidden@\N{CARE OF}"),
        ("servers", '["nats://user:hidden@h"'),
        ("servers", ["nats://h", "ftp://user:hidden@h"]),
        ("password", ["hidden"]),
        ("token", b"hidden"),
        ("nkeys_seed", "SUAhidden"),
        ("credentials", CREDENTIALS),
        ("credentials", CREDENTIALS * 40),
    ],
    ids=[
        "port",
        "address",
        "host that isn't valid IDNA",
        "list",
        "scheme",
        "password",
        "token",
        "seed instead of its file",
        "credentials instead of their file",
        "long credentials instead of their file",
    ],
)
def test_settings_error_contains_no_secret(name: str, value: Any) -> None:
    line = settings_error(**{name: value})
    assert line.startswith(f"NatsBridge setting '{name}' ")
    assert "hidden" not in line


# A real app


@pytest.fixture
def app_names() -> Iterator[list[str]]:
    names: list[str] = []
    yield names
    for name in names:
        Sanic._app_registry.pop(name, None)


@pytest.fixture
def set_up(app_names: list[str]) -> Any:
    """Make an app with a bridge; ``config`` is what its code puts into ``app.config``."""

    def set_up(config: dict[str, Any] | None = None, **keywords: Any) -> Settings:
        app: Sanic[Any, Any] = Sanic(f"settings_{uuid4().hex}", configure_logging=False)
        app_names.append(app.name)
        app.config.update(config or {})
        bridge = NatsBridge(**keywords)
        bridge.init_app(app)
        return bridge.settings

    return set_up


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("token", "0042", "0042"),
        ("token", "1e3", "1e3"),
        ("token", "yes", "yes"),
        ("password", "007.50", "007.50"),
        ("user", "False", "False"),
        ("name", "1_000", "1_000"),
        ("inbox_prefix", "_7", "_7"),
        ("subscribe", "orders.> test.*", ("orders.>", "test.*")),
        ("subscribe", '["orders.>", "test.*"]', ("orders.>", "test.*")),
        ("subscribe", "0042", ("0042",)),
        ("subscribe", "on", ("on",)),
        ("expose_headers", "1", ("1",)),
        ("servers", "nats://a:1 nats://b:2", ("nats://a:1", "nats://b:2")),
        ("prefix", "", ""),
        ("public_prefix", "", ""),
        ("public_prefix", "/app", "/app"),
        ("heartbeat", "20", 20.0),
        ("heartbeat", "0.5", 0.5),
        ("max_sessions", "5", 5),
        ("tls_handshake_first", "true", True),
        ("metrics", "1", True),
        ("metrics", "yes", True),
        ("ready_needs_nats", "0", False),
        ("ready_needs_nats", "off", False),
    ],
)
def test_environment_variable_is_parsed_by_setting_type(
    set_up: Any, monkeypatch: pytest.MonkeyPatch, name: str, written: str, meant: Any
) -> None:
    monkeypatch.setenv(f"SANIC_NATS_BRIDGE_{name.upper()}", written)
    value = getattr(set_up(), name)
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("heartbeat", "soon"),
        ("max_sessions", "1.5"),
        ("max_sessions", "yes"),
        ("metrics", "2"),
        ("metrics", "maybe"),
        ("subscribe", "[1"),
        ("prefix", "7"),
    ],
)
def test_invalid_environment_variable_is_rejected(
    set_up: Any, monkeypatch: pytest.MonkeyPatch, name: str, written: str
) -> None:
    monkeypatch.setenv(f"SANIC_NATS_BRIDGE_{name.upper()}", written)
    with pytest.raises(SettingsError, match=f"^NatsBridge setting '{name}' "):
        set_up()


@pytest.mark.parametrize(("name", "in_code"), [("subscribe", ["code.>"]), ("token", "code"), ("max_sessions", 7)])
def test_app_config_overrides_environment(
    set_up: Any, monkeypatch: pytest.MonkeyPatch, name: str, in_code: Any
) -> None:
    monkeypatch.setenv(f"SANIC_NATS_BRIDGE_{name.upper()}", "5")
    value = getattr(set_up({f"NATS_BRIDGE_{name.upper()}": in_code}), name)
    assert json.loads(json.dumps(value)) == in_code


def test_keyword_overrides_environment(set_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANIC_NATS_BRIDGE_SUBSCRIBE", "environment.>")
    assert set_up(subscribe="keyword.>").subscribe == ("keyword.>",)


def test_unknown_setting_in_environment_is_rejected(set_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANIC_NATS_BRIDGE_SUBJECTS", "orders.>")
    with pytest.raises(SettingsError, match="no setting 'subjects'"):
        set_up()


def test_invalid_keyword_is_rejected_by_constructor() -> None:
    with pytest.raises(SettingsError, match="'heartbeat'"):
        NatsBridge(heartbeat=-1)


@pytest.mark.parametrize("name", ["subscribe", "deny", "history", "publish", "request"])
def test_permissions_function_excludes_patterns_for_every_client(name: str) -> None:
    async def permissions(_: Any) -> None: ...

    keywords: dict[str, Any] = {"permissions": permissions, name: ["a"]}
    assert settings_error(streams={"S": None}, **keywords) == (
        "NatsBridge setting 'permissions' excludes 'subscribe', 'deny', 'history', 'publish' and 'request': "
        "return them from the function"
    )
    assert resolve(permissions=permissions).permissions is permissions


def test_default_permissions_are_settings_for_every_client() -> None:
    assert resolve(subscribe=["a.>"], deny="a.b").default_permissions == Permissions(["a.>"], ["a.b"])
    settings = resolve(subscribe=["a.>"], history="a.c", streams={"A": None})
    assert settings.default_permissions == Permissions(["a.>"], history=["a.c"])
    settings = resolve(publish="a.> b", request=["svc.>"])
    assert settings.default_permissions == Permissions(publish=["a.>", "b"], request=["svc.>"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("linger", "unsubscribe_delay"),
        ("drain", "reconnect_spread"),
        ("headers", "expose_headers"),
        ("max_sub_rate", "max_subscribe_rate"),
    ],
)
def test_error_for_renamed_setting_gives_new_name(old: str, new: str) -> None:
    with pytest.raises(SettingsError, match=f"'{old}' was renamed; use '{new}'"):
        Settings.resolve({old: 1}, {})
    with pytest.raises(SettingsError, match=f"'{old}' was renamed; use '{new}'"):
        Settings.resolve({}, {f"NATS_BRIDGE_{old.upper()}": 1})


# Words for mistakes


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("server", "servers"),
        ("subscribed", "subscribe"),
        ("permission", "permissions"),
        ("max_pending", "max_pending_bytes"),
    ],
)
def test_unknown_setting_suggests_similar_name(name: str, meant: str) -> None:
    value: Any = 1
    for line in (settings_error(**{name: value}), settings_error({f"NATS_BRIDGE_{name.upper()}": value})):
        assert line == f"NatsBridge has no setting '{name}'; did you mean '{meant}'?"


def test_unknown_setting_without_similar_name_suggests_nothing() -> None:
    assert settings_error(zzz=1) == "NatsBridge has no setting 'zzz'"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("heartbeat", "soon", "'soon'"),
        ("overflow", "Gap", "'Gap'"),
        ("prefix", "nats", "'nats'"),
        ("subscribe", ["a", "b..c"], "'b..c'"),
        ("tls_ca", "/no/such/file", "'/no/such/file'"),
        ("heartbeat", 10**300, f"{10**199}…"),
    ],
)
def test_wrong_value_is_shown(name: str, value: Any, shown: str) -> None:
    assert settings_error(**{name: value}).endswith(f", got {shown}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("servers", ["http://user:hush@h"]),
        ("servers", "nats://user:hu@sh#hush@h"),
        ("servers", {"hush": 1}),
        ("servers", "nats://user:my hush@host"),
        ("servers", "nats://user:hu#sh"),
        ("servers", "nats://host:hush"),
        ("servers", "nats://host/x?token=hush"),
        ("tls_cert", "hush"),
        ("user", ["hush"]),
        ("password", ["hush"]),
        ("token", {"hush": 1}),
        ("credentials", "hush"),
        ("nkeys_seed", "hush"),
        ("tls_key", "hush"),
        ("control_key", "hush"),
        ("control_key", ["hush" * 8, "hush"]),
    ],
)
def test_secret_value_is_not_shown(name: str, value: Any) -> None:
    assert "hush" not in settings_error(**{name: value})


def test_wrong_url_with_password_asks_for_percent_encoding() -> None:
    line = settings_error(servers="nats://user:p#w@host:1")
    assert line.endswith(
        "must be NATS URLs such as nats://127.0.0.1:4222, not value 1, whose password may need percent-encoding"
    )


@pytest.mark.parametrize(
    ("value", "servers"),
    [
        ("nats://one:4222", ("nats://one:4222",)),
        ("nats://one:4222,nats://u:p@two:4222", ("nats://one:4222", "nats://u:p@two:4222")),
        ("nats://one:4222, nats://two:4222", ("nats://one:4222", "nats://two:4222")),
        ("", ("nats://127.0.0.1:4222",)),
    ],
)
def test_nats_url_of_environment_is_used_without_servers(
    monkeypatch: pytest.MonkeyPatch, value: str, servers: tuple[str, ...]
) -> None:
    monkeypatch.setenv("NATS_URL", value)
    assert Settings.resolve({}, {}).servers == servers
    assert Settings.resolve({"servers": None}, {}).servers == servers
    assert Settings.resolve({"servers": "nats://set"}, {}).servers == ("nats://set",)
    assert Settings.resolve({}, {"NATS_BRIDGE_SERVERS": "nats://set"}).servers == ("nats://set",)


def test_invalid_nats_url_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "http://user:hush@h")
    line = settings_error()
    assert line.startswith("NATS_URL in the environment must be NATS URLs such as nats://127.0.0.1:4222, not value 1")
    assert "hush" not in line
