"""A real Chromium, driven by Playwright."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page

from tests.support.browsers import LOCAL_NAME, Tab
from tools.harness.chromium import chromium

_WATCH = "document.addEventListener('securitypolicyviolation', (event) => complain(event.violatedDirective));"


@dataclass
class ChromiumTab:
    page: Page

    async def goto(self, url: str) -> None:
        await self.page.goto(url)

    async def reload(self) -> None:
        await self.page.reload()

    async def evaluate(self, expression: str, arg: Any = None) -> Any:
        return await self.page.evaluate(expression, arg)

    async def offline(self, offline: bool) -> None:
        await self.page.context.set_offline(offline)

    async def close(self) -> None:
        await self.page.close()

    async def install_clock(self) -> None:
        """Give the page a clock that the test can put forward."""
        await self.page.clock.install()

    async def run_for(self, milliseconds: int) -> None:
        """Put the clock forward, running each timer as often as it is due."""
        await self.page.clock.run_for(milliseconds)

    async def sleep(self, milliseconds: int) -> None:
        """Put the clock forward as a sleep of the device does: each timer that is due runs once."""
        await self.page.clock.fast_forward(milliseconds)

    @contextlib.asynccontextmanager
    async def paused(self, event: str = "none") -> AsyncIterator[None]:
        """Stop the page as a debugger does, after an event at its document.

        Playwright's pages can't be frozen by the browser, because they are never hidden.
        """
        devtools = await self.page.context.new_cdp_session(self.page)
        paused = asyncio.Event()
        devtools.on("Debugger.paused", lambda _: paused.set())
        await devtools.send("Debugger.enable")
        # As after an event of the browser's own: what its listeners have promised is done.
        turns = "for (let turn = 0; turn < 100; turn++) await null;"
        script = f"async (type) => {{ document.dispatchEvent(new Event(type)); {turns} debugger; }}"
        evaluating = asyncio.create_task(self.page.evaluate(script, event))
        await paused.wait()
        try:
            yield
        finally:
            await devtools.send("Debugger.disable")
            await evaluating
            await devtools.detach()


@dataclass
class ChromiumProfile:
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)

    async def add_script(self, text: str) -> None:
        await self.context.add_init_script(text)

    async def tab(self) -> ChromiumTab:
        return ChromiumTab(await self.context.new_page())

    async def close_tabs(self, kept: Tab) -> None:
        for page in self.context.pages:
            if kept != ChromiumTab(page):
                await page.close()


class Chromium:
    """A running Chromium."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, _folder: Path) -> AsyncIterator["Chromium"]:
        async with chromium(f"--host-resolver-rules=MAP {LOCAL_NAME} 127.0.0.1") as browser:
            yield cls(browser)

    @contextlib.asynccontextmanager
    async def profile(self) -> AsyncIterator[ChromiumProfile]:
        context = await self._browser.new_context()
        profile = ChromiumProfile(context)
        context.on("weberror", lambda error: profile.complaints.append(str(error.error)))
        await context.expose_function("complain", lambda text: profile.complaints.append(text))
        await profile.add_script(_WATCH)
        yield profile
        await context.close()

    @contextlib.asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Stop all pages, as in a sleep, while the browser's network goes on."""
        devtools = await self._browser.new_browser_cdp_session()
        processes = (await devtools.send("SystemInfo.getProcessInfo"))["processInfo"]
        renderers = [process["id"] for process in processes if process["type"] == "renderer"]
        assert renderers
        for pid in renderers:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in renderers:
                os.kill(pid, signal.SIGCONT)
