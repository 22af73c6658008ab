"""nginx and HAProxy by the configurations that the documents give, and clients that come through them."""

import asyncio
import contextlib
import grp
import os
import pwd
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import aiohttp
from websockets.asyncio.client import connect

from tests.support.bridge import EventClient, WebSocketClient, free_port, until, wait_until
from tests.support.example import descendants
from tests.support.process import PROJECT
from tools.harness.certificates import Certificate
from tools.harness.processes import find_command, listens, stop

ProxyName: TypeAlias = Literal["nginx", "haproxy"]
Scheme: TypeAlias = Literal["http", "https"]

PROXIES: tuple[ProxyName, ...] = ("nginx", "haproxy")
READY_PATH = "/health/ready"
"""Path of HAProxy's health check, which decides whether a machine takes clients."""

_FOLDER = PROJECT / "docs" / "proxies"
_IDLE = "60s"
_RELOAD_SECONDS = 2.0
_LOGS = ("access.log", "error.log", "log")
_NGINX_PATHS = "".join(f" {kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


@dataclass(frozen=True)
class Placement:
    """The values by which a configuration of the documents is adapted to this machine."""

    folder: Path
    ports: Mapping[Scheme, int]
    certificate: Certificate
    machines: Sequence[int]
    """The port of the app on each of the two machines."""
    idle: str
    """Timeout for idle connections."""
    prefix: str
    """Prefix of the bridge."""
    changes: Mapping[str, str]
    """Further changes of the configuration."""

    def adapt(self, name: str, changes: Mapping[str, str]) -> None:
        """Write the documents' file with these changes. Each has one place, but paths of logs may have several."""
        text = (_FOLDER / name).read_text()
        for old, new in changes.items():
            assert text.count(old) == 1 or (old in text and "/log/" in old), (name, old)
            text = text.replace(old, new)
        (self.folder / name).write_text(text)


@dataclass
class Proxy:
    """A proxy that runs."""

    name: ProxyName
    ports: Mapping[Scheme, int]
    certificate: Certificate
    process: subprocess.Popen[bytes]
    folder: Path = field(repr=False)

    def logged(self) -> str:
        """Return all that it has logged: requests, errors and complaints."""
        return "".join((self.folder / name).read_text(errors="replace") for name in _LOGS)

    async def reload(self) -> None:
        """Have it reload its configuration, and wait for its new processes, which start while the old ones end."""
        before = descendants(self.process.pid)

        async def signal_again() -> None:
            # HAProxy's master loses a signal that arrives just before it re-executes itself.
            while True:
                self.process.send_signal(signal.SIGHUP if self.name == "nginx" else signal.SIGUSR2)
                await asyncio.sleep(_RELOAD_SECONDS)

        signaling = asyncio.create_task(signal_again())
        try:
            await until(lambda: descendants(self.process.pid) - before)
        finally:
            signaling.cancel()


@dataclass
class ProxiedBridge:
    """The app as clients see it through a proxy."""

    proxy: Proxy
    scheme: Scheme
    http: aiohttp.ClientSession = field(repr=False)
    trust: ssl.SSLContext = field(repr=False)

    @property
    def origin(self) -> str:
        return f"{self.scheme}://localhost:{self.proxy.ports[self.scheme]}"

    @contextlib.asynccontextmanager
    async def websocket(self, **options: Any) -> AsyncIterator[WebSocketClient]:
        """Connect a client of ``/stream`` and read its welcome."""
        encryption: dict[str, Any] = {"ssl": self.trust} if self.scheme == "https" else {}
        url = self.origin.replace("http", "ws") + "/stream"
        async with connect(url, max_size=None, compression=None, **encryption, **options) as connection:
            client = WebSocketClient(connection)
            client.welcome = await client.frame()
            yield client

    @contextlib.asynccontextmanager
    async def events(self, *subjects: str) -> AsyncIterator[EventClient]:
        """Connect a client of ``/events`` and read its welcome, and the reply if it has subjects."""
        query = [("subjects", subject) for subject in subjects]
        async with self.http.get(f"{self.origin}/events", params=query) as response:
            assert response.status == 200, await response.text()
            client = EventClient(response)
            client.welcome = await client.frame()
            if subjects:
                client.reply = await client.frame()
            yield client
            abort(response)

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        async with self.http.post(self.origin + path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def status(self, method: str, path: str, **headers: str) -> int:
        """Return the status of the response without reading its body."""
        async with self.http.request(method, self.origin + path, headers=headers) as response:
            abort(response)
            return response.status


def abort(response: aiohttp.ClientResponse) -> None:
    """Leave without a farewell; over TLS, aiohttp waits for the proxy's before it closes the socket."""
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()


@contextlib.asynccontextmanager
async def proxied(proxy: Proxy, scheme: Scheme) -> AsyncIterator[ProxiedBridge]:
    """Yield a bridge behind the proxy, for clients that trust only the proxy's certificate."""
    trust = ssl.create_default_context(cafile=proxy.certificate.chain)
    connector = aiohttp.TCPConnector(limit=0, ssl=trust)
    async with aiohttp.ClientSession(connector=connector) as http:
        yield ProxiedBridge(proxy, scheme, http, trust)


@contextlib.contextmanager
def running_proxy(
    name: ProxyName,
    certificate: Certificate,
    folder: Path,
    machines: Sequence[int],
    idle: str = _IDLE,
    prefix: str = "",
    changes: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Proxy]:
    """Start the proxy of two machines. The arguments are those of `Placement`."""
    ports: dict[Scheme, int] = {"http": free_port(), "https": free_port()}
    placement = Placement(folder, ports, certificate, machines, idle, prefix, changes)
    for log_name in _LOGS:
        (folder / log_name).touch()
    binary = find_command(name)
    assert binary is not None, f"{name} is not installed"
    with (folder / "log").open("w+b") as log, _syslog(folder / "access.log") as syslog:
        options = _nginx(placement) if name == "nginx" else _haproxy(placement, syslog)
        # The processes of a proxy must not outlive it, even if their leader is killed.
        process = subprocess.Popen([binary, *options], stdout=log, stderr=log, start_new_session=True)
        try:
            for port in ports.values():
                _wait_for(port, process, folder / "log")
            if name == "haproxy":
                # Before that a signal to reload would end it.
                _wait_for_line("Loading success", folder / "log")
            yield Proxy(name, ports, certificate, process, folder)
        finally:
            stop(process)


def below_sub_path() -> dict[str, str]:
    """Return the changes of nginx's configuration for an app below ``/app/``."""
    text = (_FOLDER / "nginx.conf").read_text()
    _, start, rest = text.partition("        location / {\n")
    locations, end, _ = rest.partition("        location @away {\n")
    assert start, "nginx.conf has a location for all paths"
    assert end, "nginx.conf has a location for an app that doesn't answer"
    for old, new in _locations("").items():
        locations = locations.replace(old, new)
    return {start + locations: (_FOLDER / "nginx-sub-path.conf").read_text()}


def _locations(prefix: str) -> dict[str, str]:
    """Return the changes of nginx's configuration for a bridge with this prefix."""
    # A location of an empty prefix would be that of the app.
    return {
        "location /nats/ {": f"location {prefix}/ {{" if prefix else "location /stream {",
        "location = /nats/events {": f"location = {prefix}/events {{",
    }


@contextlib.contextmanager
def _syslog(file: Path) -> Iterator[int]:
    """Write what is logged to a UDP port, as to that of syslog, into a file; yield the port."""
    with file.open("ab", buffering=0) as log, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        address = receiver.getsockname()

        def receive() -> None:
            while message := receiver.recv(65_536):
                log.write(message)

        thread = threading.Thread(target=receive)
        thread.start()
        try:
            yield address[1]
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"", address)
            thread.join()


def _nginx(placement: Placement) -> tuple[str, ...]:
    """Write the configuration, and return the options of the command line."""
    user, group = _own_names()
    folder, ports, machines = placement.folder, placement.ports, placement.machines
    placement.adapt(
        "nginx.conf",
        {
            **_locations(placement.prefix),
            **placement.changes,
            "user www-data;": f"user {user} {group};",
            "http {": "http {" + _NGINX_PATHS,
            "/var/log/nginx/access.log": str(folder / "access.log"),
            "/var/log/nginx/error.log": str(folder / "error.log"),
            "listen 80;": f"listen {ports['http']};",
            "listen 443 ssl http2;": f"listen {ports['https']} ssl http2;",
            "/etc/ssl/app.pem;": f"{placement.certificate.chain};",
            "/etc/ssl/app.key;": f"{placement.certificate.key};",
            "server 10.0.0.1:5001": f"server 127.0.0.1:{machines[0]}",
            "server 10.0.0.2:5001": f"server 127.0.0.1:{machines[1]}",
            f"proxy_read_timeout {_IDLE};": f"proxy_read_timeout {placement.idle};",
        },
    )
    options = "daemon off; pid nginx.pid; error_log stderr;"
    return ("-p", str(folder), "-c", "nginx.conf", "-e", "stderr", "-g", options)


def _haproxy(placement: Placement, syslog: int) -> tuple[str, ...]:
    """Write the configuration, and return the options of the command line."""
    user, group = _own_names()
    ports, machines, prefix = placement.ports, placement.machines, placement.prefix
    placement.adapt(
        "haproxy.cfg",
        {
            **placement.changes,
            "user haproxy": f"user {user}",
            "group haproxy": f"group {group}",
            # As many as the number of open files that the tests may have allows.
            "maxconn 20000": "maxconn 200",
            "log /dev/log local0": f"log 127.0.0.1:{syslog} local0",
            "bind :80 ": f"bind :{ports['http']} ",
            "bind :443 ": f"bind :{ports['https']} ",
            "/etc/haproxy/app.pem": str(placement.certificate.both),
            "server one 10.0.0.1:5001": f"server one 127.0.0.1:{machines[0]}",
            "server two 10.0.0.2:5001": f"server two 127.0.0.1:{machines[1]}",
            f"timeout client {_IDLE}": f"timeout client {placement.idle}",
            f"timeout server {_IDLE}": f"timeout server {placement.idle}",
            f"timeout tunnel {_IDLE}": f"timeout tunnel {placement.idle}",
            "path /nats/events": f"path {prefix}/events",
            "GET /nats/health/ready": f"GET {prefix}{READY_PATH}",
        },
    )
    return ("-W", "-db", "-f", str(placement.folder / "haproxy.cfg"))


def _own_names() -> tuple[str, str]:
    return pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        return listens(port)

    wait_until(is_ready, log.read_text)


def _wait_for_line(text: str, log: Path) -> None:
    wait_until(lambda: text in log.read_text(), log.read_text)
