"""The host check, with requests that no client library sends."""

import asyncio
from typing import Any

import pytest
from sanic import Sanic
from sanic.application.constants import Mode

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import SERVERS, WAIT_SECONDS, ServerName, running
from tests.support.raw import raw_connection

TARGET = "/nats/client.js"
ALLOWED = {
    "name": f"GET {TARGET} HTTP/1.1\r\nHost: app.example\r\n\r\n",
    "capitals, dot and port": f"GET {TARGET} HTTP/1.1\r\nHost: APP.example.:99\r\n\r\n",
    "empty port": f"GET {TARGET} HTTP/1.1\r\nHost: app.example:\r\n\r\n",
    "HTTP/1.0": f"GET {TARGET} HTTP/1.0\r\nHost: app.example\r\n\r\n",
    "same host twice": f"GET {TARGET} HTTP/1.1\r\nHost: app.example\r\nHost: App.example\r\n\r\n",
}
LOCAL = {
    "localhost": f"GET {TARGET} HTTP/1.1\r\nHost: localhost:8000\r\n\r\n",
    "IPv4": f"GET {TARGET} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n",
    "IPv6": f"GET {TARGET} HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n",
    "long IPv6": f"GET {TARGET} HTTP/1.1\r\nHost: [0:0:0:0:0:0:0:1]\r\n\r\n",
}
FORBIDDEN = {
    "name": f"GET {TARGET} HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "no host": f"GET {TARGET} HTTP/1.1\r\n\r\n",
    "HTTP/1.0 without host": f"GET {TARGET} HTTP/1.0\r\n\r\n",
    "empty host": f"GET {TARGET} HTTP/1.1\r\nHost:\r\n\r\n",
    "second host": f"GET {TARGET} HTTP/1.1\r\nHost: app.example\r\nHost: evil.example\r\n\r\n",
    "list": f"GET {TARGET} HTTP/1.1\r\nHost: app.example, evil.example\r\n\r\n",
    "name with tab": f"GET {TARGET} HTTP/1.1\r\nHost: app.example\tevil.example\r\n\r\n",
    "user": f"GET {TARGET} HTTP/1.1\r\nHost: app.example@evil.example\r\n\r\n",
    "name below": f"GET {TARGET} HTTP/1.1\r\nHost: app.example.evil.example\r\n\r\n",
    "absolute target": f"GET http://app.example{TARGET} HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "slash at the end": f"GET {TARGET}/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "query": f"GET {TARGET}?Host=app.example HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "other protocol": f"GET {TARGET} HTTP/1.1\r\nHost: evil.example\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "untrusted X-Forwarded-Host": (
        f"GET {TARGET} HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: app.example\r\n\r\n"
    ),
    "untrusted Forwarded": f"GET {TARGET} HTTP/1.1\r\nHost: evil.example\r\nForwarded: host=app.example\r\n\r\n",
    "IPv6 with zone": f"GET {TARGET} HTTP/1.1\r\nHost: [fe80::1%25lo]\r\n\r\n",
    "number": f"GET {TARGET} HTTP/1.1\r\nHost: 2130706433\r\n\r\n",
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerName:
    name: ServerName = request.param
    return name


async def answers(port: int, requests: dict[str, str]) -> dict[str, tuple[bytes, bool]]:
    """Return the status of the answer to each request, and whether it is a rejection of the host."""
    found = {}
    for name, request in requests.items():
        async with raw_connection(port, request) as (reader, _):
            async with asyncio.timeout(WAIT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                status = head.split()[1]
                body = await reader.readuntil(b"}") if status == b"403" else b""
            found[name] = status, b'"code":"host.forbidden"' in body
    return found


@pytest.mark.parametrize("debug", [False, True], ids=["production", "debug"])
async def test_host_header_decides_in_every_form_of_request(
    shared_nats: NatsServer, server: ServerName, debug: bool
) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        app.state.mode = Mode.DEBUG if debug else Mode.PRODUCTION

    async with running(
        servers=shared_nats.url, server=server, prepare=prepare, subscribe=[">"], allowed_hosts="app.example"
    ) as bridge:
        assert await answers(bridge.port, ALLOWED) == dict.fromkeys(ALLOWED, (b"200", False))
        assert await answers(bridge.port, FORBIDDEN) == dict.fromkeys(FORBIDDEN, (b"403", True))
        local = (b"200", False) if debug else (b"403", True)
        assert await answers(bridge.port, LOCAL) == dict.fromkeys(LOCAL, local)


async def test_repeated_forwarded_host_must_be_allowed_each_time(
    shared_nats: NatsServer, server: ServerName, caplog: pytest.LogCaptureFixture
) -> None:
    def prepare(app: Sanic[Any, Any]) -> None:
        app.config.PROXIES_COUNT = 1

    def request(*hosts: str) -> str:
        lines = "".join(f"X-Forwarded-Host: {host}\r\n" for host in hosts)
        return f"GET {TARGET} HTTP/1.1\r\nHost: backend\r\nX-Forwarded-For: 192.0.2.1\r\n{lines}\r\n"

    async with running(
        servers=shared_nats.url, server=server, prepare=prepare, subscribe=[">"], allowed_hosts="app.example"
    ) as bridge:
        allowed = {"once": request("app.example"), "twice": request("app.example", "App.example")}
        assert await answers(bridge.port, allowed) == dict.fromkeys(allowed, (b"200", False))
        forbidden = {
            "script first": request("app.example", "evil.example"),
            "script last": request("evil.example", "app.example"),
            "list": request("app.example, evil.example"),
            "none": request(),
        }
        assert await answers(bridge.port, forbidden) == dict.fromkeys(forbidden, (b"403", True))
    assert "host 'app.example, evil.example', which" in caplog.text
