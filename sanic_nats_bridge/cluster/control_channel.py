"""Communication between the workers of one app over NATS: requests to one worker, announcements to all.

Each worker has three subscriptions under the control prefix: ``worker.<id>`` for requests to it, ``reply.<id>.*`` for
replies to its own requests, and ``all`` for announcements. If no worker has the first subscription, the NATS server
replies with the status "no responders". No other subject is used. A NATS user for the bridge therefore needs no inbox,
and no received message makes the bridge publish elsewhere.
"""

import asyncio
import contextlib
import itertools
import logging
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import nats.errors
from nats.aio.client import DEFAULT_PENDING_SIZE
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..nats.connection import NatsClient
from ..nats.transport import within
from ..protocol.session_ids import WORKER_ID_GRAMMAR

__all__ = ["ControlChannel", "RequestHandler", "UnknownWorkerError"]

logger = logging.getLogger("sanic.root.nats_bridge")

_NO_RESPONDERS = "503"
_STOP_SECONDS = 1.0
_MAX_PENDING_BYTES = DEFAULT_PENDING_SIZE // 2
_POLL_SECONDS = 0.02

RequestHandler = Callable[[bytes], Coroutine[Any, Any, bytes]]
"""A function that returns the reply to a request. It must not raise."""


class UnknownWorkerError(LookupError):
    """No connected worker has the requested id."""


class ControlChannel:
    """The requests and announcements between one worker and the others.

    Args:
        client: Returns the connected nats-py client, or ``None``. Call `connected` for each new client.
        prefix: The first tokens of the control subjects.
        on_request: Returns the reply to a request of another worker. It must not raise.
        on_announcement: Called with each announcement of any worker, this one included.
        on_ready: Called when the control subjects are subscribed on a new connection.
    """

    def __init__(
        self,
        client: Callable[[], NatsClient | None],
        prefix: str,
        *,
        on_request: RequestHandler,
        on_announcement: Callable[[bytes], None],
        on_ready: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._get_client = client
        self._prefix = prefix
        self._on_request = on_request
        self._on_announcement = on_announcement
        self._on_ready = on_ready
        self._worker = ""
        self._client: NatsClient | None = None
        """The client on which the control subjects are subscribed."""
        self._numbers = itertools.count()
        self._pending: dict[str, asyncio.Future[Msg]] = {}
        """The replies that this worker waits for, by the number of the request."""
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._reply_subject = re.compile(rf"{re.escape(prefix)}\.reply\.{WORKER_ID_GRAMMAR}\.\d+")

    @property
    def ready(self) -> bool:
        """True if this worker and the others can reach each other."""
        return self._client is not None and self._client is self._get_client()

    def start(self, worker: str) -> None:
        """Set the id of this worker."""
        self._worker = worker

    async def stop(self) -> None:
        """Stop receiving requests, and wait one second at most for the requests in progress, in both directions."""
        # Not by nats-py's drain: if the server hangs, its gathered drains end as unretrieved exceptions.
        replies, others = self._subscriptions[:1], self._subscriptions[1:]
        self._subscriptions = []
        await within(_STOP_SECONDS, _unsubscribe(others))
        unfinished: set[asyncio.Future[Any]] = {*self._tasks, *self._pending.values()}
        if unfinished:
            await asyncio.wait(unfinished, timeout=_STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(TimeoutError("no reply before this worker stopped"))
        await within(_STOP_SECONDS, _unsubscribe(replies))
        self._client = None

    def connected(self) -> None:
        """Subscribe to the control subjects on a new connection, in the background."""
        client = self._get_client()
        if client is not None:
            self._spawn(self._subscribe(client))

    async def request(self, worker: str, payload: bytes, seconds: float) -> bytes:
        """Send a request to a worker and return its reply.

        Raises:
            ConnectionError: NATS is disconnected.
            UnknownWorkerError: No connected worker has this id.
            TimeoutError: The worker has not replied within ``seconds``, or before `stop`.
            ValueError: The payload exceeds ``max_payload`` of the NATS server.
        """
        number = str(next(self._numbers))
        future = self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                subject = f"{self._prefix}.worker.{worker}"
                await self._publish(subject, payload, f"{self._prefix}.reply.{self._worker}.{number}")
                message = await future
        finally:
            del self._pending[number]
        if message.headers is not None and message.headers.get("Status") == _NO_RESPONDERS:
            raise UnknownWorkerError(worker)
        reply: bytes = message.data
        return reply

    async def announce(self, payload: bytes) -> None:
        """Send an announcement to all connected workers. Each receives it once at most.

        Raises:
            ConnectionError: NATS is disconnected.
            ValueError: The payload exceeds ``max_payload`` of the NATS server.
        """
        await self._publish(f"{self._prefix}.all", payload)

    async def _publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        # nats-py would wait for its buffer too. But that wait ignores cancellation and the end of the connection.
        while self.ready and self._client is not None and self._client.pending_data_size > _MAX_PENDING_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        if self._client is None or not self.ready:
            raise ConnectionError("NATS is disconnected")
        try:
            await self._client.publish(subject, payload, reply)
        except nats.errors.MaxPayloadError:
            raise ValueError(f"payload must fit max_payload of the NATS server, got {len(payload)} bytes") from None
        except nats.errors.Error as error:
            raise ConnectionError(str(error)) from error

    async def _subscribe(self, client: NatsClient) -> None:
        handlers = {
            f"{self._prefix}.reply.{self._worker}.*": self._receive_reply,
            f"{self._prefix}.worker.{self._worker}": self._receive_request,
            f"{self._prefix}.all": self._receive_announcement,
        }
        try:
            self._subscriptions = [await client.subscribe(subject, cb=handler) for subject, handler in handlers.items()]
        except nats.errors.Error as error:
            logger.info("Cannot subscribe to the control subjects: %s; retrying on the next connection", error)
            return
        self._client = client
        await self._on_ready()

    async def _receive_reply(self, message: Msg) -> None:
        reply = self._pending.get(message.subject.rpartition(".")[2])
        if reply is not None and not reply.done():
            reply.set_result(message)

    async def _receive_request(self, message: Msg) -> None:
        if self._reply_subject.fullmatch(message.reply):
            self._spawn(self._reply(message))

    async def _reply(self, message: Msg) -> None:
        reply = await self._on_request(message.data)
        try:
            await self._publish(message.reply, reply)
        except (ConnectionError, ValueError) as error:
            logger.info("Cannot send a reply to another worker: %s", error)

    async def _receive_announcement(self, message: Msg) -> None:
        self._on_announcement(message.data)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _unsubscribe(subscriptions: Iterable[Subscription]) -> None:
    for subscription in subscriptions:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()
