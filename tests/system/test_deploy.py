"""Deploys of an app behind proxies that answer in its place: browser clients go on, and miss no message silently."""

import functools
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tools.faults import __main__ as command_line
from tools.faults import deploy, machine
from tools.faults.browser_clients import BrowserClient, NodeClient, NodeProcess
from tools.faults.deploy import check_attempts, fullest_second
from tools.faults.reconnecting_clients import Reconnect
from tools.faults.results import Results, Run

DOCS = Path(__file__).parents[2] / "docs" / "internals"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["faults", "deploy", "--small", "--rounds", "1", *arguments])
    return command_line.main()


def test_browser_clients_survive_answers_of_proxies_during_deploys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DOCS / "reliability.md", tmp_path)
    code = call(monkeypatch, "--docs", str(tmp_path))
    assert code == 0, capsys.readouterr().out
    (run,) = Results.load(tmp_path / "reliability" / "results.json").runs
    assert (run.clients, run.recovered, run.verdict.broken) == (32, 32, 0)
    assert run.verdict.delivered
    assert run.verdict.announced
    # Those that open during a deploy have no session before it.
    assert len(run.reconnect_times) >= 16 + 24
    assert [remark.partition(" in ")[0] for remark in run.remarks] == [
        "24 of 24 clients refused",
        "32 of 32 clients refused",
    ]
    assert "\n| deploy |" in (tmp_path / "reliability.md").read_text().partition("### Sessions that ended")[2]


def test_clients_that_take_404_of_proxy_for_final_are_detected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy, "BrowserClient", functools.partial(BrowserClient, trusting=True))
    # Sanic's manager ignores the SIGTERM of a run that ends as soon as its workers serve.
    monkeypatch.setattr(machine, "_STOP_SECONDS", 3.0)
    assert call(monkeypatch) == 1
    assert "clients have ended: HTTP 404" in capsys.readouterr().out


def test_missing_packages_of_node_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert call(monkeypatch) == 1
    assert "FAILED: InjectionError: make faults installs node and its packages" in capsys.readouterr().out


class FakeNode(NodeProcess):
    def __init__(self) -> None:
        self.options: list[Mapping[str, Any]] = []

    def open(self, client: NodeClient, options: Mapping[str, Any]) -> None:
        self.options.append(options)


def client_with(*states: str) -> BrowserClient:
    """Return a client that had these states, one each second, and was asked in its first session to wait for 3 s."""
    client = BrowserClient("c", ["a"], FakeNode(), "http://app/nats")
    client.note(0.0, {"type": "close", "retry": 3000})
    for number, state in enumerate(states):
        client.note(float(number), {"type": "state", "state": state})
    return client


def test_time_between_sessions_counts_as_one_reconnect() -> None:
    states = ["subscribing", "connected", "waiting", "connecting", "waiting", "connecting", "subscribing", "connected"]
    client = client_with(*states)
    assert client.reconnects == [Reconnect(ended=2.0, retry=3.0, reconnected=7.0)]
    assert (client.attempts, client.failures) == ([3.0, 5.0], 0)


def test_attempts_of_client_without_session_are_failures() -> None:
    client = client_with("connected", "waiting", "connecting", "waiting", "connecting", "waiting")
    assert (client.failures, client.reconnects, client.connected, client.has_ended) == (2, [], False, False)


def test_client_that_is_still_subscribing_keeps_its_session() -> None:
    assert client_with("connected", "subscribing", "connected").reconnects == []


def test_closed_client_has_ended() -> None:
    client = client_with("connected", "closed")
    assert (client.connected, client.has_ended) == (False, True)


def test_attempts_in_the_same_second_are_detected() -> None:
    run = Run("deploy", 0)
    spread = [number / 10 for number in range(100)]
    assert fullest_second(spread) == 0.1
    check_attempts(spread, run)
    assert run.failures == []
    check_attempts([*spread, *[4.5] * 25], run)
    assert run.failures == ["28% of 125 attempts to connect were in one second"]
