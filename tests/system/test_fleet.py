"""Two machines of two workers on a cluster of three NATS servers: the servers and a worker are killed."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tools.faults import __main__ as command_line
from tools.faults import network as networks
from tools.faults.network import LOOPBACK, network
from tools.faults.results import Results

DOCS = Path(__file__).parents[2] / "docs" / "internals"


def test_clients_on_two_machines_lose_no_message_without_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DOCS / "reliability.md", tmp_path)
    monkeypatch.setattr(sys, "argv", ["faults", "fleet", "--small", "--rounds", "1", "--docs", str(tmp_path)])
    code = command_line.main()
    assert code == 0, capsys.readouterr().out
    (run,) = Results.load(tmp_path / "reliability" / "results.json").runs
    assert (run.clients, run.recovered, run.verdict.broken) == (16, 16, 0)
    assert run.verdict.delivered
    # Whether a message passed just then is chance, but each client learns that a server was killed.
    assert run.noticed
    assert len(run.first_message_after) == 3
    assert run.reconnect_times
    *remarks, posts = run.remarks
    assert "200: " in posts
    if os.geteuid() == 0:
        assert remarks == []
    else:
        with capsys.disabled():
            sys.stderr.write(f"\nNOT ROOT, SO LESS IS SHOWN: {remarks[0]}\n")


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_host_network_is_isolated_and_removed_afterwards() -> None:
    before = interfaces()
    with network() as net:
        here, there = net.add_host(), net.add_host()
        if not net.isolated:
            assert (here, there) == (LOOPBACK, LOOPBACK)
            return
        assert interfaces() == {"lo", "switch", "port1", "port2"}
        with there.entered():
            assert interfaces() == {"lo", "uplink"}
            listener = socket.create_server((there.address, 0))
        with listener, here.entered():
            with socket.create_connection(listener.getsockname(), 5) as connection:
                assert connection.getsockname()[0] == here.address
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((here.address, listener.getsockname()[1]), 5)
        shown = subprocess.run(there.command("cat", "/proc/net/dev"), capture_output=True, text=True, check=True).stdout
        assert "uplink:" in shown
    assert interfaces() == before


def test_hosts_use_loopback_if_namespaces_are_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError

    monkeypatch.setattr(networks, "_namespace", refused)
    with network() as net:
        assert not net.isolated
        host = net.add_host()
        assert host.address == "127.0.0.1"
        assert host.command("true") == ["true"]
        before = interfaces()
        with host.entered():
            assert interfaces() == before
