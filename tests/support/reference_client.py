"""Clients that follow the rules of the protocol page for clients with history, and have nothing else."""

import json
from collections.abc import Iterable
from typing import Any

import aiohttp
from websockets.asyncio.client import connect

__all__ = ["ReferenceClient", "ReferenceEventSource"]


class ReferenceClient:
    """A client on WebSockets, which begins a new session after each cut.

    Args:
        url: The URL of the bridge's WebSockets.
        patterns: The patterns that it follows.
        start: The ``from`` of its subscribes.
    """

    def __init__(self, url: str, patterns: Iterable[str], start: Any) -> None:
        self._url = url
        self._start = start
        self._ids: dict[str, str | None] = dict.fromkeys(patterns)
        """The id after which each pattern goes on."""
        self._caught_up: set[str] = set()
        self._newest: str | None = None
        """The newest id, while all patterns have caught up."""
        self.messages: list[tuple[str, Any]] = []
        """The pattern and the data of each message."""
        self.gaps: list[dict[str, Any]] = []

    async def run(self, frames: int) -> None:
        """Read so many frames in a new session, then drop the connection with all that is on the way."""
        self._caught_up.clear()
        self._newest = None
        async with connect(self._url, max_size=None, compression=None) as connection:
            for _ in range(frames):
                frame = json.loads(await connection.recv())
                if frame["type"] == "welcome":
                    for command in self._commands():
                        await connection.send(json.dumps(command))
                self._process(frame)
            connection.transport.abort()

    def _commands(self) -> list[dict[str, Any]]:
        """Return a subscribe for each id, with the patterns that go on after it."""
        commands = []
        for after in dict.fromkeys(self._ids.values()):
            subjects = [pattern for pattern, own in self._ids.items() if own == after]
            known = {} if after is None else {"after": after}
            commands.append({"action": "subscribe", "subjects": subjects, "from": self._start, **known})
        return commands

    @property
    def has_ids(self) -> bool:
        """True if it has an id for each pattern."""
        return None not in self._ids.values()

    def got(self, pattern: str) -> list[Any]:
        """Return the data of the messages of a pattern."""
        return [data for own, data in self.messages if own == pattern]

    def _note(self, newest: str) -> None:
        """Note an id that is newer for all patterns, once another one comes."""
        if self._caught_up != self._ids.keys():
            return
        if self._newest not in (None, newest):
            self._ids = dict.fromkeys(self._ids, self._newest)
        self._newest = newest

    def _process(self, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if kind == "message":
            pattern = frame.get("pattern", frame["subject"])
            self.messages.append((pattern, frame["data"]))
            self._note(frame["id"])
            self._ids[pattern] = frame["id"]
        elif kind == "caught_up":
            self._caught_up.update(frame["subjects"])
            self._ids |= dict.fromkeys(frame["subjects"], frame["position"])
        elif kind == "heartbeat" and "id" in frame:
            self._note(frame["id"])
            self._ids |= dict.fromkeys(self._caught_up, frame["id"])
        elif kind == "gap":
            self.gaps.append(frame)
        elif kind == "reply":
            assert frame["success"], frame


class ReferenceEventSource:
    """An EventSource that is cut off, and drops the message that comes again.

    Args:
        http: The HTTP client.
        url: The URL of the bridge's event streams.
        patterns: The patterns of the query.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, patterns: Iterable[str]) -> None:
        self._http = http
        self._url = url
        self._query = [*(("subjects", pattern) for pattern in patterns), ("from", "new")]
        self._ids: dict[str, str] = {}
        """The id of the last message of each pattern."""
        self.last_event_id = ""
        self.messages: list[tuple[str, Any]] = []
        """The pattern and the data of each message that wasn't dropped."""
        self.dropped = 0
        """The number of messages that were dropped."""
        self.gaps: list[dict[str, Any]] = []

    def got(self, pattern: str) -> list[Any]:
        """Return the data of the messages of a pattern."""
        return [data for own, data in self.messages if own == pattern]

    async def run(self, events: int) -> None:
        """Read so many events of a new stream, then drop the connection with all that is on the way."""
        headers = {"Last-Event-ID": self.last_event_id} if self.last_event_id else {}
        async with self._http.get(self._url, params=self._query, headers=headers) as response:
            for _ in range(events):
                lines = (await response.content.readuntil(b"\n\n")).decode().splitlines()
                fields = {name: value for name, _, value in (line.partition(": ") for line in lines if line)}
                self.last_event_id = fields.get("id", self.last_event_id)
                self._process(json.loads(fields["data"]))
            response.close()

    def _process(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "gap":
            self.gaps.append(frame)
        if frame["type"] != "message":
            return
        pattern = frame.get("pattern", frame["subject"])
        if self._ids.get(pattern) == frame["id"]:
            self.dropped += 1
            return
        self._ids[pattern] = frame["id"]
        self.messages.append((pattern, frame["data"]))
