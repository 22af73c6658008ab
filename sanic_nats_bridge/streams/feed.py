"""The feed of one stream: all of its messages from one position on, in order, with none missing.

One ordered push consumer (ADR-17) serves all sessions of a worker. The feed remembers the sequence of the last message.
After any irregularity (a missing message or heartbeat, a lost connection) a new consumer goes on after that message.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable

import msgspec

from ..log_limits import limited_logger
from ..protocol import encoding
from ..protocol.stream_messages import Operation, operation_of
from .awaited import AwaitedSequences
from .followed import Followed
from .heartbeats import flow_control_reply, last_of_consumer
from .interfaces import FeedLink, FeedListener, FeedState
from .jetstream import JetStream, JetStreamError, JetStreamUnavailable, StreamInfo, feed_metadata, status_of
from .positions import Point, PointEncoder, stream_key
from .requirements import Permission, StreamUnusable, holds, may_hold
from .routes import Routes
from .stream_check import GONE_SECONDS, INFO_SECONDS, StreamCheck
from .window import Record

__all__ = ["Feed", "StreamLife"]

logger = limited_logger()

HEARTBEAT_SECONDS = 5.0
_SILENT_SECONDS = 2 * HEARTBEAT_SECONDS + 1
"""The silence after which the consumer counts as lost: a deleted consumer or stream is silent."""
_FIRST_BACKOFF = 0.1
_MAX_BACKOFF = 5.0
_SHORTER_SECONDS = 2.0
"""Seconds for which a stream must be shorter than before, to count as another one."""
_IDLE_HEARTBEAT = 100
_NO_HEADERS: tuple[bytes, Operation] = b"", ""
_MILLISECOND = 1_000_000
"""In nanoseconds."""
_numbers = msgspec.json.Decoder(tuple[int, int, int, int]).decode
"""Returns the four numbers of a JSON array."""


class StreamLife:
    """The time in which a stream is the same one for its feed. A position is valid in one life.

    Another life begins when the stream was created again, or has begun again, or after the feed has lost its position.

    Args:
        key: The key of the stream in positions.
        anchor: The position at which the feed begins.
    """

    __slots__ = ("anchor", "encode", "key")

    def __init__(self, key: str, anchor: Point) -> None:
        self.key = key
        self.encode = PointEncoder(key).encode
        """Returns the part of an id for a sequence and a time."""
        self.anchor = anchor
        """A position from which on the feed has seen every message. Its time is 0 until the feed has seen one."""


class Feed:
    """The feed of one stream in one worker. It runs while a pattern is followed.

    Args:
        name: The name of the stream.
        patterns: The patterns that the operator has configured; ``None`` for all subjects of the stream.
        jetstream: The JetStream API.
        link: The connection.
        listener: The callbacks.
        deliver_prefix: The literal prefix of the subjects on which the consumers deliver.
        headers: The NATS headers that clients get.
    """

    def __init__(
        self,
        name: str,
        patterns: tuple[str, ...] | None,
        jetstream: JetStream,
        link: FeedLink,
        listener: FeedListener["Feed"],
        *,
        deliver_prefix: str,
        headers: frozenset[str] = frozenset(),
    ) -> None:
        self.name = name
        self.jetstream = jetstream
        self.info: StreamInfo | None = None
        """The newest state of the stream; ``None`` before it was known."""
        self.life = StreamLife("", Point(0, 0))
        """The key and the encoder of positions, and the anchor, until the stream isn't the same one any more."""
        self.seq = 0
        """The sequence of the last message that was delivered: all up to it were."""
        self.time = 0
        """The time of that message, in Unix milliseconds."""
        self.is_standing = False
        """True while a consumer delivers."""
        self.problem = ""
        """The reason for which no consumer delivers, for people."""
        self.is_current = False
        """True if the position is known. It isn't while no pattern is followed."""
        self.patterns = patterns
        self.link = link
        self._listener = listener
        self.prefix = deliver_prefix
        self._headers = headers
        self._routes = Routes()
        self._current = asyncio.Event()
        self._known = asyncio.Event()
        self.lag = 0
        """The number of messages of the stream that were not delivered yet, as far as NATS has reported."""
        self._awaited = AwaitedSequences()
        self._wake = asyncio.Event()
        self._broken = asyncio.Event()
        """Set when the present consumer can't go on."""
        self._task: asyncio.Task[None] | None = None
        self._consumer = ""
        self._consumer_seq = 0
        self._is_reading = False
        self._ack_size = 0
        """The length of the first tokens of the reply subjects, which don't change."""
        self._heard_at = 0.0
        self._gone_since: dict[str, float] = {}
        self._shorter_since = 0.0
        self._check = StreamCheck(name, jetstream, link, deliver_prefix)

    # What it holds

    def may_hold(self, pattern: str) -> bool:
        """Return whether the operator's configuration lets the stream serve a pattern."""
        return may_hold(self.patterns, pattern)

    def holds(self, pattern: str) -> bool:
        """Return whether the stream holds every message of a pattern, as far as is known."""
        return self.info is not None and not self.is_unavailable and holds(self.patterns, self.info, pattern)

    @property
    def is_unavailable(self) -> bool:
        """True if the stream can't serve clients until the operator has changed something."""
        return self._check.is_unavailable

    @property
    def denied(self) -> tuple[Permission, ...]:
        """The permissions that the NATS user lacks."""
        return self._check.denied

    @property
    def is_known(self) -> bool:
        """True if it is known which patterns the stream holds."""
        return self.info is not None or self.is_unavailable

    @property
    def state(self) -> FeedState:
        """The state of the feed, for operators."""
        if self.is_unavailable:
            return "unavailable"
        if self.is_standing:
            return "reading"
        return "waiting" if self._is_needed or self.link.client is None else "idle"

    @property
    def key(self) -> str:
        """The key of the stream in positions."""
        return self.life.key

    @property
    def point(self) -> Point:
        """The position of the feed."""
        return Point(self.seq, self.time)

    def part(self, point: Point) -> str:
        """Return the part of a position that concerns this stream."""
        return self.life.encode(point.seq, point.time)

    @property
    def followed(self) -> tuple[Followed, ...]:
        """The patterns that are followed."""
        return tuple(self._routes)

    @property
    def followed_count(self) -> int:
        """The number of patterns that are followed."""
        return len(self._routes)

    def get(self, pattern: str) -> Followed | None:
        """Return a pattern if it is followed."""
        return self._routes.get(pattern)

    def add(self, followed: Followed) -> None:
        """Follow one more pattern, from the present position on."""
        if not self._routes and not self.is_standing:
            # The position is that of the last followers, who left while no consumer delivered.
            self.is_current = False
            self._current.clear()
        self._routes.add(followed)
        self._wake.set()

    def remove(self, followed: Followed) -> None:
        """Follow a pattern no more."""
        self._routes.discard(followed)
        self._wake.set()
        followed.window.close()

    # Waiting for its state

    async def until_current(self, seconds: float) -> bool:
        """Wait until the position is known, or the seconds have passed; return whether it is."""
        return await _wait(self._current, seconds)

    async def until_known(self, seconds: float) -> bool:
        """Wait until it is known which patterns the stream holds, or the seconds have passed; return whether it is."""
        return await _wait(self._known, seconds)

    async def until_at(self, seq: int, seconds: float) -> bool:
        """Wait until the feed has reached a sequence, or the seconds have passed; return whether it has."""
        if self.seq < seq:
            with self._awaited.waiting(seq) as arrived:
                await _wait(arrived, seconds)
        return self.seq >= seq

    # Running

    def start(self) -> None:
        """Run in the background."""
        # New ones, because an event belongs to the event loop in which it was first waited for.
        self._current, self._wake, self._broken, self._known = (asyncio.Event() for _ in range(4))
        self.is_current = False
        self._task = asyncio.create_task(self._run(), name=f"natsbridge-feed-{self.name}")

    async def stop(self) -> None:
        """Delete the consumer and stop."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1)

    def wake(self) -> None:
        """Note that the connection has changed."""
        self._wake.set()
        self._broken.set()

    async def _run(self) -> None:
        backoff = _FIRST_BACKOFF
        while True:
            self._wake.clear()
            if self.link.client is None:
                await self._wake.wait()
                continue
            stood = await self._serve()
            backoff = _FIRST_BACKOFF if stood else min(backoff * 2, _MAX_BACKOFF)
            if not self._is_needed:
                # Nothing keeps the position from here on.
                self.is_current = False
                self._current.clear()
            # Each try of a permission is an error in the log of NATS.
            seconds = backoff if self._is_needed and not self._check.is_denied else INFO_SECONDS
            await _wait(self._wake, seconds * random.uniform(0.5, 1))

    @property
    def _is_needed(self) -> bool:
        return bool(self._routes) or self.info is None

    async def _serve(self) -> bool:
        """Deliver messages until something is irregular; return whether a consumer was there."""
        stood = False
        client, sid = None, None
        self._broken.clear()
        try:
            await self._look()
            if not self._routes:
                return True
            self._consumer = f"natsbridge-{secrets.token_hex(8)}"
            self._consumer_seq = 0
            self._is_reading = True
            self._ack_size = 0
            self._heard_at = asyncio.get_running_loop().time()
            subject = f"{self.prefix}.{self._consumer}"
            client, sid = self.link.client, self.link.subscribe_control(subject, self)
            if sid is None:
                raise JetStreamUnavailable("NATS is disconnected")
            await self.jetstream.create_feed(self.name, self._consumer, subject, self.seq + 1)
            stood = self.is_standing = True
            self.problem = ""
            await self._watch()
        except JetStreamError as error:
            self._note_problem(error)
        finally:
            self.is_standing = self._is_reading = False
            consumer, self._consumer = self._consumer, ""
            if sid is not None:
                self.unsubscribe(client, sid)
                await self.delete_consumer(consumer)
        return stood

    async def _watch(self) -> None:
        """Return when the consumer is broken or needed no more."""
        loop = asyncio.get_running_loop()
        last = 0
        while self._routes and not await _wait(self._broken, HEARTBEAT_SECONDS / 2):
            if self._consumer_seq != last:
                last, self._heard_at = self._consumer_seq, loop.time()
            if loop.time() - self._heard_at > _SILENT_SECONDS:
                self.problem = "the consumer is silent"
                return
            if self._check.is_due:
                await self._look()

    async def _look(self) -> None:
        """Read the state of the stream.

        Raises:
            JetStreamError: The stream can't be read now, or can't serve clients at all.
        """
        info = await self._check.look(self.link.client)
        self._update(info)
        self._check.note_success(info)

    def unsubscribe(self, client: object, sid: int) -> None:
        """Send UNSUB, unless the connection is another one, which uses the same numbers again."""
        if self.link.client is client:
            self.link.unsubscribe(sid)

    async def delete_consumer(self, consumer: str) -> None:
        """Delete a consumer. If that fails, NATS removes it after the inactive threshold."""
        await asyncio.shield(self._delete_consumer(consumer))

    async def _delete_consumer(self, consumer: str) -> None:
        # Within the shield, because the worker may have stopped when it fails.
        with contextlib.suppress(JetStreamError):
            await self.jetstream.delete_consumer(self.name, consumer)

    def _note_problem(self, error: JetStreamError) -> None:
        if self.link.client is None:
            # The supervisor has logged it.
            return
        self.problem = str(error)
        self._check.note_problem(error, was_readable=self.info is not None)
        if isinstance(error, StreamUnusable):
            if self.is_unavailable:
                self._known.set()
            self._end_if_gone(lambda followed: False)

    def look_again(self) -> None:
        """Look at the stream again, because it isn't the one that is followed."""
        self._broken.set()

    def note_denied(self, subject: str) -> None:
        """Look at the stream again if NATS has refused a request that is for it."""
        if self._check.note_denied(subject):
            self.look_again()

    def _update(self, info: StreamInfo) -> None:
        """Compare the state of the stream with what was known.

        Raises:
            JetStreamUnavailable: The stream seems to be shorter than before. It may be so for a moment only.
        """
        is_new = self.info is None or self.info.created != info.created
        if not is_new and info.last_seq < self.seq:
            now = asyncio.get_running_loop().time()
            self._shorter_since = self._shorter_since or now
            if now - self._shorter_since < _SHORTER_SECONDS:
                raise JetStreamUnavailable(f"the stream ends at {info.last_seq}, before {self.seq}")
            is_new = True
        if info.messages and info.first_seq <= self.seq and info.first_time > self.time:
            # It has begun again, and is longer already: every message up to the position must be as old as that.
            is_new = True
        self._shorter_since = 0.0
        was_known, self.info = self.info is not None, info
        if is_new or not self.is_current:
            self.seq, self.time = info.last_seq, info.last_time
            self.life = StreamLife(stream_key(self.name, info.created), self.point)
            for followed in self._routes:
                followed.restart_window(self.seq)
            if is_new and was_known and self._routes:
                logger.warning("Stream '%s' is not the one before; its subscribers get a gap", self.name)
                self._listener.was_reset(self)
        self.lag = info.last_seq - self.seq
        self.is_current = True
        self._current.set()
        self._known.set()
        self._end_if_gone(lambda followed: self.holds(followed.pattern))

    def _end_if_gone(self, is_held: Callable[[Followed], bool]) -> None:
        """End the patterns that the stream hasn't held for 30 s."""
        now = asyncio.get_running_loop().time()
        missing = [each for each in self._routes if not is_held(each)]
        self._gone_since = {each.pattern: self._gone_since.get(each.pattern, now) for each in missing}
        ended = [each for each in missing if now - self._gone_since[each.pattern] >= GONE_SECONDS]
        if ended:
            for each in ended:
                each.is_ended = True
            self._listener.ended(self, ended)

    # Called in the read loop of the connection; must not raise

    def confirmed(self) -> None:
        """Do nothing: the answer to the request for the consumer is later."""

    def refused(self) -> None:
        """Note that NATS doesn't let the bridge subscribe."""
        self.problem = f"NATS does not allow this server to subscribe below '{self.prefix}'"
        self._check.try_again()
        self._broken.set()

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> bool:
        """Process a message of the consumer; return true if the next one must wait until there is room."""
        try:
            # The replies of one consumer begin alike. The rest is four numbers, which are read as a JSON array, because
            # it takes longer to split and convert them.
            seq, consumer_seq, time, pending = _numbers(b"[%b]" % reply[self._ack_size :].replace(b".", b","))
            time //= _MILLISECOND
        except msgspec.MsgspecError:
            metadata = feed_metadata(reply)
            if metadata is None:
                self._on_status(reply, headers)
                return False
            seq, consumer_seq, time, pending = metadata
            self._ack_size = reply.index(b".%d.%d." % (seq, consumer_seq)) + 1
        if not self._is_reading:
            return False
        if consumer_seq != self._consumer_seq + 1:
            self._break(f"message {self._consumer_seq + 1} of the consumer is missing")
            return False
        self._consumer_seq = consumer_seq
        if seq <= self.seq:
            return False
        must_wait = False
        text, followed = self._routes.known.get(subject) or self._routes.find(subject)
        if followed:
            shown, operation = self._read_headers(headers) if headers else _NO_HEADERS
            record = Record(seq, time, text, shown, payload, operation)
            try:
                must_wait = self._listener.deliver(self, record, followed)
            except Exception:
                logger.exception("Cannot deliver a message of a stream; its subscribers get a gap")
                self._lose(seq, followed)
        if not self.time:
            self.life.anchor = Point(seq, time)
        self.seq, self.time, self.lag = seq, time, pending
        if seq >= self._awaited.next:
            self._awaited.arrived(seq)
        return must_wait

    def _read_headers(self, headers: bytes) -> tuple[bytes, Operation]:
        shown = encoding.header_fields(headers, self._headers) if self._headers else b""
        return shown, operation_of(headers)

    def _lose(self, seq: int, followed: tuple[Followed, ...]) -> None:
        for each in followed:
            # Perhaps the window doesn't have the message.
            each.restart_window(seq)
        self._listener.lost(followed)

    def _on_status(self, reply: bytes, headers: bytes) -> None:
        if status_of(headers) != _IDLE_HEARTBEAT:
            return
        self._heard_at = asyncio.get_running_loop().time()
        self.answer_flow_control(reply, headers)
        if not reply and last_of_consumer(headers) not in (None, self._consumer_seq):
            self._break("the last messages of the consumer are missing")

    def answer_flow_control(self, reply: bytes, headers: bytes) -> bool:
        """Answer a status message of a consumer that waits for it; return whether it is one."""
        answer = flow_control_reply(reply, headers)
        if answer:
            self.link.publish(answer)
        return bool(answer)

    def _break(self, problem: str) -> None:
        self.problem = problem
        self._is_reading = False
        self._broken.set()


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
