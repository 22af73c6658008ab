"""The interface of the browsers that the tests of the client run in."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, TypeAlias

BrowserName: TypeAlias = Literal["chromium", "firefox"]

BROWSERS: tuple[BrowserName, ...] = ("chromium", "firefox")

LOCAL_NAME = "attacker.test"
"""A name that the browsers resolve to this machine."""


class Tab(Protocol):
    """One page of a browser."""

    async def goto(self, url: str) -> None: ...

    async def reload(self) -> None: ...

    async def evaluate(self, expression: str, arg: Any = None) -> Any:
        """Return the value of the expression; with an argument, of the function that it is."""
        ...

    async def offline(self, offline: bool) -> None:
        """Cut the tab off from the network, or connect it again."""
        ...

    async def close(self) -> None: ...


class Profile(Protocol):
    """Tabs with a storage of their own."""

    @property
    def complaints(self) -> list[str]:
        """Errors that nothing caught, and violations of a page's policy."""
        ...

    async def add_script(self, text: str) -> None:
        """Run a script at the start of each document, before its own."""
        ...

    async def tab(self) -> Tab: ...

    async def close_tabs(self, kept: Tab) -> None:
        """Close all tabs but this one."""
        ...


class Browser(Protocol):
    """A running browser."""

    def profile(self) -> AbstractAsyncContextManager[Profile]: ...
