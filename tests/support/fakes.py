"""Stand-ins for the two neighbours of the hub and of a session: the link to NATS, and the way to a client."""

import asyncio
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from sanic_nats_bridge.auth.exclusions import NO_EXCLUSIONS
from sanic_nats_bridge.auth.expirations import ExpirationQueue
from sanic_nats_bridge.auth.permissions import Grant
from sanic_nats_bridge.errors import BridgeError
from sanic_nats_bridge.hub.broadcast import Broadcaster
from sanic_nats_bridge.hub.hub import Hub
from sanic_nats_bridge.hub.interest import Interest, View
from sanic_nats_bridge.hub.skipped import SkippedMessages
from sanic_nats_bridge.metrics.counters import Counters
from sanic_nats_bridge.nats.interfaces import ControlListener
from sanic_nats_bridge.protocol import encoding, subjects
from sanic_nats_bridge.protocol.encoding import EncodedMessage, WireFormat
from sanic_nats_bridge.protocol.messages import Close, Frame
from sanic_nats_bridge.transports.base import TransportListener

ALONE = (">", "*.>", "*.*.>", "*.*.*", "*.b.>")
"""As many patterns as are subscribed without a queue group. They overlap all patterns like ``a.>`` and ``a.*.x``."""


def granted(*patterns: str) -> list[Grant]:
    """Return grants for the patterns by their real names, without exceptions."""
    return [Grant(pattern, pattern, "", "", NO_EXCLUSIONS) for pattern in patterns]


def ignore(*_: object) -> None:
    """Do nothing."""


def proceed(subscribe: Callable[[], None]) -> None:
    """Subscribe on a new connection at once."""
    subscribe()


def _expire_nothing(keys: list[str]) -> None:
    raise AssertionError(f"nothing expires here, but {keys} did")


class FakeLink:
    """A NATS server as the hub sees it; the test decides when it answers, unless it ``confirms`` by itself.

    ``faults`` holds what a timer of the event loop would have swallowed.
    """

    def __init__(self, *, confirms: bool = False) -> None:
        self.confirms = confirms
        self.up = False
        self.sent: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.standing: dict[int, Interest] = {}
        self.groups: dict[int, int] = {}
        self.copies = 0
        self._last = 0
        self._hub: Hub | None = None

    @classmethod
    def with_hub(
        cls, *, confirms: bool = False, unsubscribe_delay: float = 0.01, **options: Any
    ) -> tuple["FakeLink", Hub]:
        link = cls(confirms=confirms)
        counters = Counters()
        broadcaster = Broadcaster(
            counters, ExpirationQueue(_expire_nothing), options.pop("headers", ()), options.pop("flush_interval", 0)
        )
        unwatched = {"on_disconnected": ignore, "on_established": proceed, "on_connected": ignore}
        hub = Hub(link, broadcaster, counters, unsubscribe_delay=unsubscribe_delay, **(unwatched | options))
        link.serve(hub)
        return link, hub

    def serve(self, hub: Hub) -> None:
        """Be the connection of this hub, and connect it."""
        self._hub = hub
        self.come_back()

    @property
    def hub(self) -> Hub:
        assert self._hub is not None
        return self._hub

    @property
    def patterns(self) -> list[str]:
        return [interest.pattern for interest in self.standing.values()]

    def subscribe(self, pattern: str, sink: object, group: int = 0) -> int | None:
        if not self.up:
            return None
        assert isinstance(sink, Interest)
        if pattern in self.patterns:
            self._fault(f"a second subscription for {pattern}")
        self.sent.append(("SUB", pattern))
        self._last += 1
        self.standing[self._last] = sink
        self.groups[self._last] = group
        if self.confirms:
            asyncio.get_running_loop().call_soon(self._confirm, self._last)
        return self._last

    def unsubscribe(self, sid: int) -> None:
        if sid not in self.standing:
            self._fault(f"an unsubscribe of the unknown number {sid}")
        self.sent.append(("UNSUB", self.standing.pop(sid).pattern))

    def confirm(self, *patterns: str) -> None:
        for sid in self._sids(patterns):
            self._confirm(sid)

    def refuse(self, *patterns: str) -> None:
        for sid in self._sids(patterns):
            self.hub.refused(self.standing.pop(sid))

    def lose(self) -> None:
        self.up = False
        self.standing.clear()
        self.hub.connection_closed()

    def come_back(self) -> None:
        self.up = True
        self.hub.connection_established()

    def deliver(self, subject: str | bytes, payload: bytes = b"1", headers: bytes = b"") -> None:
        """Hand a message to the hub under each active pattern, or one of each queue group, as a server does."""
        raw = subject.encode() if isinstance(subject, str) else subject
        text = raw.decode("utf-8", "replace")
        unreserved = "x" + text[1:] if subjects.is_reserved(text) else text
        groups: dict[tuple[bool, int], list[Interest]] = {}
        for sid, interest in tuple(self.standing.items()):
            if interest.pattern == text or subjects.matches(interest.pattern, unreserved):
                groups.setdefault((bool(group := self.groups[sid]), group or sid), []).append(interest)
        self.copies += len(groups)
        for members in groups.values():
            self.hub.on_message(random.choice(members), raw, headers, payload)

    def _confirm(self, sid: int) -> None:
        if sid in self.standing:
            self.hub.confirmed(self.standing[sid])

    def _sids(self, patterns: tuple[str, ...]) -> list[int]:
        return [sid for pattern in patterns for sid, sink in self.standing.items() if sink.pattern == pattern]

    def _fault(self, text: str) -> None:
        self.faults.append(text)
        raise AssertionError(text)


class _Recorder:
    """A recorder of writes, which it decodes to frames."""

    def __init__(self, wire_format: WireFormat = WireFormat.WEBSOCKET) -> None:
        self.wire_format = wire_format
        self.writes: list[bytes] = []
        self.written = 0

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self.written += len(data)

    @property
    def frames(self) -> list[dict[str, Any]]:
        read = read_events if self.wire_format is WireFormat.EVENTS else read_websocket_frames
        return read(b"".join(self.writes))

    @property
    def types(self) -> list[str]:
        return [frame["type"] for frame in self.frames]

    @property
    def data(self) -> list[Any]:
        """The payloads of the messages."""
        return [frame["data"] for frame in self.frames if frame["type"] == "message"]


class FakeSubscriber(_Recorder):
    def __init__(self, wire_format: WireFormat = WireFormat.WEBSOCKET) -> None:
        super().__init__(wire_format)
        self.is_writable = True
        self.views: Sequence[View] = ()
        """Looked at only if very many subscribers get messages in one flush."""
        self.skipped: list[EncodedMessage] = []
        self.told: list[tuple[str, str]] = []

    def skip(self, skipped: SkippedMessages) -> None:
        self.skipped += skipped.messages

    def messages_lost(self, pattern: str) -> None:
        self.told.append(("messages_lost", pattern))

    def subscription_active(self, pattern: str) -> None:
        self.told.append(("subscription_active", pattern))

    def limit_overlap(self, subject: str) -> None:
        self.told.append(("limit_overlap", subject))

    def subscription_ended(self, pattern: str, error: BridgeError) -> None:
        self.told.append((error.code, pattern))


class FakeTransport(_Recorder):
    """A transport whose client takes everything at once; with a ``limit``, it takes only what the test requests."""

    _listener: TransportListener | None = None
    limit: int | None = None
    pending = 0
    reports_pending = True
    full = False
    finished: Close | None = None
    finish_seconds = 0.0
    aborted = False

    def set_listener(self, listener: TransportListener | None) -> None:
        self._listener = listener

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.limit is None:
            return
        self.pending += len(data)
        if self.pending > self.limit and not self.full:
            self.full = True
            if self._listener is not None:
                self._listener.pause_writing()

    def take(self, size: int | None = None) -> None:
        """Let the client take so many of the pending bytes, or all of them."""
        self.pending -= min(self.pending, self.pending if size is None else size)
        if self.full and self.limit is not None and self.pending <= self.limit // 4:
            self.full = False
            if self._listener is not None:
                self._listener.resume_writing()

    def send(self, frame: Frame, retry: int | None = None) -> None:
        self.write(encoding.encode_frame(frame, self.wire_format, retry))

    def keepalive(self) -> None:
        pass

    def close(self, frame: Close, timeout: float) -> None:
        self.send(frame)
        self.finished = frame
        self.finish_seconds = timeout

    def abort(self) -> None:
        self.aborted = True


def read_events(data: bytes) -> list[dict[str, Any]]:
    """Return the JSON objects of events without chunks."""
    lines = data.decode().split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def read_websocket_frames(data: bytes) -> list[dict[str, Any]]:
    """Return the JSON objects of unmasked text frames (RFC 6455, section 5.2)."""
    frames = []
    while data:
        assert data[0] == 0x81
        extended = {126: 2, 127: 8}.get(data[1], 0)
        size = int.from_bytes(data[2 : 2 + extended]) if extended else data[1]
        start = 2 + extended
        frames.append(json.loads(data[start : start + size]))
        data = data[start + size :]
    return frames


class FakeOutlet:
    """A connection to NATS as a publisher sees it. The test answers the questions."""

    def __init__(self) -> None:
        self.publish_limit = 1024
        self.refused_subject_length = math.inf
        self.unsent_bytes = 0
        self.messages: list[tuple[bytes, bytes, bytes]] = []
        """Subject, payload and headers of each message, questions included."""
        self.questions: dict[int, tuple[str, ControlListener]] = {}
        """The subject for the answer, and the listener to it, by the numbers of the present subscriptions."""
        self.removed: list[int] = []
        self._last = 0

    def send_message(self, subject: bytes, payload: bytes, headers: bytes = b"", reply: bytes = b"") -> None:
        assert not reply
        self.messages.append((subject, payload, headers))

    def send_question(
        self, subject: bytes, payload: bytes, headers: bytes, reply: str, listener: ControlListener
    ) -> int:
        self.messages.append((subject, payload, headers))
        self._last += 1
        self.questions[self._last] = (reply, listener)
        return self._last

    def remove_subscription(self, sid: int) -> None:
        del self.questions[sid]
        self.removed.append(sid)

    def forget(self, sid: int) -> None:
        del self.questions[sid]

    def answer(self, payload: bytes = b"", headers: bytes = b"", *, sid: int | None = None) -> None:
        """Answer the newest question, or that with a number."""
        reply, listener = self.questions[self._last if sid is None else sid]
        listener.on_message(reply.encode(), b"", headers, payload)


class FakePublishLink:
    """The supervised connection to NATS as a publisher sees it."""

    def __init__(self) -> None:
        self.connection: FakeOutlet | None = FakeOutlet()
