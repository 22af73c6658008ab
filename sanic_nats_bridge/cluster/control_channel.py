"""How the bridges of one app talk to each other over NATS: requests to one worker, announcements to all.

Each worker has three subscriptions under the control prefix: ``worker.<id>`` for the requests to it,
``reply.<id>.*`` for the replies to its own, ``all`` for announcements. Where nobody has the first, the
NATS server says so ("no responders"). No other subject is used, so a NATS user for the bridge needs
no inbox, and nothing that arrives makes the bridge publish anywhere else.
"""

import asyncio
import contextlib
import itertools
import logging
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

import nats.errors
from nats.aio.client import DEFAULT_PENDING_SIZE
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..nats.connection import NatsClient
from ..nats.transport import within
from ..protocol.session_ids import WORKER_ID_GRAMMAR

__all__ = ["Answer", "ControlChannel", "NobodyListensError"]

logger = logging.getLogger("sanic.root.nats_bridge")

_NO_RESPONDERS: Final = "503"
_STOP_SECONDS: Final = 1.0
_ROOM_BYTES: Final = DEFAULT_PENDING_SIZE // 2
_LOOK_AGAIN_SECONDS: Final = 0.02

Answer = Callable[[bytes], Coroutine[Any, Any, bytes]]
"""Answers a request; it must not raise."""


class NobodyListensError(LookupError):
    """No worker of that id is connected to NATS."""


class ControlChannel:
    """One worker's way to the others, and theirs to it.

    Args:
        client: Returns the connected nats-py client, if there is one. Call `connected` whenever there is a new one.
        prefix: The first tokens of the control subjects.
        answer: Answers the request of another worker; it must not raise.
        on_announced: Called with each announcement of any worker, this one included.
        on_ready: Called when the control subjects are subscribed on a new connection.
    """

    def __init__(
        self,
        client: Callable[[], NatsClient | None],
        prefix: str,
        *,
        answer: Answer,
        on_announced: Callable[[bytes], None],
        on_ready: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._get_client = client
        self._prefix = prefix
        self._answer = answer
        self._on_announced = on_announced
        self._on_ready = on_ready
        self._worker = ""
        self._client: NatsClient | None = None
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies = re.compile(rf"{re.escape(prefix)}\.reply\.{WORKER_ID_GRAMMAR}\.\d+")

    @property
    def ready(self) -> bool:
        """Whether the others can be reached, and reach this worker."""
        return self._client is not None and self._client is self._get_client()

    def start(self, worker: str) -> None:
        """Be the worker of this id from here on."""
        self._worker = worker

    async def stop(self) -> None:
        """Take no more requests, and answer those that have come; give both them and its own a second to end."""
        # Not left to nats-py's drain: where the server hangs its gathered drains end as unretrieved exceptions.
        replies, others = self._subscriptions[:1], self._subscriptions[1:]
        self._subscriptions = []
        await within(_STOP_SECONDS, _unsubscribe(others))
        unfinished: set[asyncio.Future[Any]] = {*self._tasks, *self._waiting.values()}
        if unfinished:
            await asyncio.wait(unfinished, timeout=_STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_exception(TimeoutError("no answer before the end"))
        await within(_STOP_SECONDS, _unsubscribe(replies))
        self._client = None

    def connected(self) -> None:
        """A new connection stands: listen on it."""
        client = self._get_client()
        if client is not None:
            self._spawn(self._listen(client))

    async def request(self, worker: str, payload: bytes, seconds: float) -> bytes:
        """What the worker answers.

        Raises:
            ConnectionError: NATS is away.
            NobodyListensError: There is no such worker.
            TimeoutError: It has not answered in time, or before `stop`.
            ValueError: The payload is larger than NATS takes.
        """
        number = str(next(self._numbers))
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                subject = f"{self._prefix}.worker.{worker}"
                await self._publish(subject, payload, f"{self._prefix}.reply.{self._worker}.{number}")
                message = await answered
        finally:
            del self._waiting[number]
        if message.headers is not None and message.headers.get("Status") == _NO_RESPONDERS:
            raise NobodyListensError(worker)
        answer: bytes = message.data
        return answer

    async def announce(self, payload: bytes) -> None:
        """Tell every other worker that is connected to NATS; each hears it at most once.

        Raises:
            ConnectionError: NATS is away.
            ValueError: The payload is larger than NATS takes.
        """
        await self._publish(f"{self._prefix}.all", payload)

    async def _publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        # nats-py would wait for room by itself, but deaf to cancellation, and for ever where the connection ends.
        while self.ready and self._client is not None and self._client.pending_data_size > _ROOM_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        if self._client is None or not self.ready:
            raise ConnectionError("NATS is away")
        try:
            await self._client.publish(subject, payload, reply)
        except nats.errors.MaxPayloadError:
            raise ValueError("larger than NATS takes") from None
        except nats.errors.Error as error:
            raise ConnectionError(str(error)) from error

    async def _listen(self, client: NatsClient) -> None:
        handlers = {
            f"{self._prefix}.reply.{self._worker}.*": self._take_reply,
            f"{self._prefix}.worker.{self._worker}": self._take_request,
            f"{self._prefix}.all": self._take_announcement,
        }
        try:
            self._subscriptions = [await client.subscribe(subject, cb=take) for subject, take in handlers.items()]
        except nats.errors.Error as error:
            # The next connection comes with another try.
            logger.info("No control subjects on this connection: %s", error)
            return
        self._client = client
        await self._on_ready()

    async def _take_reply(self, message: Msg) -> None:
        answered = self._waiting.get(message.subject.rpartition(".")[2])
        if answered is not None and not answered.done():
            answered.set_result(message)

    async def _take_request(self, message: Msg) -> None:
        if self._replies.fullmatch(message.reply):
            self._spawn(self._respond(message))

    async def _respond(self, message: Msg) -> None:
        answer = await self._answer(message.data)
        try:
            await self._publish(message.reply, answer)
        except (ConnectionError, ValueError) as error:
            logger.info("A reply to another worker could not be sent: %s", error)

    async def _take_announcement(self, message: Msg) -> None:
        self._on_announced(message.data)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _unsubscribe(subscriptions: Iterable[Subscription]) -> None:
    for subscription in subscriptions:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()
