"""Requests to JetStream over one connection to NATS, with one reply or many.

All replies come to one subscription. nats-py's own requests take more CPU time and have only one reply, and before
Python 3.12 they lose cancellations.
"""

import asyncio
from collections.abc import Iterable
from typing import Protocol

import nats.errors

from ..nats.connection import NatsClient
from ..nats.interfaces import ControlListener
from .answers import JetStreamError, JetStreamUnavailable, PermissionMissing, ends_batch

__all__ = ["Inbox", "Link", "Reply"]

Reply = tuple[bytes, bytes]
"""The headers and the payload of a reply."""

_MAX_REQUESTS = 1024
_MAX_UNSENT_BYTES = 1024 * 1024
"""The number of bytes that nats-py hasn't written yet above which no request is sent."""
_DISCONNECTED = "NATS is disconnected"


class Link(Protocol):
    """The connection to NATS as requests use it, implemented by ConnectionSupervisor."""

    @property
    def client(self) -> NatsClient | None:
        """The connected nats-py client, or ``None``."""

    def subscribe_control(self, subject: str, listener: ControlListener) -> int | None:
        """Send SUB; return the subscription's number, or ``None`` while NATS is disconnected."""

    def unsubscribe(self, sid: int) -> None:
        """Send UNSUB."""


class Inbox:
    """The requests in progress, and the subscription to their replies.

    Args:
        link: The connection to NATS. Call `established` for each new one, and `closed` when it has ended.
        prefix: The first tokens of the reply subjects. No other inbox may use them.
        timeout: The time for a request and all its replies, in seconds.
    """

    def __init__(self, link: Link, prefix: str, timeout: float) -> None:
        self._link = link
        self._prefix = prefix
        self._skipped = len(prefix) + 1
        self._timeout = timeout
        self._sid: int | None = None
        self._refused = False
        self._last = 0
        """The number of the last request. A later one never gets the late replies of an earlier one."""
        self._requests: dict[bytes, _Request] = {}

    def established(self) -> None:
        """Subscribe on a new connection."""
        self._refused = False
        self._sid = self._link.subscribe_control(f"{self._prefix}.*", self)

    def closed(self) -> None:
        """Let the requests in progress fail, because the connection has ended."""
        self._sid = None
        self._fail(_DISCONNECTED)

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Pass a reply to its request, if that is still in progress."""
        request = self._requests.get(subject[self._skipped :])
        if request is not None:
            request.receive(headers, payload)

    def confirmed(self) -> None:
        """Do nothing, because requests follow the subscription on the same connection."""

    def refused(self) -> None:
        """Let the requests in progress fail, because NATS has refused the subscription."""
        self._refused = True
        self._fail(self._refusal)

    def denied(self, subject: str) -> None:
        """Let the requests to a subject fail, because NATS has refused them."""
        for request in self._requests.values():
            if request.subject == subject:
                request.finish(PermissionMissing(f"the NATS user may not publish to {subject}"))

    async def send(self, subjects: Iterable[str]) -> None:
        """Send an empty message to each subject, before the requests that follow.

        Raises:
            JetStreamUnavailable: NATS is disconnected.
        """
        client = self._link.client
        if client is None:
            raise JetStreamUnavailable(_DISCONNECTED)
        try:
            for subject in subjects:
                await client.publish(subject)
        except nats.errors.Error as error:
            raise JetStreamUnavailable(str(error)) from error

    @property
    def is_refused(self) -> bool:
        """True if NATS has refused the subscription to the replies. `established` tries again."""
        return self._refused

    @property
    def sent(self) -> int:
        """The number of requests that were sent so far."""
        return self._last

    @property
    def _refusal(self) -> str:
        return f"the NATS user may not subscribe to {self._prefix}.*"

    def _fail(self, reason: str) -> None:
        for request in self._requests.values():
            request.finish(JetStreamUnavailable(reason))

    async def ask(self, subject: str, payload: bytes) -> Reply:
        """Send a request; return its reply.

        Raises:
            JetStreamUnavailable: NATS is disconnected, or there is no reply.
            JetStreamError: The request is too large for NATS, or not allowed.
        """
        request = _Request(subject)
        await self._send(subject, payload, request)
        return request.replies[0]

    async def ask_many(self, subject: str, payload: bytes, *, messages: int, max_bytes: int) -> list[Reply]:
        """Send a request for a batch of messages; return them, and the block that ends them as the last reply.

        Args:
            subject: The subject of the request.
            payload: The request.
            messages: The largest number of messages.
            max_bytes: The largest sum of the payloads, without that of the last message.

        Raises:
            JetStreamUnavailable: NATS is disconnected, or the batch is incomplete.
            JetStreamError: The request is too large for NATS, or not allowed, or the answer has more messages than it.
        """
        request = _BatchRequest(subject, messages, max_bytes)
        await self._send(subject, payload, request)
        return request.replies

    async def _send(self, subject: str, payload: bytes, request: "_Request") -> None:
        client = self._link.client
        if client is None or self._sid is None:
            raise JetStreamUnavailable(_DISCONNECTED)
        if self._refused:
            raise JetStreamUnavailable(self._refusal)
        if len(self._requests) >= _MAX_REQUESTS:
            raise JetStreamUnavailable(f"{_MAX_REQUESTS} requests are in progress")
        # nats-py would wait for its buffer, but that wait ignores the end of the connection.
        if client.pending_data_size > _MAX_UNSENT_BYTES:
            raise JetStreamUnavailable("NATS accepts no data")
        self._last += 1
        number = self._last
        self._requests[b"%d" % number] = request
        try:
            async with asyncio.timeout(self._timeout):
                await client.publish(subject, payload, f"{self._prefix}.{number}")
                await request.done
        except TimeoutError:
            raise JetStreamUnavailable(
                f"no complete answer to {subject} in {self._timeout:g} s. If it never arrives, check that the NATS "
                f"user may publish to {subject}, and that the stream has a leader"
            ) from None
        except nats.errors.MaxPayloadError:
            raise JetStreamError(f"the request to {subject} exceeds max_payload of the NATS server") from None
        except nats.errors.Error as error:
            raise JetStreamUnavailable(str(error)) from error
        finally:
            del self._requests[b"%d" % number]
        if request.error is not None:
            raise request.error


class _Request:
    """A request with one reply. ``done`` never has an exception, which a cancelled task wouldn't retrieve."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.replies: list[Reply] = []
        self.error: JetStreamError | None = None

    def receive(self, headers: bytes, payload: bytes) -> None:
        """Take a reply. Must not raise."""
        if not self.done.done():
            self.replies.append((headers, payload))
            self.done.set_result(None)

    def finish(self, error: JetStreamError) -> None:
        """End the request without a reply."""
        if not self.done.done():
            self.error = error
            self.done.set_result(None)


class _BatchRequest(_Request):
    """A request with many replies, of which the last one ends the batch."""

    def __init__(self, subject: str, messages: int, max_bytes: int) -> None:
        super().__init__(subject)
        self._messages = messages
        self._bytes = max_bytes

    def receive(self, headers: bytes, payload: bytes) -> None:
        """Take a reply. Must not raise."""
        if ends_batch(headers):
            super().receive(headers, payload)
        elif self._messages <= 0 or self._bytes <= 0:
            self.finish(JetStreamError("the answer has more messages than were asked for"))
        elif not self.done.done():
            self.replies.append((headers, payload))
            self._messages -= 1
            self._bytes -= len(payload)
