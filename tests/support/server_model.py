"""A model of a NATS server with one connection, whose parts may proceed in any order, and a worker behind it.

A server matches a message at once, then sends its copies one by one: those for subscriptions without a queue group in
any order, then one for each group. Other publishers' copies and replies to the worker may come in between. A
subscription that was removed meanwhile gets no copy, and another one of its group gets it instead.
"""

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from sanic_nats_bridge.auth.expirations import ExpirationQueue
from sanic_nats_bridge.errors import BridgeError
from sanic_nats_bridge.hub.broadcast import Broadcaster
from sanic_nats_bridge.hub.hub import Hub
from sanic_nats_bridge.hub.interest import Interest, State, View
from sanic_nats_bridge.hub.queue_groups import MAX_COPIES
from sanic_nats_bridge.hub.skipped import SkippedMessages
from sanic_nats_bridge.metrics.counters import Counters
from sanic_nats_bridge.nats.awaited_pongs import AwaitedPongs
from sanic_nats_bridge.nats.connection import Connection
from sanic_nats_bridge.protocol.encoding import WireFormat
from tests.support.bridge import until
from tests.support.fakes import granted, ignore, proceed, read_websocket_frames
from tests.support.model import matches

PATTERNS = (
    *("a.>", "a.*", "a.*.*", "a.*.c", "a.b.*", "a.b", "a.b.c", "a.b.>", "a.*.>", ">", "*.>", "*.*.>", "*.b", "*.b.*"),
    *("*.b.c", "*.*", "*.*.*", "*.*.c", "b.*", "b.>", "b.*.>", "b.b.>", "b.*.c"),
)
SUBJECTS = ("a.b", "a.c", "a.b.c", "a.c.c", "a.b.d", "b.b", "b.b.c")
PUBLISHERS = 3


@dataclass(eq=False)
class Sub:
    """A subscription on the server."""

    sid: int
    pattern: str
    queue: str


@dataclass(eq=False)
class Message:
    """A published message. The times are numbers of steps."""

    publisher: int
    number: int
    subject: str
    matched: int
    copies_left: int = 0
    read: float = float("inf")
    """The time at which the worker had read all of its copies."""


class Server:
    """The server. It is the transport of the connection, too."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.now = 0
        self.inbox: deque[bytes] = deque()
        self.outbox: deque[tuple[bytes, Message | None]] = deque()
        self.subs: dict[int, Sub] = {}
        self.messages: list[Message] = []
        self.sending: dict[int, tuple[Message, list[list[Sub]]]] = {}
        """For each publisher the message in progress, and for each copy the subscriptions that may get it."""

    def write(self, data: bytes) -> None:
        self.inbox.extend(data.split(b"\r\n")[:-1])

    def receive(self) -> None:
        """Process one line of the worker."""
        line = self.inbox.popleft().decode()
        verb, *words = line.split(" ")
        if verb == "SUB":
            self.subs[int(words[-1])] = Sub(int(words[-1]), words[0], words[1] if len(words) == 3 else "")
        elif verb == "UNSUB":
            del self.subs[int(words[0])]
        else:
            assert verb == "PING", line
            self.outbox.append((b"PONG\r\n", None))

    def proceed(self, publisher: int) -> None:
        """Let a publisher publish, or the server send the next copy of its last message."""
        if publisher in self.sending:
            self._send_copy(publisher)
            return
        message = Message(publisher, len(self.messages) + 1, self._rng.choice(SUBJECTS), self.now)
        self.messages.append(message)
        plain, groups = [], dict[str, list[Sub]]()
        for sub in self.subs.values():
            if matches(sub.pattern, message.subject):
                if sub.queue:
                    groups.setdefault(sub.queue, []).append(sub)
                else:
                    plain.append([sub])
        assert len(plain) + len(groups) <= MAX_COPIES, (message, plain, groups)
        self._rng.shuffle(plain)
        copies = [*plain, *groups.values()]
        if copies:
            self.sending[publisher] = (message, copies)
        else:
            message.read = self.now

    def _send_copy(self, publisher: int) -> None:
        message, copies = self.sending[publisher]
        live = [sub for sub in copies.pop(0) if sub.sid in self.subs]
        if live:
            payload = b"%d" % message.number
            head = b"MSG %b %d %d\r\n" % (message.subject.encode(), self._rng.choice(live).sid, len(payload))
            message.copies_left += 1
            self.outbox.append((head + payload + b"\r\n", message))
        if not copies:
            del self.sending[publisher]
            if not message.copies_left:
                message.read = self.now

    def lose(self) -> None:
        """Drop the connection."""
        self.inbox.clear()
        self.outbox.clear()
        self.subs.clear()
        self.sending.clear()


@dataclass(eq=False)
class Hold:
    """A subscription of one client."""

    pattern: str
    interest: Interest
    view: View | None = None
    since: int = 0
    until: float = float("inf")
    got: list[int] = field(default_factory=list)


class Client:
    """A subscriber that notes the numbers of its messages by its patterns."""

    is_writable = True
    wire_format = WireFormat.WEBSOCKET

    def __init__(self) -> None:
        self.holds: dict[str, Hold] = {}

    @property
    def views(self) -> list[View]:
        return [hold.view for hold in self.holds.values() if hold.view is not None]

    def write(self, data: bytes) -> None:
        for frame in read_websocket_frames(data):
            hold = self.holds[frame.get("pattern", frame["subject"])]
            assert hold.view is not None
            assert matches(hold.pattern, frame["subject"])
            hold.got.append(frame["data"])

    def skip(self, skipped: SkippedMessages) -> None:
        raise AssertionError

    def messages_lost(self, pattern: str) -> None:
        raise AssertionError(pattern)

    def limit_overlap(self, subject: str) -> None:
        raise AssertionError(subject)

    def subscription_active(self, pattern: str) -> None:
        pass

    def subscription_ended(self, pattern: str, error: BridgeError) -> None:
        raise AssertionError(pattern) from error


class Walk:
    """A random walk of clients, publishers, the server and the worker."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._clients = [Client() for _ in range(3)]
        self._ended: list[Hold] = []
        self._server = Server(self._rng)
        counters = Counters()
        watchers: Any = {"on_disconnected": ignore, "on_established": proceed, "on_connected": ignore}
        broadcaster = Broadcaster(counters, ExpirationQueue(ignore), max_overlap=len(PATTERNS))
        self._hub = Hub(self, broadcaster, counters, unsubscribe_delay=0, max_subscribe_rate=1e9, **watchers)
        self._connect()

    # The link of the hub

    def subscribe(self, pattern: str, sink: object, group: int = 0) -> int | None:
        sid: int = self._connection.add_subscription(pattern, sink, group)
        return sid

    def unsubscribe(self, sid: int) -> None:
        self._connection.remove_subscription(sid)

    def _connect(self) -> None:
        connection: Any = Connection(self._hub)
        connection._transport = self._server
        connection._pongs = AwaitedPongs()
        self._connection = connection
        self._hub.connection_established()

    # Steps

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            self._server.now += 1
            await self._step()
        while self._server.sending or self._server.inbox or self._server.outbox:
            self._server.now += 1
            for publisher in tuple(self._server.sending):
                self._server.proceed(publisher)
            if self._server.inbox:
                self._server.receive()
            await self._read(len(self._server.outbox))
        self._hub.flush()
        await until(lambda: not self._hub.is_behind)
        for client in self._clients:
            for hold in client.holds.values():
                self._judge(hold)
        for hold in self._ended:
            self._judge(hold)

    async def _step(self) -> None:
        server, rng = self._server, self._rng
        match rng.choices(range(6), (20, 8, 8, 4, 3, 0.05))[0]:
            case 0:
                server.proceed(rng.randrange(PUBLISHERS))
            case 1 if server.inbox:
                server.receive()
            case 2:
                await self._read(rng.randint(0, len(server.outbox)))
            case 3:
                self._command(rng.choice(self._clients), rng.choice(PATTERNS))
            case 4:
                await asyncio.sleep(rng.choice((0, 1)))
            case 5:
                self._reconnect()

    async def _read(self, count: int) -> None:
        """Let the worker read the beginning of what the server has sent."""
        parts = [self._server.outbox.popleft() for _ in range(count)]
        await self._connection._ps.parse(b"".join(data for data, _ in parts))
        for _, message in parts:
            if message is not None:
                message.copies_left -= 1
                sending = self._server.sending.get(message.publisher)
                if not message.copies_left and (sending is None or sending[0] is not message):
                    message.read = self._server.now
        for client in self._clients:
            for hold in client.holds.values():
                if hold.view is None and hold.interest.state is State.ACTIVE:
                    (hold.view,) = self._hub.attach(client, [(hold.interest, granted(hold.pattern)[0])])
                    hold.since = self._server.now

    def _command(self, client: Client, pattern: str) -> None:
        hold = client.holds.get(pattern)
        if hold is None:
            (interest,) = self._hub.acquire([pattern], client)
            client.holds[pattern] = Hold(pattern, interest)
        elif hold.view is None:
            self._hub.release([client.holds.pop(pattern).interest])
        else:
            self._hub.detach(client, [hold.view])
            self._end(client, hold)

    def _end(self, client: Client, hold: Hold) -> None:
        hold.until = self._server.now
        self._ended.append(client.holds.pop(hold.pattern))

    def _reconnect(self) -> None:
        self._hub.connection_closed()
        for client in self._clients:
            self._hub.flush_to(client)  # as before a session's gap
        self._server.lose()
        for client in self._clients:
            for hold in tuple(client.holds.values()):
                if hold.view is not None:
                    # A gap: what follows is judged by itself.
                    self._end(client, hold)
                    client.holds[hold.pattern] = Hold(hold.pattern, hold.interest, hold.view, since=1 << 60)
        self._connect()

    def _judge(self, hold: Hold) -> None:
        """Check the messages of a subscription: each once, in the order of its publisher, and none is missing."""
        assert len(set(hold.got)) == len(hold.got), f"{hold.pattern}: duplicates in {hold.got}"
        for publisher in range(PUBLISHERS):
            numbers = [n for n in hold.got if self._server.messages[n - 1].publisher == publisher]
            assert numbers == sorted(numbers), f"{hold.pattern}: order of {numbers}"
        due = {
            message.number
            for message in self._server.messages
            if matches(hold.pattern, message.subject) and hold.since < message.matched and message.read < hold.until
        }
        assert due <= set(hold.got), f"{hold.pattern}: missing {due - set(hold.got)}"
