"""The JetStream API as history and resume use it: streams, consumers, and stored messages.

Stored messages are read in batches (ADR-31), which every replica of a stream may answer. A replica may lag, so only the
leader knows whether there are no more messages.
"""

import asyncio
import contextlib
import copy
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .answers import (
    Batch,
    ConsumerMissing,
    JetStreamError,
    JetStreamUnavailable,
    MessageMissing,
    PermissionMissing,
    StoredMessage,
    StreamInfo,
    StreamMissing,
    batch_of,
    check,
    direct_message,
    feed_metadata,
    message_of_json,
    pending_of_consumer,
    status_of,
    stream_info,
)
from .inbox import Inbox, Link
from .last_messages import find_first_of_last
from .requirements import Permission, permissions_for

__all__ = [
    "Batch",
    "ConsumerMissing",
    "JetStream",
    "JetStreamError",
    "JetStreamUnavailable",
    "Link",
    "PermissionMissing",
    "StoredMessage",
    "StreamInfo",
    "StreamMissing",
    "feed_metadata",
    "status_of",
]

_TIMEOUT_SECONDS = 5.0
_BATCH = 256
_BATCH_BYTES = 262_144
_MAX_ANSWER_BYTES = 1024 * 1024
"""The largest answer that describes a stream or a consumer."""
_HEARTBEAT_NS = 5_000_000_000
_INACTIVE_NS = 30_000_000_000
_COUNTER_INACTIVE_NS = 5_000_000_000
_NO_RESPONDERS = 503
_MAX_READ = 256
_MAX_SINGLE_READ = 32


class JetStream:
    """The JetStream API over a supervised connection.

    All methods raise JetStreamUnavailable if there is no answer, and JetStreamError for any other failure.

    Args:
        link: The connection to NATS. Call `established` for each new one, and `closed` when it has ended.
        inbox: The first tokens of the reply subjects.
        domain: The JetStream domain, or ``None`` for that of the server.
        timeout: The time for one request, in seconds. A search in a stream with many millions of messages takes the
            server seconds.
    """

    def __init__(self, link: Link, inbox: str, *, domain: str | None = None, timeout: float = _TIMEOUT_SECONDS) -> None:
        self._inbox = Inbox(link, inbox, timeout)
        self._domain = domain or ""
        self._subjects = _Subjects(_api_of(self._domain))
        self._turns: contextlib.AbstractAsyncContextManager[object] = contextlib.nullcontext()
        self._tried: set[str] = set()
        self._denied: set[str] = set()
        """The subjects on which NATS accepts no messages, of those that were tried."""
        self.on_denied: Callable[[str], None] = lambda subject: None
        """Called with the subject of a message for JetStream that NATS has refused."""

    def within(self, turns: asyncio.Semaphore) -> "JetStream":
        """Return the same API, of which each request takes one of these turns."""
        limited = copy.copy(self)
        limited._turns = turns
        return limited

    def established(self, domain_of_server: str = "") -> None:
        """Subscribe to the replies on a new connection.

        Args:
            domain_of_server: The JetStream domain of the server that is connected.
        """
        # NATS translates the subjects of its own domain before it judges permissions, so it refuses only the others.
        self._subjects.prefix = _api_of("" if self._domain == domain_of_server else self._domain)
        self._inbox.established()

    @property
    def _api(self) -> str:
        return self._subjects.prefix

    def closed(self) -> None:
        """Let the requests in progress fail, because the connection has ended."""
        self._inbox.closed()

    @property
    def is_refused(self) -> bool:
        """True if NATS has refused the subscription to the replies."""
        return self._inbox.is_refused

    def subscribe_again(self) -> None:
        """Try again to subscribe to the replies, if NATS has refused it."""
        if self._inbox.is_refused:
            self._inbox.established()

    @property
    def requests(self) -> int:
        """The number of requests so far."""
        return self._inbox.sent

    # Permissions

    def denied(self, subject: str) -> bool:
        """Note that NATS hasn't accepted a message on a subject; return whether it is one of JetStream's."""
        self._inbox.denied(subject)
        if subject in self._tried:
            self._denied.add(subject)
        if subject.startswith("$JS."):
            self.on_denied(subject)
            return True
        return False

    async def try_permissions(self, stream: str) -> None:
        """Try every permission that a stream needs. The result is known with the answer to the next request."""
        probes = {each.probe for each in permissions_for(self._api, stream, allow_direct=True)}
        self._tried |= probes
        self._denied -= probes
        await self._inbox.send(probes - {f"{self._api}STREAM.INFO.{stream}"})

    def denied_permissions(self, stream: str, *, allow_direct: bool) -> tuple[Permission, ...]:
        """Return the permissions for a stream that NATS has denied since they were tried."""
        needed = permissions_for(self._api, stream, allow_direct=allow_direct)
        return tuple(each for each in needed if each.probe in self._denied)

    async def _ask(self, operation: str, request: dict[str, Any] | None = None, *, is_message: bool = False) -> bytes:
        payload = b"" if request is None else msgspec.json.encode(request)
        async with self._turns:
            headers, answer = await self._inbox.ask(self._api + operation, payload)
        if status_of(headers) == _NO_RESPONDERS:
            raise JetStreamUnavailable(f"JetStream doesn't listen to {self._api}{operation}")
        if len(answer) > _MAX_ANSWER_BYTES and not is_message:
            raise JetStreamError(f"an answer of {len(answer)} bytes to {self._api}{operation}")
        return answer

    # Streams and consumers

    async def stream_info(self, stream: str) -> StreamInfo:
        """Return the configuration and the state of a stream.

        Raises:
            StreamMissing: The stream doesn't exist.
        """
        return stream_info(await self._ask(f"STREAM.INFO.{stream}"))

    async def create_feed(self, stream: str, name: str, deliver_subject: str, start_seq: int) -> None:
        """Create an ordered push consumer for a whole stream, from a sequence on.

        Subscribe to the subject first. A consumer without a subscriber for 30 s is deleted by NATS.
        """
        options = {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, start_seq)}
        await self._create_push_consumer(stream, name, deliver_subject, options)

    async def create_snapshot(self, stream: str, name: str, deliver_subject: str, patterns: Sequence[str]) -> int:
        """Create a push consumer for the last message of each subject; return their number.

        The messages come in stream order, and those that are stored later follow. A message that is deleted or
        replaced before it was sent doesn't come, so there may be fewer. The snapshot has ended with a message after
        which none is pending, with a message above the last sequence that `stream_info` returned before, or with an
        idle heartbeat. NATS refuses patterns of which one includes another.
        """
        filters = {"filter_subject": patterns[0]} if len(patterns) == 1 else {"filter_subjects": list(patterns)}
        options = {"deliver_policy": "last_per_subject", **filters}
        return await self._create_push_consumer(stream, name, deliver_subject, options)

    async def _create_push_consumer(self, stream: str, name: str, deliver_subject: str, options: dict[str, Any]) -> int:
        push = {
            "deliver_subject": deliver_subject,
            "max_deliver": 1,
            "flow_control": True,
            "idle_heartbeat": _HEARTBEAT_NS,
            "inactive_threshold": _INACTIVE_NS,
        }
        return await self._create_consumer(stream, name, push | options)

    async def _create_consumer(self, stream: str, name: str, options: dict[str, Any]) -> int:
        """Create a consumer in memory; return the number of messages that it will deliver."""
        config = {"name": name, "ack_policy": "none", "mem_storage": True, "num_replicas": 1, **options}
        request = {"stream_name": stream, "config": config}
        return pending_of_consumer(await self._ask(f"CONSUMER.CREATE.{stream}.{name}", request), name)

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer, unless it doesn't exist any more."""
        try:
            check(await self._ask(f"CONSUMER.DELETE.{stream}.{name}"))
        except (ConsumerMissing, StreamMissing):
            return

    # Messages

    async def next_message(self, stream: str, seq: int, pattern: str) -> StoredMessage | None:
        """Return the first message of a pattern from a sequence on, by the word of the leader; ``None`` if none is.

        Raises:
            StreamMissing: The stream doesn't exist.
        """
        return await self._get(stream, {"seq": max(1, seq), "next_by_subj": pattern})

    async def _get(self, stream: str, request: dict[str, Any]) -> StoredMessage | None:
        try:
            return message_of_json(await self._ask(f"STREAM.MSG.GET.{stream}", request, is_message=True))
        except MessageMissing:
            return None

    async def fetch(
        self,
        stream: str,
        seq: int,
        pattern: str,
        *,
        batch: int = _BATCH,
        max_bytes: int = _BATCH_BYTES,
        allow_direct: bool = True,
    ) -> Batch:
        """Return the first messages of a pattern from a sequence on.

        Any replica may answer, and an end is true for that replica only.

        Args:
            stream: The name of the stream.
            seq: The first sequence.
            pattern: The pattern.
            batch: The largest number of messages.
            max_bytes: The size beyond which no more messages are added. There is at least one, of any size.
            allow_direct: Whether the stream answers batches. Otherwise the messages are read one by one.

        Raises:
            JetStreamUnavailable: A part of the batch is missing, too.
        """
        if not allow_direct:
            return await self._fetch_singly(stream, seq, pattern, batch, max_bytes)
        request = {"seq": max(1, seq), "next_by_subj": pattern, "batch": batch, "max_bytes": max_bytes}
        subject = f"{self._api}DIRECT.GET.{stream}"
        payload = msgspec.json.encode(request)
        async with self._turns:
            replies = await self._inbox.ask_many(subject, payload, messages=batch, max_bytes=max_bytes)
        return batch_of(replies, seq)

    async def _fetch_singly(self, stream: str, seq: int, pattern: str, batch: int, max_bytes: int) -> Batch:
        messages: list[StoredMessage] = []
        size = 0
        while len(messages) < batch and size < max_bytes:
            message = await self.next_message(stream, seq, pattern)
            if message is None:
                return Batch(messages, is_end=True, pending=0)
            if message.seq < seq:
                raise JetStreamError("the answer has a message before the one that was asked for")
            messages.append(message)
            size += len(message.payload) + len(message.headers) + len(message.subject)
            seq = message.seq + 1
        return Batch(messages, is_end=False, pending=-1)

    # The last messages

    async def first_of_last(self, stream: str, pattern: str, count: int, info: StreamInfo) -> tuple[int, bool]:
        """Return the sequence at which the last messages of a pattern begin, and whether there are older ones.

        See `find_first_of_last`. Messages that are stored meanwhile, and those that a replica doesn't have yet, may
        follow in addition to ``count``.

        Args:
            stream: The name of the stream.
            pattern: The pattern.
            count: The number of messages, at least 1.
            info: The state of the stream.
        """
        return await find_first_of_last(_Messages(self, stream, pattern, info), count)

    async def first_of_last_of_all(self, stream: str, patterns: Sequence[str], count: int, info: StreamInfo) -> int:
        """Return the sequence at which the last messages of several patterns begin, ``count`` of all together.

        A message counts once for each pattern that matches it. So there may be a few more or less than ``count``.
        """
        sources = [_Messages(self, stream, pattern, info) for pattern in patterns]
        return (await find_first_of_last(_MergedMessages(sources), count))[0]

    async def last_message(self, stream: str, pattern: str, *, allow_direct: bool = True) -> StoredMessage | None:
        """Return the last message of a pattern; ``None`` if there is none."""
        request = {"last_by_subj": pattern}
        if not allow_direct:
            return await self._get(stream, request)
        async with self._turns:
            reply = await self._inbox.ask(f"{self._api}DIRECT.GET.{stream}", msgspec.json.encode(request))
        return direct_message(*reply)

    async def count_from(self, stream: str, seq: int, pattern: str) -> int:
        """Return the number of messages of a pattern from a sequence on, without Direct Get.

        It is the number of messages that a consumer would deliver, which is created for that and deleted.
        """
        name = f"count-{secrets.token_hex(8)}"
        options = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, seq),
            "filter_subject": pattern,
            "headers_only": True,
            "inactive_threshold": _COUNTER_INACTIVE_NS,
        }
        pending = await self._create_consumer(stream, name, options)
        await self.delete_consumer(stream, name)
        return pending

    async def count_between(self, stream: str, pattern: str, begin: int, end: int) -> int | None:
        """Return the exact number of messages of a pattern from a sequence on, before another one.

        It is ``None`` if one of the counts may be of another state of the stream: if the stream has changed meanwhile,
        or has several copies, of which one may lag. Direct Get isn't used, because mirrors may answer it too.
        """
        info = await self.stream_info(stream)
        if info.num_replicas > 1 or info.is_mirror:
            return None
        count = await self.count_from(stream, begin, pattern) - await self.count_from(stream, end, pattern)
        later = await self.stream_info(stream)
        is_same = (info.created, info.first_seq, info.last_seq, info.messages) == (
            later.created,
            later.first_seq,
            later.last_seq,
            later.messages,
        )
        return count if is_same else None


@dataclass
class _Subjects:
    """The subjects of the API on the present connection, also for replays that have begun on another one."""

    prefix: str


def _api_of(domain: str) -> str:
    return f"$JS.{domain}.API." if domain else "$JS.API."


class _Messages:
    """The messages of a pattern in a stream, for the search of the last ones."""

    def __init__(self, jetstream: JetStream, stream: str, pattern: str, info: StreamInfo) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._pattern = pattern
        self._allow_direct = info.allow_direct
        self.first_seq = info.first_seq
        self.last_seq = info.last_seq
        self.max_read = _MAX_READ if info.allow_direct else _MAX_SINGLE_READ

    async def last(self) -> int | None:
        message = await self._jetstream.last_message(self._stream, self._pattern, allow_direct=self._allow_direct)
        return None if message is None else message.seq

    async def first_from(self, seq: int) -> int | None:
        messages = await self.read(seq, 1)
        return messages[0] if messages else None

    async def count_from(self, seq: int) -> tuple[int, int]:
        if self._allow_direct:
            batch = await self._jetstream.fetch(self._stream, seq, self._pattern, batch=1)
            return (batch.messages[0].seq, 1 + batch.pending) if batch.messages else (seq, 0)
        first = await self.first_from(seq)
        return (
            (seq, 0) if first is None else (first, await self._jetstream.count_from(self._stream, first, self._pattern))
        )

    async def read(self, seq: int, count: int) -> list[int]:
        return [message.seq for message in (await self.batch(seq, count)).messages]

    async def batch(self, seq: int, count: int) -> Batch:
        return await self._jetstream.fetch(
            self._stream, seq, self._pattern, batch=count, allow_direct=self._allow_direct
        )


class _MergedMessages:
    """The messages of several patterns in a stream, each once for each pattern that matches it."""

    def __init__(self, sources: Sequence[_Messages]) -> None:
        self._sources = sources
        self.first_seq = sources[0].first_seq
        self.last_seq = sources[0].last_seq
        self.max_read = sources[0].max_read // len(sources)

    async def last(self) -> int | None:
        return max([seq for each in self._sources if (seq := await each.last()) is not None], default=None)

    async def first_from(self, seq: int) -> int | None:
        return min([first for each in self._sources if (first := await each.first_from(seq)) is not None], default=None)

    async def count_from(self, seq: int) -> tuple[int, int]:
        counts = [await each.count_from(seq) for each in self._sources]
        return min([first for first, count in counts if count], default=seq), sum(count for _, count in counts)

    async def read(self, seq: int, count: int) -> list[int]:
        batches = [await each.batch(seq, count) for each in self._sources]
        # Beyond the end of a batch, a message of its pattern may be next.
        end = min(
            [each.messages[-1].seq for each in batches if each.messages and not each.is_end], default=self.last_seq
        )
        return sorted(message.seq for each in batches for message in each.messages if message.seq <= end)[:count]
