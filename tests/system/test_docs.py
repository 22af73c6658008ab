"""What the documents say is what the code does."""

import json
import re
import subprocess
import sys
import time
from dataclasses import fields
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from sanic_nats_bridge import CloseCode, NatsBridge, Permissions, errors
from sanic_nats_bridge.metrics.definitions import METRICS
from sanic_nats_bridge.protocol.messages import Close, Gap, Heartbeat, Reply, Status, Unsubscribed, Welcome
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import running

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below the heading."""
    table = re.search(r"(?:^\|.*\n)+", text.partition(f"\n## {heading}\n")[2], re.MULTILINE)
    assert table is not None
    lines = table.group().strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_setting_is_in_the_table_once() -> None:
    named = [name for row in rows(README, "Settings") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(option.name for option in fields(Settings))


def test_the_defaults_in_the_table_are_those_of_the_code() -> None:
    shown = {re.findall(r"`(\w+)`", row[0])[0]: row[1].strip("`").replace(",", "") for row in rows(README, "Settings")}
    for option in fields(Settings):
        if option.name not in shown:  # stands in a row with others
            continue
        default: Any = option.default
        if default is None or default == ():
            assert shown[option.name] in ("\u2013", "none"), option.name
        elif isinstance(default, tuple):
            assert [shown[option.name]] == list(default)
        elif isinstance(default, bool | str):
            assert shown[option.name] == str(default)
        else:
            assert float(shown[option.name]) == default, option.name


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    shown = [[cell.strip("`") for cell in row[:2]] for row in rows(README, "Health and metrics")]
    assert shown == [[metric.name, metric.label or ""] for metric in METRICS]


def test_each_frame_in_the_protocol_is_one_of_the_code() -> None:
    frames = Welcome | Reply | Gap | Unsubscribed | Status | Heartbeat | Close
    shown = [line for block in blocks(PROTOCOL, "json") for line in block.splitlines() if '"type"' in line]
    kinds = {json.loads(line)["type"] for line in shown}
    assert kinds == {"welcome", "reply", "message", "gap", "unsubscribed", "status", "heartbeat", "close"}
    for line in shown:
        if json.loads(line)["type"] != "message":
            frame = msgspec.json.decode(line, type=frames)
            assert json.loads(msgspec.json.encode(frame)) == json.loads(line)


def test_each_code_in_the_protocol_has_the_http_status_of_the_code() -> None:
    stated = {}
    for cells in rows(PROTOCOL, "Codes"):
        for code in re.findall(r"`([a-z]+(?:\.[a-z_]+)?)`", cells[0]):
            stated[code] = int(cells[1][:3])
    known = {
        error.code: error.http_status
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.BridgeError) and error is not errors.BridgeError
        if error is not errors.UnsupportedMediaType
    }
    assert stated == known


def test_each_close_code_in_the_protocol_is_one_of_the_code() -> None:
    text = PROTOCOL.partition("| Close code |")[2].partition("\n\n")[0]
    stated = {int(code): verdict == "yes" for code, verdict in re.findall(r"\| (\d{4}) \|.*\| (yes|no)\b", text)}
    assert stated == {int(code): code.reconnect for code in CloseCode}


@pytest.mark.parametrize("source", blocks(README, "python"))
def test_the_python_in_the_readme_compiles(source: str) -> None:
    compile(source, "README.md", "exec")


def test_the_test_in_the_readme_passes(tmp_path: Path) -> None:
    (app,) = (block for block in blocks(README, "python") if "async def order(" in block)
    (test,) = (block for block in blocks(README, "python") if "def test_an_order_is_published" in block)
    script = tmp_path / "script.py"
    script.write_text(f"{app}\n\n{test}\n\ntest_an_order_is_published()\nprint('passed')")
    result = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.endswith("passed\n"), result.stderr


async def test_the_permissions_in_the_readme_open_what_its_text_says() -> None:
    async def user_of(_: Any) -> Any:
        return SimpleNamespace(id=42, tenant="acme", session_expires=None)

    (source,) = (block for block in blocks(README, "python") if "async def permissions" in block)
    names: dict[str, Any] = {}
    exec(source, names)
    names["user_of"] = user_of
    permissions: Permissions = await names["permissions"](None)
    assert permissions.grant("me.inbox.>").real == "users.42.inbox.>"
    assert permissions.explain("shop.acme.orders.>").allowed
    assert not permissions.explain("shop.other.orders.>").allowed
    assert not permissions.explain("users.42.inbox.>").allowed
    assert permissions.identity == "42"


async def test_who_is_narrowed_as_in_the_readme_keeps_the_end_of_its_session(shared_nats: NatsServer) -> None:
    (source,) = (block for block in blocks(README, "python") if "async def narrow" in block)
    user = SimpleNamespace(id=42, session_expires=int(time.time()) + 600)
    names: dict[str, Any] = {"NatsBridge": NatsBridge, "Permissions": Permissions, "User": SimpleNamespace}
    exec(source, names)

    def permissions(_: Any) -> Permissions:
        return Permissions([">"], identity=str(user.id), expires=user.session_expires)

    async with running(servers=shared_nats.url, permissions=permissions) as bridge, bridge.events("news.a", "b"):
        (session,) = bridge.extension.sessions
        await names["narrow"](bridge.extension, user)
        assert (session.subscriptions, session.permissions.expires_at) == (("news.a",), user.session_expires)
        await bridge.extension.update_permissions(Permissions(["news.>"]), identity="42")
        assert session.permissions.expires_at == inf
        await names["log_out"](bridge.extension, "42")
        assert session.closed


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/protocol.md",
        "docs/client.md",
        "docs/design.md",
        "docs/benchmarks.md",
        "docs/operations.md",
        "docs/reliability.md",
        "CHANGELOG.md",
    ],
)
def test_links_between_the_documents_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
