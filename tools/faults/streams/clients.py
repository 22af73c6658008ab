"""Clients of streams over bare sockets, which are cut after any byte and reconnect with their last ids."""

import asyncio
import contextlib
import json
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any
from urllib.parse import quote

from ...harness.tcp_proxy import reset
from ..light_clients import client_frame
from ..patterns import overlaps
from .logs import Asked, Barrier, Cut, Denied, Ended, Log, Received
from .profiles import Profile

__all__ = ["EventsClient", "SocketClient", "StreamClient"]

_READ_BYTES = 16_384
_RECEIVE_BUFFER = 4096
_TEXT, _PING, _PONG = 1, 9, 10
_LONG = 126


class StreamClient(ABC):
    """A client of one bridge at a time. Its log and its ids outlive its connections.

    Args:
        user: The identity, which begins with the name of the profile.
        profile: What it may see.
        rng: Decides what it does.

    Attributes:
        forgets: It reconnects without the ids that it holds. Its log has them, so the check must find what it misses.
        retry: Seconds after which it must reconnect, if the last session has ended with such a time.
    """

    repeats = False
    forgets = False

    def __init__(self, user: str, profile: Profile, rng: random.Random) -> None:
        self.user = user
        self.profile = profile
        self.rng = rng
        self.log = Log(user, profile, repeats=self.repeats)
        self.connected = False
        self.messages = 0
        self.newest: dict[str, int] = {}
        """The number of the last message of each pattern."""
        self.slow = asyncio.Event()
        self.slow.set()
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._left: int | None = None
        """The number of bytes after which the connection is cut."""
        self._buffer = b""
        self.retry: float | None = None
        self._ended = asyncio.Event()
        self._ended.set()

    async def connect(self, port: int) -> bool:
        """Connect; return whether that went well."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        raw.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=raw, limit=_READ_BYTES)
        except OSError:
            raw.close()
            return False
        self._writer, self._left, self._buffer = writer, None, b""
        self.retry = None
        self.connected = True
        self._ended.clear()
        self._open()
        self._task = asyncio.create_task(self._read(reader))
        return True

    def cut_after(self, count: int | None) -> None:
        """Cut the connection when so many more bytes have arrived, which may be within a frame; ``None`` for never."""
        self._left = count

    async def cut(self) -> None:
        """Cut the connection now."""
        task, self._task = self._task, None
        try:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        finally:
            # Also if the caller is cancelled.
            self._end()

    async def wait_ended(self) -> None:
        """Wait until there is no connection."""
        await self._ended.wait()

    async def close(self) -> None:
        """Cut the connection for good."""
        await self.cut()

    def _end(self) -> None:
        if self.connected:
            self.connected = False
            self.slow.set()
            self.log.entries.append(Cut())
            self._lost()
            self._ended.set()
        if self._writer is not None:
            with contextlib.suppress(OSError):
                reset(self._writer.transport)
            self._writer = None

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while self._left is None or self._left > 0:
                await self.slow.wait()
                data = await reader.read(_READ_BYTES)
                if not data:
                    break
                if self._left is not None:
                    data = data[: self._left]
                    self._left -= len(data)
                self._buffer += data
                try:
                    self._parse()
                except (LookupError, TypeError, ValueError) as error:
                    self._refuse(f"{error!r} in {self._buffer!r}")
                    break
        self._end()

    def _receive(self, text: bytes, line: str | None = None) -> None:
        frame: dict[str, Any] = json.loads(text)
        kind = frame["type"]
        position = frame.get("id", "") if kind in ("message", "heartbeat") else ""
        if kind == "message":
            number = frame["data"]["n"]
            # A literal pattern isn't named.
            pattern = frame.get("pattern", frame["subject"])
            entry = Received(kind, pattern, frame["subject"], number, position, {})
            self.messages += 1
            self.newest[pattern] = number
        else:
            entry = Received(kind, "", "", -1, position, frame)
        if kind == "close" and "retry" in frame:
            self.retry = frame["retry"] / 1000
        self.log.entries.append(entry)
        self._note(entry, line)

    def _is_accepted(self, head: bytes, status: bytes) -> bool:
        """Return whether a request was answered as it should be. If not, the connection ends."""
        if status in head.partition(b"\r\n")[0]:
            return True
        if b" 503 " not in head.partition(b"\r\n")[0]:
            self._refuse(head.decode(errors="replace"))
        self._left = 0
        return False

    def _refuse(self, answer: str) -> None:
        self.log.entries.append(Received("reply", "", "", -1, "", {"success": False, "answer": answer}))

    # What the transports do differently

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _parse(self) -> None: ...

    @abstractmethod
    def _note(self, entry: Received, line: str | None) -> None: ...

    @abstractmethod
    def _lost(self) -> None:
        """Forget what belongs to a connection."""

    @property
    @abstractmethod
    def is_live(self) -> bool:
        """True if all of its patterns have caught up."""

    @property
    @abstractmethod
    def followed(self) -> tuple[str, ...]:
        """The patterns that it follows."""


class EventsClient(StreamClient):
    """A client of ``/events`` that does what an EventSource does.

    Args:
        user: As for every client.
        profile: As for every client.
        rng: As for every client.
        patterns: The patterns that it follows.
        start: From where.
    """

    def __init__(self, user: str, profile: Profile, rng: random.Random, patterns: list[str], start: Any) -> None:
        self.patterns = patterns
        self.start = start
        self.repeats = any(overlaps(*pair) for pair in combinations([profile.real(each)[1] for each in patterns], 2))
        super().__init__(user, profile, rng)
        self.last_id = ""
        self._live = False
        self._body = b""
        self._header = False

    @property
    def is_live(self) -> bool:
        """True if all of its patterns have caught up."""
        return self.connected and self._live

    @property
    def followed(self) -> tuple[str, ...]:
        """Patterns that it follows."""
        return tuple(self.patterns)

    def _open(self) -> None:
        assert self._writer is not None
        self._body, self._header, self._live = b"", False, False
        start = self.start if isinstance(self.start, str) else json.dumps(self.start)
        query = "&".join([f"subjects={quote(each)}" for each in self.patterns] + [f"from={quote(start)}"])
        last = f"Last-Event-ID: {self.last_id}\r\n" if self.last_id and not self.forgets else ""
        request = f"GET /nats/events?{query} HTTP/1.1\r\nHost: localhost\r\nX-User: {self.user}\r\n{last}\r\n"
        self._writer.write(request.encode())
        self.log.entries.append(Asked(self.patterns, self.start, self.last_id or None))

    def _parse(self) -> None:
        if not self._header:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if not self._is_accepted(head, b" 200 "):
                return
            self._header, self._buffer = True, rest
        while True:
            size, found, rest = self._buffer.partition(b"\r\n")
            if not found or len(rest) < (length := int(size, 16)) + 2:
                # An EventSource sees the parts of a chunk too.
                break
            self._body += rest[:length]
            self._buffer = rest[length + 2 :]
        *events, self._body = self._body.split(b"\n\n")
        for event in events:
            fields = dict(line.partition(b": ")[::2] for line in event.split(b"\n") if not line.startswith(b":"))
            if b"id" in fields:
                self.last_id = fields[b"id"].decode()
            if b"data" in fields:
                self._receive(fields[b"data"], self.last_id)

    def _note(self, entry: Received, line: str | None) -> None:
        if entry.kind == "caught_up":
            self._live = True
        elif entry.kind == "unsubscribed":
            self.patterns = [each for each in self.patterns if each not in entry.frame["subjects"]]
            self._live = self._live or not self.patterns

    def _lost(self) -> None:
        self._live = False


class SocketClient(StreamClient):
    """A client of ``/stream``, which may have several commands with their own ids."""

    def __init__(self, user: str, profile: Profile, rng: random.Random) -> None:
        super().__init__(user, profile, rng)
        self.starts: dict[str, Any] = {}
        """The patterns that it follows, and from where."""
        self.ids: dict[str, str] = {}
        """The id with which each of them goes on."""
        self._live = _Group()
        self._replays: dict[str, _Group] = {}
        """The patterns of commands whose old messages aren't complete."""
        self._command = 0
        self._ending: dict[int, list[str]] = {}
        self._barriers: dict[int, tuple[str, ...]] = {}
        self._upgraded = False
        self._welcome = False

    @property
    def is_live(self) -> bool:
        """True if all of its patterns have caught up."""
        return self.connected and not self._ending and self._live.patterns == self.starts.keys()

    @property
    def is_open(self) -> bool:
        """True if it has a session."""
        return self.connected and self._welcome

    @property
    def followed(self) -> tuple[str, ...]:
        """Patterns that it follows."""
        return tuple(self.starts)

    def _send(self, command: Mapping[str, Any]) -> int:
        self._command += 1
        if self._writer is not None:
            self._writer.write(client_frame(json.dumps({"id": self._command, **command}).encode()))
        return self._command

    def _open(self) -> None:
        assert self._writer is not None
        self._upgraded = self._welcome = False
        self._writer.write(
            (
                f"GET /nats/stream HTTP/1.1\r\nHost: localhost\r\nX-User: {self.user}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ).encode()
        )

    def _resubscribe(self) -> None:
        """Follow all patterns again: those with the same id in one command."""
        groups: dict[tuple[str | None, str], list[str]] = {}
        for pattern, start in self.starts.items():
            groups.setdefault((self.ids.get(pattern), json.dumps(start)), []).append(pattern)
        for (after, start), patterns in groups.items():
            self._ask(patterns, json.loads(start), after)

    def follow(self, patterns: list[str], start: Any) -> None:
        """Follow more patterns, by one command."""
        self.starts |= dict.fromkeys(patterns, start)
        self._ask(patterns, start, None)

    def _ask(self, patterns: list[str], start: Any, after: str | None) -> None:
        self.log.entries.append(Asked(patterns, start, after))
        command: dict[str, Any] = {"action": "subscribe", "subjects": patterns, "from": start}
        if after is not None and not self.forgets:
            command["after"] = after
        self._send(command)
        self._replays |= dict.fromkeys(patterns, _Group(set(patterns)))

    @property
    def kept(self) -> list[str]:
        """The patterns from which it isn't unsubscribing."""
        ending = {pattern for patterns in self._ending.values() for pattern in patterns}
        return [pattern for pattern in self.starts if pattern not in ending]

    def drop(self, patterns: list[str]) -> None:
        """Unsubscribe, perhaps in the middle of a replay."""
        self._ending[self._send({"action": "unsubscribe", "subjects": patterns})] = patterns

    def begin_change(self) -> None:
        """Note that the permissions begin to change."""
        self.log.entries.append(Denied())

    def changed(self, deny: tuple[str, ...]) -> None:
        """Note that the permissions have changed. What was sent before arrives before the reply to a ping."""
        self._barriers = {self._send({"action": "ping"}): deny}

    def _lost(self) -> None:
        self._live = _Group()
        self._replays.clear()
        self._barriers.clear()
        for patterns in self._ending.values():
            self._forget(patterns)
        self._ending.clear()

    def _forget(self, patterns: list[str]) -> None:
        for pattern in patterns:
            self.starts.pop(pattern, None)
            self.ids.pop(pattern, None)
            for group in (self._live, self._replays.pop(pattern, self._live)):
                group.patterns.discard(pattern)
        self.log.entries.append(Ended(patterns))

    def _parse(self) -> None:
        if not self._upgraded:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if not self._is_accepted(head, b" 101 "):
                return
            self._upgraded, self._buffer = True, rest
        buffer, at = self._buffer, 0
        while len(buffer) >= at + 2:
            opcode, length, start = buffer[at] & 15, buffer[at + 1], at + 2
            if length >= _LONG:
                width = 2 if length == _LONG else 8
                if len(buffer) < start + width:
                    break
                length = int.from_bytes(buffer[start : start + width])
                start += width
            if len(buffer) < start + length:
                break
            if opcode == _TEXT:
                self._receive(buffer[start : start + length])
            elif opcode == _PING and self._writer is not None:
                self._writer.write(client_frame(buffer[start : start + length], _PONG))
            at = start + length
        self._buffer = buffer[at:]

    def _note(self, entry: Received, line: str | None) -> None:
        if entry.kind == "message":
            self._message_id(entry.pattern, entry.id)
        elif entry.kind == "heartbeat" and entry.id:
            self._move(entry.id)
        elif entry.kind == "caught_up":
            self._caught_up(entry.frame["subjects"], entry.frame["position"])
        elif entry.kind == "welcome":
            self._welcome = True
            self._resubscribe()
        elif entry.kind == "reply":
            self._reply(entry.frame)
        elif entry.kind == "unsubscribed":
            self._forget(entry.frame["subjects"])

    def _reply(self, frame: Mapping[str, Any]) -> None:
        if frame["id"] in self._ending:
            self._forget(self._ending.pop(frame["id"]))
        elif frame["id"] in self._barriers:
            self.log.entries.append(Barrier(self._barriers.pop(frame["id"])))

    def _message_id(self, pattern: str, position: str) -> None:
        # One of a replay counts for the patterns of its command only.
        group = self._live if pattern in self._live.patterns else self._replays.get(pattern)
        if group is None:
            return
        if position != group.last:
            # Another pattern may match the same message, and its copy is on its way. Before, all copies have arrived.
            if group.last:
                self.ids |= dict.fromkeys(group.patterns, group.last)
            group.last = position
        self.ids[pattern] = position

    def _caught_up(self, patterns: list[str], position: str) -> None:
        for pattern in patterns:
            self._replays.pop(pattern, None)
            if pattern in self.starts:
                self._live.patterns.add(pattern)
        self._move(position)

    def _move(self, position: str) -> None:
        self._live.last = position
        self.ids |= dict.fromkeys(self._live.patterns, position)


@dataclass
class _Group:
    """Patterns that move together."""

    patterns: set[str] = field(default_factory=set)
    last: str = ""
    """The last id."""
