"""A model of the messages that a client must and may get, and clients that check the bridge against it."""

import asyncio
import contextlib
import itertools
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from tests.support.bridge import Bridge, EventClient, WebSocketClient, until
from tests.support.raw import reset

OPEN: Final = ("a.x", "a.y", "a.x.z", "b.x", "a.*", "a.>", "a.*.z", "a.x.*", "b.>", "b.*")
"""Allowed subjects; they overlap, and are more than one session may hold."""

REFUSED_BY_NATS: Final = "n.x"
FORBIDDEN: Final = (">", "*.x", "c.x")
INVALID: Final = ("a..x", "a.>.x", "", "ä")
SUBJECTS: Final = ("a.x", "a.y", "a.x.z", "b.x", "b.q")
MAX_SUBSCRIPTIONS: Final = 6

OF_THE_QUERY: Final = 0
"""Placeholder for the id of the command in the query of an event stream, which has none."""

CommandName: TypeAlias = Literal["subscribe", "unsubscribe"]


def matches(pattern: str, subject: str) -> bool:
    """Return True if NATS matches the subject; this is an independent implementation."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, tokens = wanted[:-1], tokens[: len(wanted) - 1] if len(tokens) >= len(wanted) else []
    return len(wanted) == len(tokens) and all(one in ("*", other) for one, other in zip(wanted, tokens, strict=True))


_GAP, _LIVE = -1, -2  # other entries among the numbers of messages


@dataclass
class Ledger:
    """The messages of one pattern that one client may, must, and did get, by their numbers."""

    windows: list[tuple[int, float]] = field(default_factory=list)
    due: dict[int, int] = field(default_factory=dict)
    log: list[int] = field(default_factory=list)
    last: int = 0

    def open(self, dispatched: int) -> None:
        """Allow messages after this number from now on."""
        if not self.windows or self.windows[-1][1] != float("inf"):
            self.windows.append((dispatched, float("inf")))

    def close(self, published: int) -> None:
        """Forbid messages that are published after this number."""
        if self.windows:
            self.windows[-1] = (self.windows[-1][0], min(published, self.windows[-1][1]))
        self.due.clear()

    def demand(self, number: int) -> None:
        """Require this message, or a gap in its place."""
        self.due[number] = len(self.log)

    def receive(self, number: int) -> str | None:
        """Note a message; returns what is wrong with it."""
        if number <= self.last:
            return f"{number} comes behind {self.last}"
        if not any(first < number <= last for first, last in self.windows):
            return f"{number} should not come at all"
        self.last = number
        self.log.append(number)
        return None

    def mark(self, *, gap: bool) -> None:
        """Note a gap, or the word that all is live again."""
        self.log.append(_GAP if gap else _LIVE)

    @property
    def owed(self) -> list[int]:
        """Missing messages that no gap accounts for."""
        received = set(self.log)
        return [number for number in self.due if number not in received and not self._explained(number)]

    def _explained(self, number: int) -> bool:
        """Return True if a gap is in its place, and the pattern was not live again before the publication."""
        before = [index for index, entry in enumerate(self.log) if 0 < entry < number]
        after = [index for index, entry in enumerate(self.log) if entry > number]
        hole = range(before[-1] + 1 if before else 0, after[0] if after else len(self.log))
        published_at = self.due[number]
        return any(self.log[index] == _GAP and _LIVE not in self.log[index:published_at] for index in hole)

    def settle(self) -> None:
        """Forget all due messages, because each has come or is covered by a gap."""
        self.due.clear()
        self.log.clear()
        self.windows = self.windows[-1:]


@dataclass
class Record:
    """Facts that all followers share and report."""

    published: int = 0
    """Number of the last message."""

    dispatched: int = 0
    """The bridge has delivered all messages up to this one."""

    cuts: int = 0
    """Number of times the bridge has lost NATS."""

    noticed_cuts: int = 0
    """Of these, how many it has surely noticed."""

    calm: bool = True
    """It has NATS, and nothing is left to do of the last cut."""

    complaints: list[str] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done, and keep account of it until it is."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Follower(ABC):
    """A client of the bridge, and what the model knows of it."""

    in_one_stream: bool
    """True if replies and messages share a stream, so that the bounds of a subscription are exact."""

    def __init__(self, record: Record, client: WebSocketClient | EventClient, stack: contextlib.AsyncExitStack) -> None:
        self.key = client.key
        self.held: dict[str, bool] = {}
        self.nats = client.welcome["nats"]
        self.waiting: dict[int, tuple[CommandName, Sequence[str]]] = {}
        self.left = False
        self._record = record
        self._client = client
        self._stack = stack
        self._ids = itertools.count(1)
        self._ledgers: defaultdict[str, Ledger] = defaultdict(Ledger)
        self.last = 0
        # The bridge may not have noticed yet what was cut since the last rest.
        self._cuts_before = record.noticed_cuts
        self._gaps = 0
        self._calm: dict[int, bool] = {}
        self._untold_holes: set[str] = set()
        self._reading = asyncio.create_task(self._read())

    # What the client does

    async def command(self, name: CommandName, patterns: Sequence[str]) -> None:
        """Send a command, and do not wait for its reply."""
        number = next(self._ids)
        self.note(number, name, patterns, self._record.dispatched)
        await self._send({"id": number, "action": name, "subjects": list(patterns)})

    def note(self, number: int, name: CommandName, patterns: Sequence[str], dispatched: int) -> None:
        """Record a pending command, sent when the bridge had delivered the messages up to this one."""
        self.waiting[number] = (name, patterns)
        self._calm[number] = self._record.calm
        for pattern in patterns:
            if name == "subscribe":
                self._ledgers[pattern].open(dispatched)
            else:
                # NATS may hand them over after the bridge has received the command.
                self._ledgers[pattern].due.clear()

    async def leave(self, *, politely: bool) -> None:
        """End the connection, by a close or as a crash does."""
        self.left = True
        self.waiting.clear()
        if not politely:
            self._crash()
        await self._stack.aclose()
        self._reading.cancel()
        await asyncio.wait({self._reading})

    @abstractmethod
    async def _send(self, command: dict[str, Any]) -> None: ...

    @abstractmethod
    def _crash(self) -> None: ...

    # Answers of the model

    def published(self, number: int, subject: str) -> None:
        """Record a published message, which must come for each pattern that the client knows to be live."""
        ending = {pattern for name, patterns in self.waiting.values() if name == "unsubscribe" for pattern in patterns}
        for pattern, live in self.held.items():
            if live and pattern not in ending and matches(pattern, subject):
                self._ledgers[pattern].demand(number)

    @property
    def owed(self) -> dict[str, list[int]]:
        """Missing messages by pattern, without those that are covered by a gap."""
        return {pattern: owed for pattern, ledger in self._ledgers.items() if (owed := ledger.owed)}

    def settle(self) -> None:
        """Mark every pattern as live and all messages as received."""
        for pattern in self.held:
            self.held[pattern] = True
        for ledger in self._ledgers.values():
            ledger.settle()

    # What the client reads

    async def _read(self) -> None:
        try:
            while True:
                frame = await self._client._read()  # `frame()` waits for a bounded time
                if self.left:
                    return
                if frame["type"] != "heartbeat":
                    getattr(self, f"_on_{frame['type']}")(frame)
        except Exception as error:
            if not self.left:
                self._record.complaints.append(f"{type(self).__name__}: {error!r}")

    def _check(self, fact: object, complaint: str) -> None:
        if not fact:
            self._record.complaints.append(f"{type(self).__name__} {self.key}: {complaint}; it holds {self.held}")

    def _on_message(self, frame: dict[str, Any]) -> None:
        number, pattern = frame["data"], frame.get("pattern", frame["subject"])
        self._check(matches(pattern, frame["subject"]), f"{frame} does not match")
        self._check(number >= self.last, f"{frame} comes behind {self.last}")
        self._check(pattern in self.held or not self.in_one_stream, f"{frame} comes outside its subscription")
        complaint = self._ledgers[pattern].receive(number)
        self._check(complaint is None, f"{frame}: {complaint}")
        self.last = number
        self._record.dispatched = max(self._record.dispatched, number)

    def _on_gap(self, frame: dict[str, Any]) -> None:
        self._gaps += 1
        self._check(frame["reason"] == "nats_reconnect", f"{frame} is not due")
        self._check(self._gaps <= self._record.cuts - self._cuts_before, f"{frame} comes without a cause")
        self._check(self.held.keys() >= {*frame["subjects"]} or not self.in_one_stream, f"{frame} is too wide")
        self._untold_holes -= {*frame["subjects"]}
        for pattern in frame["subjects"]:
            self._ledgers[pattern].mark(gap=True)

    def _on_status(self, frame: dict[str, Any]) -> None:
        self.nats = frame["nats"]
        if self.nats == "disconnected":
            self._untold_holes |= {pattern for pattern, live in self.held.items() if live}
            return
        untold = self._untold_holes & self.held.keys()
        self._check(not untold or not self.in_one_stream, f"{frame} without a gap for {untold}")
        self._untold_holes.clear()
        for ledger in self._ledgers.values():
            ledger.mark(gap=False)
        if self.in_one_stream:
            self.held = dict.fromkeys(self.held, True)

    def _on_unsubscribed(self, frame: dict[str, Any]) -> None:
        self._check(frame["subjects"] == [REFUSED_BY_NATS], f"{frame} is not due")
        self._check(self.held.keys() >= self._certain({REFUSED_BY_NATS}), f"{frame} comes outside its subscription")
        self.held.pop(REFUSED_BY_NATS, None)

    def _certain(self, patterns: set[str]) -> set[str]:
        """Return the patterns with a known beginning and end."""
        # A reply by POST and the frame that ends the subscription may be read in any order.
        return patterns if self.in_one_stream else patterns - {REFUSED_BY_NATS}

    def _on_reply(self, frame: dict[str, Any]) -> None:
        number = frame.get("id", OF_THE_QUERY)
        name, patterns = self.waiting.pop(number)
        calm = self._calm.pop(number)
        expected, possible = self._outcome(name, patterns)
        if frame["success"]:
            self._check(not expected, f"{frame} to {patterns} should be one of {expected}")
        else:
            self._check(frame["code"] in expected | possible, f"{frame} to {patterns} should be one of {expected}")
        if frame["success"] and name == "subscribe":
            calm = calm and self._record.calm
            self._check(frame["active"] or not calm, f"{frame} is not active")
            self._check(not (frame["active"] and REFUSED_BY_NATS in patterns), f"{frame} cannot be")
            self.held |= dict.fromkeys(self._certain({*patterns}), frame["active"])
        elif frame["success"]:
            self._untold_holes -= {*patterns}
            for pattern in patterns:
                self.held.pop(pattern, None)
        in_flight = {pattern for _, patterns in self.waiting.values() for pattern in patterns}
        for pattern in {*patterns} - self.held.keys() - in_flight:
            self._ledgers[pattern].close(self._record.published)

    def _outcome(self, name: CommandName, patterns: Sequence[str]) -> tuple[set[str], set[str]]:
        """Return the codes of which the reply must have one, if there are any, and the possible codes."""
        asked, held = set(patterns), set(self.held)
        perhaps_held = held if self.in_one_stream else held | {REFUSED_BY_NATS}
        codes, possible = set(), set()
        if not asked:
            codes.add("command.invalid")
        if len(patterns) > MAX_SUBSCRIPTIONS:
            codes.add("limit.subscriptions")
        if asked & {*INVALID}:
            codes.add("subject.invalid")
        if name == "unsubscribe":
            if asked - perhaps_held:
                codes.add("subject.not_subscribed")
            return codes, {"subject.not_subscribed"} if asked - held else set()
        if asked & {*FORBIDDEN}:
            codes.add("subject.forbidden")
        if len(asked | held) > MAX_SUBSCRIPTIONS:
            codes.add("limit.subscriptions")
        if len(asked | perhaps_held) > MAX_SUBSCRIPTIONS:
            possible.add("limit.subscriptions")
        if REFUSED_BY_NATS in asked:
            possible.add("nats.refused")
        return codes, possible


class WebSocketFollower(Follower):
    in_one_stream = True
    _client: WebSocketClient

    async def _send(self, command: dict[str, Any]) -> None:
        await self._client.send(command)

    def _crash(self) -> None:
        reset(self._client.connection.transport)


class EventFollower(Follower):
    in_one_stream = False
    _client: EventClient

    def __init__(self, record: Record, client: EventClient, stack: contextlib.AsyncExitStack, bridge: Bridge) -> None:
        super().__init__(record, client, stack)
        self._bridge = bridge
        self._lock = asyncio.Lock()

    async def _send(self, command: dict[str, Any]) -> None:
        self._record.background(self._post(command))

    async def _post(self, command: dict[str, Any]) -> None:
        async with self._lock:
            status, reply = await self._bridge.post(
                f"/{command['action']}", {"session": self._client.session} | command
            )
            # The reply to the query came earlier, but on the stream, from which it may be read later.
            await until(lambda: self.left or OF_THE_QUERY not in self.waiting)
        if self.left:
            self._check(status < 500, f"{reply} after the end")
        else:
            self._on_reply(reply)

    def _crash(self) -> None:
        connection = self._client.response.connection
        assert connection is not None
        reset(connection.transport)
