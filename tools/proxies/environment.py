"""The surroundings of the proxies: NATS, the apps, the publisher, and the browser."""

import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from playwright.async_api import Browser, BrowserContext

from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.testing import NatsServer

from ..harness.certificates import Certificate, self_signed
from ..harness.chromium import chromium
from ..harness.processes import free_port, python_server
from .middlebox import Middlebox
from .programs import running_program
from .publisher import Publisher
from .setup import Program, Setup

__all__ = ["Environment", "Site", "environment"]

_READABLE = 0o755


@dataclass(frozen=True)
class Site:
    """An app behind a proxy.

    Attributes:
        origin: The origin of the page.
        heartbeat: The heartbeat of the bridge in seconds.
        browser_proxy: The address of the proxy in the settings of the browser, if it has one.
    """

    setup: Setup
    origin: str
    app_port: int
    proxy_port: int
    heartbeat: float
    browser_proxy: str | None = None


@dataclass(frozen=True)
class Environment:
    """The parts that all set-ups share.

    Attributes:
        sites: The apps of all set-ups by the names of the set-ups. Their proxies don't run yet.
        folder: A folder for the proxies.
    """

    browser: Browser
    publisher: Publisher
    sites: Mapping[str, Site]
    folder: Path
    certificate: Certificate
    http: aiohttp.ClientSession

    async def sessions(self, site: Site) -> list[list[str]]:
        """Return the patterns of each session of an app."""
        async with self.http.get(f"http://127.0.0.1:{site.app_port}/sessions") as response:
            found: list[list[str]] = await response.json()
            return found

    @contextlib.asynccontextmanager
    async def proxy(self, site: Site) -> AsyncIterator[None]:
        """Run the proxy of a set-up.

        Raises:
            StartError: It doesn't start.
        """
        setup = site.setup
        if not isinstance(setup.proxy, Program):
            async with Middlebox(site.app_port, setup.proxy).running(site.proxy_port):
                yield
            return
        folder = self.folder / setup.name
        folder.mkdir()
        async with running_program(setup, site.app_port, site.proxy_port, self.certificate, folder):
            yield

    @contextlib.asynccontextmanager
    async def profile(self, site: Site) -> AsyncIterator[BrowserContext]:
        """Open a profile of the browser that uses the proxy of a set-up."""
        options: dict[str, Any] = {"ignore_https_errors": True}
        if site.browser_proxy is not None:
            options["proxy"] = {"server": site.browser_proxy, "bypass": "<-loopback>"}
        context = await self.browser.new_context(**options)
        try:
            yield context
        finally:
            await context.close()


@contextlib.asynccontextmanager
async def environment(setups: Iterable[Setup], rate: float, settings: Mapping[str, Any]) -> AsyncIterator[Environment]:
    """Set up an environment, with an app for each group of set-ups with the same settings.

    Args:
        setups: The set-ups to measure.
        rate: Messages per second.
        settings: Settings of the bridge for all set-ups. They override those of the set-ups.
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(_folder())
        nats = stack.enter_context(NatsServer())
        sites = _sites(setups, nats.url, settings, stack)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        browser = await stack.enter_async_context(chromium())
        publisher = await stack.enter_async_context(Publisher.running(nats.url, rate))
        yield Environment(browser, publisher, sites, folder, self_signed(folder), http)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # Proxies that end late may still write into it.
    with tempfile.TemporaryDirectory(prefix="proxies-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(_READABLE)  # some change their user
        yield folder


def _sites(
    setups: Iterable[Setup], nats_url: str, settings: Mapping[str, Any], stack: contextlib.AsyncExitStack
) -> dict[str, Site]:
    sites, apps = {}, {}
    for setup in setups:
        port = free_port()
        host = "localhost" if setup.scheme == "https" else "127.0.0.1"
        origin = f"{setup.scheme}://{host}:{port}"
        options: dict[str, Any] = {"servers": nats_url, **setup.settings, **settings}
        argument = json.dumps(options)
        if argument not in apps:
            apps[argument] = stack.enter_context(python_server("tools.proxies.app", argument)).port
        app = apps[argument]
        heartbeat = options.get("heartbeat", Settings().heartbeat)
        if setup.forward:
            sites[setup.name] = Site(setup, f"http://127.0.0.1:{app}", app, port, heartbeat, browser_proxy=origin)
        else:
            sites[setup.name] = Site(setup, origin, app, port, heartbeat)
    return sites
