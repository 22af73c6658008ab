"""Communication between the workers of one app over NATS: requests to one worker, announcements to all.

Each worker has three subscriptions under the control prefix: ``worker.<id>`` for requests to it, ``reply.<id>.*`` for
replies to its own requests, and ``all.>`` for announcements. If no worker has the first subscription, the
NATS server replies with the status "no responders". No other subject is used. A NATS user for the bridge therefore
needs no inbox, and no received message makes the bridge publish elsewhere.

The subscriptions go first on each connection. The channel is ready when NATS has confirmed them and a request of this
worker to itself was answered, which shows that NATS lets it publish too. If not, for instance because the operator has
not allowed the control subjects, it tries again with a growing delay. A ready channel repeats the request regularly,
because a reload of NATS may take permissions away without a notice.
"""

import asyncio
import itertools
import logging
import random
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import nats.errors
from nats.aio.client import DEFAULT_PENDING_SIZE

from ..nats.connection import ControlListener, NatsClient
from ..protocol.messages import NatsState
from ..protocol.session_ids import WORKER_ID_GRAMMAR

__all__ = ["ControlChannel", "ControlConnection", "RequestHandler", "UnknownWorkerError"]

logger = logging.getLogger("sanic.root.nats_bridge")

_NO_RESPONDERS = b"NATS/1.0 503"
_STOP_SECONDS = 1.0
_MAX_PENDING_BYTES = DEFAULT_PENDING_SIZE // 2
_POLL_SECONDS = 0.02
_CHECK_SECONDS = 5.0
_ECHO_SECONDS = 5.0
_CHECK_INTERVAL_SECONDS = 30.0
_PROBE_SECONDS = 2.0
_SUBSCRIPTIONS = 3
_CHECK = "check"
_FIRST_RETRY_SECONDS = 1.0
_MAX_RETRY_SECONDS = 5.0

RequestHandler = Callable[[bytes], Coroutine[Any, Any, bytes]]
"""A function that returns the reply to a request. It must not raise."""


class ControlConnection(Protocol):
    """The connection to NATS of one worker, implemented by ConnectionSupervisor."""

    @property
    def client(self) -> NatsClient | None:
        """The connected nats-py client, or ``None``."""

    @property
    def reports_no_responders(self) -> bool:
        """True if the connected server replies to a request that has no subscriber."""

    def subscribe_control(self, subject: str, listener: ControlListener) -> int | None:
        """Send SUB; return the subscription's number, or ``None`` while NATS is disconnected."""

    def unsubscribe(self, sid: int) -> None:
        """Send UNSUB."""


class UnknownWorkerError(LookupError):
    """No connected worker has the requested id."""


class ControlChannel:
    """The requests and announcements between one worker and the others.

    Args:
        connection: The connection to NATS. Call `established` for each new one, before anything else subscribes, and
            `closed` when it has ended.
        prefix: The first tokens of the control subjects.
        on_request: Returns the reply to a request of another worker. It must not raise.
        on_announcement: Called with each announcement of any worker, this one included, by the kind of the
            announcement. They must not raise.
        on_ready: Called each time that this worker and the others can reach each other again.
    """

    def __init__(
        self,
        connection: ControlConnection,
        prefix: str,
        *,
        on_request: RequestHandler,
        on_announcement: Mapping[str, Callable[[bytes], None]],
        on_ready: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._on_request = on_request
        self._on_announcement = on_announcement
        self._on_ready = on_ready
        self._worker = ""
        self._stopped = False
        self._client: NatsClient | None = None
        """The client of the connection for which `established` was called."""
        self._checked = False
        self._subscriptions: dict[str, _Subscription] = {}
        """The present subscriptions by the names of their subjects."""
        self._timer: asyncio.TimerHandle | None = None
        """The next retry or check."""
        self._checking: NatsClient | None = None
        """The client of the connection that a check is testing."""
        self._retry_seconds = _FIRST_RETRY_SECONDS
        self._unreachable_logged = False
        self._numbers = itertools.count()
        self._pending: dict[str, asyncio.Future[tuple[bytes, bytes]]] = {}
        """The replies that this worker waits for, by the number of the request: headers and payload."""
        self._echoes: dict[str, asyncio.Future[None]] = {}
        """The announcements of this worker that NATS hasn't delivered to itself yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._reply_subject = re.compile(rf"{re.escape(prefix)}\.reply\.{WORKER_ID_GRAMMAR}\.\d+".encode())

    @property
    def ready(self) -> bool:
        """True if the NATS server delivers what this worker sends to itself.

        Links between NATS servers, which may separate it from other workers, aren't checked.
        """
        return self._checked and self._is_connected

    @property
    def state(self) -> NatsState:
        """The state of `ready`, for health, stats and metrics."""
        return "connected" if self.ready else "disconnected"

    @property
    def _is_connected(self) -> bool:
        return self._client is not None and self._client is self._connection.client

    def start(self, worker: str) -> None:
        """Set the id of this worker, and use the connections that are established from now on."""
        self._worker = worker
        self._stopped = False

    async def stop_requests(self) -> None:
        """Stop receiving requests, and wait one second at most for those in progress.

        Announcements still pass until `stop`. A connection that is established from now on isn't used.
        """
        self._stopped = True
        self._cancel_timer()
        requests = self._subscriptions.pop("worker", None)
        if requests is not None:
            self._unsubscribe(requests)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_SECONDS)
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Stop as `stop_requests`, and wait one second at most for replies and announcements."""
        await self.stop_requests()
        unfinished: set[asyncio.Future[Any]] = {*self._pending.values(), *self._echoes.values()}
        if unfinished:
            await asyncio.wait(unfinished, timeout=_STOP_SECONDS)
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(TimeoutError("no reply before this worker stopped"))
        self._fail_echoes("this worker is stopping")
        self._unsubscribe(*self._subscriptions.values())
        self._subscriptions = {}
        self._client = None
        self._checked = False

    def established(self) -> None:
        """Subscribe to the control subjects on a new connection."""
        if self._stopped:
            return
        self._cancel_timer()
        self._client = self._connection.client
        self._retry_seconds = _FIRST_RETRY_SECONDS
        self._subscribe()

    def closed(self) -> None:
        """Note that the connection has ended, and every subscription with it."""
        self._cancel_timer()
        self._client = self._checking = None
        self._checked = False
        self._subscriptions = {}
        self._fail_echoes("NATS is disconnected")

    def _fail_echoes(self, reason: str) -> None:
        for echo in self._echoes.values():
            if not echo.done():
                echo.set_exception(ConnectionError(reason))
                echo.exception()  # an announcement that still waits to be sent doesn't retrieve it

    async def request(self, worker: str, payload: bytes, seconds: float) -> bytes:
        """Send a request to a worker and return its reply.

        Raises:
            ConnectionError: NATS is disconnected, or doesn't let the workers reach each other.
            UnknownWorkerError: No connected worker has this id.
            TimeoutError: The worker has not replied within ``seconds``, or before `stop`.
            ValueError: The payload exceeds ``max_payload`` of the NATS server.
        """
        if not self.ready:
            raise self._not_ready()
        if not self._connection.reports_no_responders:
            # A worker that exists answers a check at once, however long the request itself takes.
            try:
                await self._request(worker, b"", min(seconds, _PROBE_SECONDS))
            except TimeoutError:
                raise UnknownWorkerError(worker) from None
        return await self._request(worker, payload, seconds)

    async def _request(self, worker: str, payload: bytes, seconds: float) -> bytes:
        number = str(next(self._numbers))
        future: asyncio.Future[tuple[bytes, bytes]]
        future = self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                subject = f"{self._prefix}.worker.{worker}"
                await self._publish(subject, payload, f"{self._prefix}.reply.{self._worker}.{number}")
                headers, reply = await future
        finally:
            del self._pending[number]
        if headers.startswith(_NO_RESPONDERS):
            raise UnknownWorkerError(worker)
        return reply

    async def announce(self, kind: str, payload: bytes) -> Coroutine[Any, Any, None]:
        """Send an announcement to all connected workers, each of which receives it once at most.

        Args:
            kind: The kind of the announcement, one token of a subject.
            payload: The announcement.

        Returns:
            A coroutine, to be awaited at once, that ends when NATS has delivered the announcement to this worker too.
            It raises ConnectionError if NATS doesn't deliver it within five seconds.

        Raises:
            ConnectionError: NATS is disconnected, or doesn't let the workers reach each other.
            ValueError: The payload exceeds ``max_payload`` of the NATS server.
        """
        if not self.ready:
            raise self._not_ready()
        return await self._announce(kind, payload)

    async def _announce(self, kind: str, payload: bytes) -> Coroutine[Any, Any, None]:
        number = str(next(self._numbers))
        echo = self._echoes[number] = asyncio.get_running_loop().create_future()
        try:
            await self._publish(f"{self._prefix}.all.{kind}.{self._worker}.{number}", payload)
        except BaseException:
            del self._echoes[number]
            raise
        return self._delivered(number, echo)

    async def _delivered(self, number: str, echo: asyncio.Future[None]) -> None:
        client = self._client
        try:
            async with asyncio.timeout(_ECHO_SECONDS):
                await echo
        except TimeoutError:
            if client is self._client:
                self._lost(self._undelivered)
            raise ConnectionError("NATS does not deliver announcements to the workers") from None
        finally:
            self._echoes.pop(number, None)

    def _not_ready(self) -> ConnectionError:
        if self._stopped:
            return ConnectionError("this worker is stopping")
        if self._is_connected:
            return ConnectionError("NATS does not let the workers reach each other")
        return ConnectionError("NATS is disconnected")

    async def _publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        # nats-py would wait for its buffer too. But that wait ignores cancellation and the end of the connection.
        while self._is_connected and self._client is not None and self._client.pending_data_size > _MAX_PENDING_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        if self._client is None or not self._is_connected:
            raise ConnectionError("NATS is disconnected")
        try:
            await self._client.publish(subject, payload, reply)
        except nats.errors.MaxPayloadError:
            raise ValueError(f"payload must fit max_payload of the NATS server, got {len(payload)} bytes") from None
        except nats.errors.Error as error:
            raise ConnectionError(str(error)) from error

    # Subscriptions

    def _subscribe(self) -> None:
        """Subscribe to the control subjects without a subscription, then check that messages pass."""
        handlers = {
            "reply": (f"reply.{self._worker}.*", self._receive_reply),
            "worker": (f"worker.{self._worker}", self._receive_request),
            "all": ("all.>", self._receive_announcement),
        }
        for name, (subject, handler) in handlers.items():
            if name not in self._subscriptions:
                subscription = _Subscription(f"{self._prefix}.{subject}", handler, self._answered)
                self._subscriptions[name] = subscription
                subscription.sid = self._connection.subscribe_control(subscription.subject, subscription)
        self._answered()

    def _unsubscribe(self, *subscriptions: "_Subscription") -> None:
        for subscription in subscriptions:
            if subscription.sid is not None and self._is_connected:
                self._connection.unsubscribe(subscription.sid)

    def _answered(self) -> None:
        """Continue when NATS has confirmed or refused every subscription, or has ended one."""
        present = tuple(self._subscriptions.values())
        if any(subscription.is_pending for subscription in present):
            return
        refused = [subscription.subject for subscription in present if subscription.is_refused]
        self._subscriptions = {name: each for name, each in self._subscriptions.items() if not each.is_refused}
        if refused:
            self._lost(f"NATS allows no subscription to {', '.join(map(repr, refused))}")
        elif self._subscriptions and self._checking is not self._client:
            self._spawn(self._check())

    async def _check(self) -> None:
        """Send a request and an announcement to this worker itself; it is ready if NATS delivers both and the reply."""
        client = self._checking = self._client
        try:
            await self._request(self._worker, b"", _CHECK_SECONDS)
            await (await self._announce(_CHECK, b""))
        except (ConnectionError, TimeoutError, UnknownWorkerError, ValueError):
            if client is self._client:
                self._checking = None
                self._lost(self._undelivered)
            return
        if client is not self._client:
            return
        self._checking = None
        if len(self._subscriptions) < _SUBSCRIPTIONS or any(each.is_pending for each in self._subscriptions.values()):
            return  # one was refused meanwhile, and the retry is scheduled
        was_ready, self._checked = self._checked, True
        self._retry_seconds = _FIRST_RETRY_SECONDS
        self._schedule(_CHECK_INTERVAL_SECONDS)
        if self._unreachable_logged:
            self._unreachable_logged = False
            logger.info("The workers of this app can reach each other again")
        if not was_ready:
            await self._on_ready()

    @property
    def _undelivered(self) -> str:
        return f"NATS delivers no messages below {self._prefix!r} that this worker publishes"

    def _lost(self, reason: str) -> None:
        """Try again later, because this worker and the others can't reach each other."""
        if self._stopped:
            return
        self._checked = False
        if not self._is_connected:
            return
        if not self._unreachable_logged:
            self._unreachable_logged = True
            logger.warning(
                "The workers of this app cannot reach each other: %s. POST commands and revocations for sessions of "
                "other workers fail. Check that the NATS user may publish and subscribe to '%s.>'; retrying",
                reason,
                self._prefix,
            )
        self._schedule(self._retry_seconds * random.uniform(1, 1.5))
        self._retry_seconds = min(2 * self._retry_seconds, _MAX_RETRY_SECONDS)

    def _schedule(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if self._is_connected:
            self._subscribe()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Messages

    def _receive_reply(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        waiting = self._pending.get(subject.rpartition(b".")[2].decode("ascii", "replace"))
        if waiting is not None and not waiting.done():
            waiting.set_result((headers, payload))

    def _receive_request(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        if self._reply_subject.fullmatch(reply):
            self._spawn(self._reply(reply.decode(), payload))

    async def _reply(self, subject: str, request: bytes) -> None:
        # An empty request is a check.
        reply = await self._on_request(request) if request else b""
        try:
            await self._publish(subject, reply)
        except (ConnectionError, ValueError) as error:
            logger.info("Cannot send a reply to another worker: %s", error)

    def _receive_announcement(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        kind, _, sender = subject[len(self._prefix) + len(".all.") :].decode("ascii", "replace").partition(".")
        worker, _, number = sender.partition(".")
        echo = self._echoes.get(number) if worker == self._worker else None
        if echo is not None and not echo.done():
            echo.set_result(None)
        receive = self._on_announcement.get(kind)
        if receive is not None:
            receive(payload)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Subscription:
    """A subscription to one of the control subjects, on one connection."""

    def __init__(
        self, subject: str, handler: Callable[[bytes, bytes, bytes, bytes], None], on_answered: Callable[[], None]
    ) -> None:
        self.subject = subject
        self.on_message = handler
        self.sid: int | None = None
        self.is_pending = True
        self.is_refused = False
        self._on_answered = on_answered

    def confirmed(self) -> None:
        """Note that the server has the subscription."""
        self.is_pending = False
        self._on_answered()

    def refused(self) -> None:
        """Note that the server has refused or ended the subscription."""
        self.is_pending = False
        self.is_refused = True
        self._on_answered()
