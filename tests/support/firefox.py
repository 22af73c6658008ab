"""A real Firefox, driven by WebDriver BiDi (https://w3c.github.io/webdriver-bidi/), which it speaks by itself."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.bridge import WAIT_SECONDS, until
from tests.support.browsers import LOCAL_NAME, Tab
from tests.support.process import ended

# Firefox itself notes every connection that fails or ends, as an error of the page's script.
_LOST = re.compile(r"Firefox can.t establish a connection to |The connection to \S+ was interrupted ")

_START_SECONDS = 3 * WAIT_SECONDS


class Firefox:
    """A running Firefox."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = count()
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self.complaints: dict[str, list[str]] = {}
        """The list for the errors of each tab."""

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator["Firefox"]:
        """Start a Firefox that writes to this folder only."""
        command = shutil.which("firefox-esr")
        assert command is not None, "make test installs firefox-esr"
        (folder / "user.js").write_text(f'user_pref("network.dns.localDomains", "{LOCAL_NAME}");\n')
        options = ("--headless", "--no-remote", "--profile", str(folder), "--remote-debugging-port", "0")
        environment = os.environ | {"HOME": str(folder)}
        with tempfile.TemporaryFile() as log:
            process = await asyncio.create_subprocess_exec(command, *options, stdout=log, stderr=log, env=environment)
            try:
                await until(lambda: _address(log), _START_SECONDS)
                async with connect(f"{_address(log)}/session", max_size=None, ping_interval=None) as connection:
                    firefox = cls(connection)
                    reading = asyncio.create_task(firefox._read())
                    await firefox.ask("session.new", capabilities={}, seconds=_START_SECONDS)
                    await firefox.ask("session.subscribe", events=["log.entryAdded"])
                    yield firefox
                    await firefox.ask("browser.close")
                await reading
            finally:
                await ended(process)

    async def ask(self, method: str, *, seconds: float = 2 * WAIT_SECONDS, **params: Any) -> Any:
        """Return the result of a command, or raise the error that the browser answers with."""
        number = next(self._ids)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        await self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(seconds):
            return await asyncio.shield(reply)

    @contextlib.asynccontextmanager
    async def profile(self) -> AsyncIterator["FirefoxProfile"]:
        name = (await self.ask("browser.createUserContext"))["userContext"]
        yield FirefoxProfile(self, name)
        await self.ask("browser.removeUserContext", userContext=name)

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in self._connection:
                self._take(json.loads(text))

    def _take(self, said: Any) -> None:
        if said["type"] == "event":
            self._note(said["params"])
        elif said["type"] == "success":
            self._replies.pop(said["id"]).set_result(said["result"])
        else:
            self._replies.pop(said["id"]).set_exception(AssertionError(said["error"], said["message"]))

    def _note(self, entry: Any) -> None:
        complaints = self.complaints.get(entry["source"].get("context"))
        if complaints is not None and entry["level"] == "error" and not _LOST.match(entry["text"]):
            complaints.append(entry["text"])


@dataclass
class FirefoxProfile:
    firefox: Firefox
    name: str
    complaints: list[str] = field(default_factory=list)
    tabs: list["FirefoxTab"] = field(default_factory=list)

    async def add_script(self, text: str) -> None:
        declaration = f"() => {{ {text} }}"
        await self.firefox.ask("script.addPreloadScript", functionDeclaration=declaration, userContexts=[self.name])

    async def tab(self) -> "FirefoxTab":
        created = await self.firefox.ask("browsingContext.create", type="tab", userContext=self.name)
        self.firefox.complaints[created["context"]] = self.complaints
        self.tabs.append(tab := FirefoxTab(self.firefox, created["context"]))
        return tab

    async def close_tabs(self, kept: Tab) -> None:
        for tab in self.tabs:
            if tab is not kept and not tab.closed:
                await tab.close()
        self.tabs.clear()


@dataclass
class FirefoxTab:
    firefox: Firefox
    context: str
    closed: bool = False

    async def goto(self, url: str) -> None:
        await self._ask("browsingContext.navigate", url=url, wait="complete")

    async def reload(self) -> None:
        await self._ask("browsingContext.reload", wait="complete")

    async def offline(self, offline: bool) -> None:
        conditions = {"type": "offline"} if offline else None
        await self.firefox.ask("emulation.setNetworkConditions", networkConditions=conditions, contexts=[self.context])

    async def close(self) -> None:
        await self._ask("browsingContext.close")
        self.closed = True

    async def evaluate(self, expression: str, arg: Any = None) -> Any:
        if arg is not None:
            expression = f"({expression})({json.dumps(arg)})"
        target = {"context": self.context}
        said = await self.firefox.ask("script.evaluate", expression=expression, target=target, awaitPromise=True)
        assert said["type"] == "success", said["exceptionDetails"]["text"]
        return _local(said["result"], {})

    async def _ask(self, method: str, **params: Any) -> None:
        await self.firefox.ask(method, context=self.context, **params)


def _address(log: IO[bytes]) -> str:
    """Return the address on which Firefox listens, if its log has it already."""
    said = re.search(rb"BiDi listening on (\S+)\n", os.pread(log.fileno(), 2**20, 0))
    return said[1].decode() if said else ""


def _local(remote: Any, known: dict[str, Any]) -> Any:
    """Return a value of a page: https://w3c.github.io/webdriver-bidi/#type-script-RemoteValue."""
    kind, value, identity = remote["type"], remote.get("value"), remote.get("internalId")
    if value is None:
        return known.get(identity)  # an object is sent once, later as a reference
    if kind == "array":
        value = [_local(item, known) for item in value]
    if kind == "object":
        value = {key: _local(item, known) for key, item in value}
    if identity is not None:
        known[identity] = value
    return value
