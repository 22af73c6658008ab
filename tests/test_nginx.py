import asyncio
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .support import Bridge, Publisher, free_port
from .support_process import ended, listening

CONFIG = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:%(port)d;
        location / {
            proxy_pass http://127.0.0.1:%(upstream)d;
            proxy_set_header Host $http_host;
            proxy_buffering on;
        }
        location /nats/stream {
            proxy_pass http://127.0.0.1:%(upstream)d;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_set_header Host $http_host;
        }
    }
}
"""


@pytest.fixture
async def proxied(bridge: Bridge, tmp_path: Path) -> AsyncIterator[Bridge]:
    """The bridge as seen through nginx."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") or shutil.which("nginx")
    assert binary is not None, "nginx is not installed"
    port = free_port()
    (tmp_path / "nginx.conf").write_text(CONFIG % {"port": port, "upstream": bridge.port})
    command = (binary, "-p", str(tmp_path), "-c", "nginx.conf", "-e", "stderr")
    process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=PIPE)
    try:
        await listening(port)
        yield Bridge(bridge.app, bridge.extension, port, bridge.prefix, bridge.http)
    finally:
        await ended(process)


async def test_events_come_through_a_buffering_nginx_one_by_one(proxied: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with proxied.events(subject) as client:
        assert client.response.headers["Server"].startswith("nginx")
        for number in range(20):
            await publisher.send(subject, b"%d" % number)
            assert await client.data(1) == [number]


async def test_a_websocket_comes_through_nginx(proxied: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with proxied.websocket() as client:
        assert client.connection.response is not None
        assert client.connection.response.headers["Server"].startswith("nginx")
        await client.follow(subject)
        for number in range(20):
            await publisher.send(subject, b"%d" % number)
            assert await client.data(1) == [number]


async def test_a_refusal_and_a_post_come_through_nginx(proxied: Bridge) -> None:
    async with proxied.http.get(f"{proxied.url}/events?subjects=%24SYS.%3E") as response:
        assert (response.status, (await response.json())["code"]) == (403, "subject.forbidden")
    async with proxied.events() as client:
        status, reply = await proxied.post("/subscribe", {"session": client.session, "subjects": ["a"]})
        assert (status, reply["active"]) == (200, True)


async def test_the_apps_own_pages_come_in_through_nginx_and_others_do_not(proxied: Bridge) -> None:
    own = f"http://127.0.0.1:{proxied.port}"
    async with proxied.websocket(origin=own) as client:
        command = {"session": client.session, "subjects": ["a"]}
        assert (await proxied.post("/subscribe", command, Origin=own))[0] == 200
        assert (await proxied.post("/subscribe", command, Origin="http://evil.example"))[0] == 403
