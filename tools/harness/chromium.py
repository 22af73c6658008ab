"""The installed Chromium, driven by Playwright."""

import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, async_playwright

__all__ = ["chromium", "launch_options"]


def launch_options(*arguments: str) -> dict[str, Any]:
    """Return the options by which Playwright launches the installed Chromium, with further arguments of its own."""
    executable = shutil.which("chromium")
    assert executable is not None, "chromium is not installed"
    return {"executable_path": executable, "args": ["--no-sandbox", *arguments]}


@contextlib.asynccontextmanager
async def chromium(*arguments: str) -> AsyncIterator[Browser]:
    """Run a Chromium, with further arguments, until the end of the context."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(**launch_options(*arguments))
        try:
            yield browser
        finally:
            await browser.close()
