"""TLS towards NATS: used if the server supports it, and required if the settings ask for it."""

import json
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_nats_supervisor import SupervisorHarness, supervising
from tests.support.bridge import free_port, until
from tests.support.nats import INFO, Peer

REFUSED = "the settings require TLS, but the server does not offer it"
LOGIN: dict[str, Any] = {"user": "u", "password": "hidden"}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with ca.pem, and server.pem and server.key for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificates")
    request = "openssl req -x509 -days 2 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    signed = "-CA ca.pem -CAkey ca.key -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=CA:FALSE"
    # From Python 3.13 on, authorities must declare what they may sign (RFC 5280).
    for arguments in (
        "-subj /CN=test-ca -keyout ca.key -out ca.pem -addext keyUsage=critical,keyCertSign",
        f"-subj /CN=nats -keyout server.key -out server.pem {signed}",
        "-subj /CN=stranger -keyout stranger.key -out stranger.pem",
    ):
        subprocess.run(f"{request} {arguments}".split(), cwd=folder, check=True, capture_output=True)
    return folder


def tls(folder: Path, **more: Any) -> str:
    names = {"cert_file": f"{folder}/server.pem", "key_file": f"{folder}/server.key"} | more
    return f"tls: {json.dumps(names)}\n"


def tls_settings(how: str, folder: Path) -> dict[str, Any]:
    """Return settings that ask for TLS in one way."""
    certificate = {"tls_cert": folder / "server.pem", "tls_key": folder / "server.key"}
    ways: dict[str, dict[str, Any]] = {
        "tls": {"tls": ssl.create_default_context(cafile=folder / "ca.pem")},
        "tls_ca": {"tls_ca": folder / "ca.pem"},
        "tls_cert": certificate,
        "tls_hostname": {"tls_hostname": "127.0.0.1"},
    }
    return ways.get(how, {})


WAYS = ["the URL", "tls", "tls_ca", "tls_cert", "tls_hostname"]


@pytest.mark.parametrize("scheme", ["tls", "nats"])
@pytest.mark.parametrize("first", [False, True], ids=["after INFO", "handshake first"])
async def test_tls_is_used_with_trusted_server(certificates: Path, scheme: str, first: bool) -> None:
    with NatsServer(config=tls(certificates, handshake_first=first)) as server:
        url = f"{scheme}://127.0.0.1:{server.port}"
        async with supervising(
            server, servers=url, tls_ca=certificates / "ca.pem", tls_handshake_first=first
        ) as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}
            (connection,) = server.monitor("/connz")["connections"]
            assert connection["tls_version"] in ("1.2", "1.3")


async def test_server_with_untrusted_certificate_is_rejected(
    certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with NatsServer(config=tls(certificates)) as server:
        async with supervising(server, servers=f"tls://127.0.0.1:{server.port}", connected=False) as bridge:
            await until(lambda: "Cannot connect to NATS" in caplog.text)
            assert "certificate" in caplog.text.lower()
            assert bridge.listener.changes == []


@pytest.mark.parametrize("first", [False, True], ids=["after INFO", "handshake first"])
@pytest.mark.parametrize("presented", [None, "stranger", "server"], ids=["none", "untrusted", "of no user"])
def test_refused_client_certificate_is_logged_in_one_line_and_writes_nothing_else(
    certificates: Path, presented: str | None, first: bool
) -> None:
    own = {"tls_cert": f"{certificates}/{presented}.pem", "tls_key": f"{certificates}/{presented}.key"}
    mapped = {"verify_and_map": True} if presented == "server" else {"verify": True}
    config = tls(certificates, ca_file=f"{certificates}/ca.pem", handshake_first=first, **mapped)
    users = 'authorization: {users: [{user: "CN=someone"}]}' if presented == "server" else ""
    with NatsServer(config=config + users) as server:
        settings = {"servers": server.url, "tls_ca": f"{certificates}/ca.pem", "tls_handshake_first": first}
        settings |= own if presented else {}
        # In a process of its own, without a logging configuration: what asyncio logs then goes to the error output.
        done = subprocess.run(
            [sys.executable, "-c", REFUSED_CERTIFICATE, json.dumps(settings)],
            check=True,
            capture_output=True,
            text=True,
        )
        assert server.monitor("/varz")["total_connections"] >= 4
    lines = done.stderr.splitlines()
    assert lines
    reasons = {line.partition(": ")[2] for line in lines}
    assert all(line.startswith(f"Cannot connect to NATS at 127.0.0.1:{server.port}: ") for line in lines), lines
    assert len(reasons) == len(lines)
    words = ("authorization violation",) if presented == "server" else ("certificate", "trust")
    assert any(word in reason for reason in reasons for word in words)


REFUSED_CERTIFICATE = """
import asyncio, json, sys
from sanic_nats_bridge.nats.supervisor import ConnectionSupervisor
from sanic_nats_bridge.settings import Settings

class Listener:
    def ignore(self, *arguments): ...
    on_message = delivery_failed = confirmed = refused = connection_established = connection_closed = ignore

async def main():
    supervisor = ConnectionSupervisor(Settings.resolve(json.loads(sys.argv[1]), {}), on_connected=lambda: None)
    attempts = asyncio.Event()
    attempt = supervisor._open
    numbers = iter(range(6))
    async def counted(*arguments):
        if next(numbers, None) is None:
            attempts.set()
        return await attempt(*arguments)
    supervisor._open = counted
    supervisor.start(Listener())
    await attempts.wait()
    await supervisor.stop()

asyncio.run(main())
"""


async def test_optional_tls_is_used_only_if_configured(certificates: Path) -> None:
    with NatsServer(config=tls(certificates) + "allow_non_tls: true") as server:
        async with supervising(server, tls_ca=certificates / "ca.pem") as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}
            (connection,) = server.monitor("/connz")["connections"]
            assert connection["tls_version"] in ("1.2", "1.3")
        async with supervising(server):
            (connection,) = server.monitor("/connz")["connections"]
            assert "tls_version" not in connection


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type:DeprecationWarning")  # nats-py's call of aiohttp
@pytest.mark.parametrize("below", ["", "tls"], ids=["alone", "and TLS at the other port"])
async def test_wss_url_connects_with_tls(certificates: Path, below: str) -> None:
    port = free_port()
    websocket = tls(certificates).removeprefix("tls: ")
    config = f"websocket {{listen: '127.0.0.1:{port}', tls: {websocket}}}\n" + (tls(certificates) if below else "")
    with NatsServer(config=config) as server:
        async with supervising(servers=f"wss://127.0.0.1:{port}", tls_ca=certificates / "ca.pem") as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}
            (connection,) = server.monitor("/connz")["connections"]
            assert connection["tls_version"] in ("1.2", "1.3")


@pytest.mark.parametrize("how", WAYS)
async def test_no_data_is_sent_to_server_without_required_tls(
    certificates: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    async with Peer().listening() as peer:
        url = peer.url.replace("nats:", "tls:") if how == "the URL" else peer.url
        async with supervising(servers=url, connected=False, **LOGIN, **tls_settings(how, certificates)) as bridge:
            # By the third connection it has read all data of the first one.
            await until(lambda: peer.accepted >= 3)
            assert bridge.listener.changes == []
        assert peer.lines == []
    assert f"Cannot connect to NATS at 127.0.0.1:{peer.port}: {REFUSED}; retrying" in caplog.text


@pytest.mark.parametrize("said", [b"{}", b'{"tls_required":false}', b'{"tls_required":null,"tls_available":false}'])
async def test_server_info_cannot_disable_required_tls(said: bytes) -> None:
    async with Peer(greeting=b"INFO " + said + b"\r\nPONG\r\n").listening() as peer:
        url = f"tls://u:hidden@127.0.0.1:{peer.port}"
        async with supervising(servers=url, connected=False) as bridge:
            await until(lambda: peer.accepted >= 3)
            assert bridge.listener.changes == []
        assert peer.lines == []


async def test_connection_is_retried_until_server_offers_tls(
    certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with NatsServer() as server:
        url = f"tls://127.0.0.1:{server.port}"
        async with supervising(servers=url, tls_ca=certificates / "ca.pem", connected=False) as bridge:
            await until(lambda: REFUSED in caplog.text)
            assert bridge.listener.changes == []
            server.config = tls(certificates)
            server.restart()
            await until(lambda: bridge.listener.changes == ["up"])
            assert await bridge.ask("a") == {"a": "confirmed"}


async def test_tls_url_does_not_require_tls_of_other_servers(nats_server: NatsServer) -> None:
    async with Peer().listening() as peer:
        servers = [f"tls://u:hidden@127.0.0.1:{peer.port}", nats_server.url]
        async with supervising(servers=servers) as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}
        assert peer.lines == []


@pytest.mark.parametrize("how", ["the URL", "tls_ca"])
async def test_tls_is_required_of_discovered_cluster_servers(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # If only the URL asks for TLS, the authorities are those of the system.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    port = free_port()
    async with Peer().listening() as peer:
        named = tls(certificates) + f"cluster: {{name: c, listen: '127.0.0.1:{port}'}}"
        other = (
            f"client_advertise: '127.0.0.1:{peer.port}'\n"
            f"cluster: {{name: c, listen: '127.0.0.1:-1', routes: ['nats://127.0.0.1:{port}']}}"
        )
        with NatsServer(config=named) as server, NatsServer(config=other):
            await until(lambda: server.monitor("/routez")["num_routes"] > 0)
            url = f"{'tls' if how == 'the URL' else 'nats'}://127.0.0.1:{server.port}"
            async with supervising(servers=url, **LOGIN, **tls_settings(how, certificates)) as bridge:
                await until(lambda: has_discovered(bridge, peer.port))
                server.kill()
                await until(lambda: peer.accepted >= 3)
                assert bridge.listener.changes == ["up", "down"]
        assert peer.lines == []


def has_discovered(bridge: SupervisorHarness, port: int) -> bool:
    return port in {uri.port for uri in bridge.client.discovered_servers}


async def test_server_without_tls_is_accepted_unless_tls_is_required() -> None:
    async with Peer(greeting=INFO).listening() as peer, supervising(servers=peer.url, **LOGIN):
        assert b"hidden" in peer.lines[0]
