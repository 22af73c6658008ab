"""The project's own browser client, client.js, many times in one process of Node."""

import asyncio
import contextlib
import json
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlencode

from ..harness.processes import PROJECT
from ..harness.remote import end_with_parent
from .clients import Receiver
from .reconnecting_clients import Reconnect
from .workload import InjectionError

__all__ = ["BrowserClient", "NodeClient", "NodeProcess"]

_FOLDER = Path(__file__).parent / "node"
_CLIENT = PROJECT / "sanic_nats_bridge" / "browser" / "client.js"
_LIMIT_BYTES = 2**20
_TIMEOUT_SECONDS = 60.0


class NodeClient(Protocol):
    """A client in a process of Node.

    Attributes:
        number: Its number in its process.
    """

    number: int

    def note(self, at: float, frame: Mapping[str, Any]) -> None:
        """Note what the client reports."""

    def note_end(self) -> None:
        """Note that the process has ended."""


class NodeProcess:
    """A process of Node, and its clients."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._clients: list[NodeClient] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, script: str = "clients.js") -> AsyncIterator[Self]:
        """Run the process until the end of the context.

        Args:
            script: Its script, in the folder ``node``.

        Raises:
            InjectionError: Node or its packages are missing.
        """
        program = shutil.which("node")
        if program is None or not (_FOLDER / "node_modules" / "ws").is_dir():
            raise InjectionError("make faults installs node and its packages")
        process = await asyncio.create_subprocess_exec(
            program,
            _FOLDER / script,
            _CLIENT,
            stdin=PIPE,
            stdout=PIPE,
            limit=_LIMIT_BYTES,
            preexec_fn=end_with_parent,
        )
        node = cls(process)
        reading = asyncio.create_task(node._read(process))
        try:
            yield node
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await reading
            await process.wait()

    def open(self, client: NodeClient, options: Mapping[str, Any]) -> None:
        """Open a client with options of client.js."""
        client.number = len(self._clients)
        self._clients.append(client)
        self._write("open", client.number, options)

    def close(self, client: NodeClient) -> None:
        """Close a client."""
        self.act("close", client)

    def act(self, action: str, client: NodeClient) -> None:
        """Have the script do something with a client."""
        self._write(action, client.number)

    def _write(self, *action: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(action).encode() + b"\n")

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            number, at, frame = json.loads(line)
            self._clients[number].note(at, frame)
        for client in self._clients:
            client.note_end()


class BrowserClient(Receiver):
    """A client of client.js.

    Its log is that of a page. It extends over all sessions, so a page has one subscription to a pattern, and what it
    misses between two sessions must be announced too. `state` entries are the statuses of the client.

    Args:
        name: The name in the log.
        patterns: The patterns that it follows.
        node: The process in which it runs.
        url: The address of the bridge.
        transports: The transports that it may use, or None for the default.
        trusting: It takes the errors of proxies for those of the bridge, so that it is wrong on purpose.

    Attributes:
        number: Its number in its process.
        status: Its status.
        attempts: The times at which it began to connect.
        failures: The attempts that have failed since the last session.
        sessions: The client itself, as the only log.
        reconnects: The reconnects between its sessions.
    """

    def __init__(
        self,
        name: str,
        patterns: Sequence[str],
        node: NodeProcess,
        url: str,
        transports: Sequence[str] | None = None,
        *,
        trusting: bool = False,
    ) -> None:
        super().__init__(name, patterns)
        self.number = -1
        self.status: Mapping[str, Any] = {"state": "connecting"}
        self.attempts: list[float] = []
        self.failures = 0
        self.sessions: Sequence[Receiver] = (self,)
        self.reconnects: list[Reconnect] = []
        self._node = node
        self._session_ended: tuple[float, float | None] | None = None
        self._ended = asyncio.Event()
        options = {"url": f"{url}?{urlencode(self.query)}", "patterns": self.patterns, "trusting": trusting}
        node.open(self, options if transports is None else {**options, "transports": transports})

    @property
    def current(self) -> Receiver:
        """The client itself."""
        return self

    @property
    def connected(self) -> bool:
        """True if its status is that it is connected."""
        return bool(self.status["state"] == "connected")

    @property
    def has_ended(self) -> bool:
        """True if the client doesn't connect any more."""
        return self._ended.is_set()

    async def close(self) -> None:
        """Close the client, and wait for it."""
        self.closed = True
        if not self.has_ended:
            self._node.close(self)
            await asyncio.wait_for(self._ended.wait(), _TIMEOUT_SECONDS)

    def note(self, at: float, frame: Mapping[str, Any]) -> None:
        """Add a frame, or a status, to the log."""
        self._record(at, frame)
        if frame["type"] == "state":
            self._note_status(at, frame)
        elif frame["type"] == "welcome":
            self.closing_retry = None

    def note_end(self) -> None:
        """Note that the client has ended."""
        self._ended.set()

    def _note_status(self, at: float, status: Mapping[str, Any]) -> None:
        before, now = self.status["state"], status["state"]
        self.status = status
        if now == "connecting":
            self.attempts.append(at)
        if now == "closed":
            self.note_end()
        elif now == "connected":
            if self._session_ended is not None:
                self.reconnects.append(Reconnect(*self._session_ended, at))
            self._session_ended, self.failures = None, 0
        elif now == "waiting" and before == "connecting":
            self.failures += 1
        elif now != "subscribing" and before in ("connected", "subscribing") and self._session_ended is None:
            self._session_ended = (at, self.closing_retry)
