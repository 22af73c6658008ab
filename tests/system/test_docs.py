"""The documents agree with the code."""

import re
import time
from dataclasses import fields
from math import inf
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest

import sanic_nats_bridge
from sanic_nats_bridge import CloseCode, Permissions, errors, testing
from sanic_nats_bridge.metrics.definitions import METRICS
from sanic_nats_bridge.protocol import headers, publish
from sanic_nats_bridge.protocol import messages as protocol
from sanic_nats_bridge.protocol.start import MAX_ID_CHARACTERS, StartName
from sanic_nats_bridge.protocol.stream_messages import Operation
from sanic_nats_bridge.protocol.subjects import MAX_SUBJECT_BYTES, MAX_TOKENS
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import running
from tests.support.docs import PAGES, ROOT, blocks, file_of, links, table
from tests.support.messages import UNSEEN, messages

SETTINGS = table("docs/reference/settings.md", "All settings")
ERRORS = "docs/reference/errors.md"
PERMISSIONS = "docs/guides/permissions.md"
README_MAX_BYTES = 8192


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_settings_table_lists_every_setting_once() -> None:
    assert sorted(name for row in SETTINGS for name in names_in(row[0])) == sorted(
        option.name for option in fields(Settings)
    )


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: str(row[0]))
def test_default_in_settings_table_matches_code(row: list[str]) -> None:
    shown = row[1].strip("`").replace(",", "")
    for option in fields(Settings):
        if option.name not in names_in(row[0]):
            continue
        default: Any = getattr(Settings(), option.name)
        if default in (None, (), {}):
            assert shown in ("\u2013", "none")
        elif isinstance(default, tuple):
            assert [shown] == list(default)
        elif isinstance(default, bool | str):
            assert shown == str(default)
        else:
            assert float(shown) == default


def test_metrics_tables_match_code() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    section = page.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(natsbridge_\w+)` \| (?:`(\w+)`)? ?\|", section, re.MULTILINE)
    assert sorted(rows) == sorted((metric.name, metric.label or "") for metric in METRICS)


def test_alerts_table_names_only_existing_metrics() -> None:
    known = {metric.name for metric in METRICS}
    named = [re.findall(r"natsbridge_\w+", row[0]) for row in table("docs/reference/metrics.md", "Alerts")]
    assert all(names and {*names} <= known for names in named)


def test_http_statuses_in_error_table_match_code() -> None:
    stated = {names_in(row[0])[0]: int(row[1][:3]) for row in table(ERRORS, "Codes")}
    assert stated == {
        error.code: error.http_status
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.BridgeError) and error is not errors.BridgeError
        if error.__base__ is errors.BridgeError
    }


def test_close_codes_in_error_table_match_errors() -> None:
    stated = {
        names_in(row[0])[0]: set(map(int, re.findall(r"close (\d{4})", row[2]))) for row in table(ERRORS, "Codes")
    }
    # Repeated commands close the session too, though no one of them does.
    repeated = {code: {int(CloseCode.TOO_MANY_COMMANDS)} for code in ("limit.rate", "limit.publish")}
    known: dict[str, set[int]] = {code: set() for code in stated} | repeated
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.BridgeError) and error.close_code is not None:
            known[error.code].add(int(error.close_code))
    assert stated == known


def test_close_code_table_matches_code() -> None:
    stated = {int(row[0]): row[2].startswith("yes") for row in table(ERRORS, "Close codes")}
    assert stated == {int(code): code.reconnect for code in CloseCode}


def test_protocol_page_shows_every_frame_and_command() -> None:
    shown = "".join(block.text for block in blocks("docs/reference/protocol.md", "json"))
    kinds = {"welcome", "reply", "message", "caught_up", "gap", "unsubscribed", "status", "heartbeat", "close"}
    assert set(re.findall(r'"type": "(\w+)"', shown)) == kinds
    assert {"subscribe", "unsubscribe", "ping", "publish", "request"} <= set(re.findall(r'"action": "(\w+)"', shown))


def test_protocol_page_shows_start_fields_reasons_and_operations() -> None:
    page = (ROOT / "docs/reference/protocol.md").read_text()
    section = page.partition("\n## History\n")[2].partition("\n## ")[0]
    assert all(f'`"{name}"`' in section for name in get_args(StartName))
    assert all(f"`{operation}`" in section for operation in get_args(Operation) if operation)
    reasons = get_args(get_type_hints(protocol.Gap)["reason"])
    rows = [row[0] for heading in ("gap", "Gaps in the past") for row in table("docs/reference/protocol.md", heading)]
    assert {name for row in rows for name in names_in(row)} == set(reasons)
    assert f"at most {MAX_ID_CHARACTERS} characters" in section


def test_protocol_page_states_limits_of_publishes() -> None:
    page = (ROOT / "docs/reference/protocol.md").read_text()
    section = page.partition("\n## Publish and request\n")[2].partition("\n## ")[0]
    assert f"tokens (RFC 9110) of at most {headers.MAX_NAME_CHARACTERS} characters" in section
    assert f"at most {headers.MAX_VALUE_BYTES:,} bytes" in section
    assert f"at most {headers.MAX_HEADERS} values" in section
    assert f"1 to {publish.MAX_MESSAGE_ID_CHARACTERS} letters" in section
    assert f"at least {publish.MIN_ANONYMOUS_ID_CHARACTERS}, made of 128 random" in section
    assert f"`{Settings.identity_header}`" in section
    fields_of_command = {
        name for row in table("docs/reference/protocol.md", "Publish and request") for name in names_in(row[0])
    }
    assert fields_of_command == set(publish.PublishCommand.__struct_fields__) - {"action", "payload"} | {"data"}
    named = set(re.findall(r"`((?:publish|request)\.\w+|limit\.(?:publish|requests))`", section))
    assert named == {
        error.code
        for error in errors.BridgeError.__subclasses__()
        if error.code.startswith(("publish.", "request.", "limit.publish", "limit.requests"))
    }


def test_client_page_lists_every_option_and_event() -> None:
    types = (ROOT / "sanic_nats_bridge/browser/client.d.ts").read_text()
    for interface, heading in (("Options", "connect(options)"), ("ClientEvents", "Events")):
        declared = re.search(rf"interface {interface} {{\n(.*?)\n}}", types, re.DOTALL)
        assert declared is not None
        fields_of_it = re.findall(r"^  (\w+)\??:", declared[1], re.MULTILINE)
        rows = table("docs/reference/client.md", heading)
        assert sorted(name for row in rows for name in names_in(row[0])) == sorted(fields_of_it)


def test_login_page_reasons_are_those_of_the_client() -> None:
    source = (ROOT / "sanic_nats_bridge/browser/client.js").read_text()
    for reason, *_ in table("docs/guides/login.md", "Login pages of proxies"):
        parts = re.split("…|401 text/html", reason.strip("`"))
        assert [part for part in parts if part.removeprefix("POST: ").strip() not in source] == []


def test_protocol_page_states_pattern_limits() -> None:
    text = (ROOT / "docs/reference/protocol.md").read_text()
    assert f"1 to {MAX_SUBJECT_BYTES} bytes" in text
    assert f"at most {MAX_TOKENS} tokens" in text


def test_api_page_lists_every_public_name() -> None:
    text = (ROOT / "docs/reference/api.md").read_text()
    public = {f"sanic_nats_bridge.{name}" for name in sanic_nats_bridge.__all__ if name != "__version__"}
    public |= {f"sanic_nats_bridge.testing.{name}" for name in testing.__all__}
    assert set(re.findall(r"^::: (\S+)$", text, re.MULTILINE)) == public


def test_architecture_page_lists_every_top_level_package_and_module() -> None:
    folder = ROOT / "sanic_nats_bridge"
    known = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    known |= {f"{path.name}/" for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"}
    rows = table("docs/internals/architecture.md", "Packages")
    assert sorted(name for row in rows for name in re.findall(r"`(\w+/?)`", row[0])) == sorted(known)


async def test_permissions_in_guide_allow_documented_patterns() -> None:
    names: dict[str, Any] = {"__name__": "guide"}
    exec(file_of(PERMISSIONS, "server.py").partition('app = Sanic("shop")')[0], names)
    permissions: Permissions = await names["permissions"](SimpleNamespace(cookies={"session": "s3cret"}))
    assert permissions.grant("me.inbox.>").real == "users.42.inbox.>"
    assert permissions.explain("shop.acme.orders.>").allowed
    assert not permissions.explain("shop.other.orders.>").allowed
    assert not permissions.explain("users.42.inbox.>").allowed
    assert permissions.identity == "42"
    assert await names["permissions"](SimpleNamespace(cookies={})) is None


async def test_guide_example_restricts_and_closes_sessions(shared_nats: NatsServer) -> None:
    user = SimpleNamespace(id=42, session_expires=int(time.time()) + 600)
    names: dict[str, Any] = {"User": SimpleNamespace}
    exec(file_of(PERMISSIONS, "admin.py").replace("from server import User\n", ""), names)

    def permissions(_: Any) -> Permissions:
        return Permissions([">"], identity=str(user.id), expires=user.session_expires)

    async with running(servers=shared_nats.url, permissions=permissions) as bridge, bridge.events("news.a", "b"):
        (session,) = bridge.extension.sessions
        await names["restrict"](bridge.extension, user)
        assert (session.subscriptions, session.permissions.expires_at) == (("news.a",), user.session_expires)
        await bridge.extension.update_permissions(Permissions(["news.>"]), identity="42")
        assert session.permissions.expires_at == inf
        await names["log_out"](bridge.extension, user)
        assert session.closed


def test_readme_is_at_most_8_kib() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_MAX_BYTES


def test_readme_quickstart_and_pypi_page_show_same_app() -> None:
    assert file_of("README.md", "server.py") == file_of("docs/quickstart.md", "server.py")
    for name in ("server.py", "index.html"):
        assert file_of("README.md", name) == file_of("docs/pypi.md", name)


@pytest.mark.parametrize("page", PAGES)
def test_link_targets_and_anchors_exist(page: str) -> None:
    for path, anchor in links(page):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        if anchor and not anchor.startswith("sanic_nats_bridge."):  # mkdocs itself looks for those of the API
            assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), f"{path}#{anchor}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", "docs/internals/architecture.md"])
def test_files_named_in_page_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:tests|tools|docs|sanic_nats_bridge)/[\w./]+)`", text)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_make_targets_named_in_pages_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for page in PAGES
        for target in re.findall(r"(?:^|`)make ([\w-]+)", (ROOT / page).read_text(), re.MULTILINE)
    }
    assert named <= targets


def test_troubleshooting_page_lists_every_message_once() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text().partition("\n## Settings\n")[2]
    listed = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(set(listed))
    assert UNSEEN.keys() <= messages().keys()
    written = messages().keys() - UNSEEN.keys()
    assert {"no entry for": written - {*listed}, "not in the code": {*listed} - written} == {
        "no entry for": set(),
        "not in the code": set(),
    }
