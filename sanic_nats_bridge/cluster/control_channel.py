"""Communication between the workers of one app over NATS: requests to one worker, announcements to all.

Each worker has three subscriptions under the control prefix: ``worker.<id>`` for requests to it, ``reply.<id>.*`` for
replies to its own requests, and ``all.>`` for announcements. If no worker has the first subscription, the
NATS server replies with the status "no responders". No other subject is used. A NATS user for the bridge therefore
needs no inbox, and no received message makes the bridge publish elsewhere.

The subscriptions go first on each connection. The channel is ready when NATS has confirmed them and a request of this
worker to itself was answered, which shows that NATS lets it publish too. If not, for instance because the operator has
not allowed the control subjects, it tries again with a growing delay. A ready channel repeats both regularly,
because a reload of NATS may take permissions away without a notice. The announcement also shows the others that
this worker exists.

Every message is signed if there is a ``control_key``, except for announcements of settings. Those show workers with
another key, or none, that the keys differ.
"""

import asyncio
import contextlib
import random
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import nats.errors
from nats.aio.client import DEFAULT_PENDING_SIZE

from ..log_limits import limited_logger
from ..nats.connection import NatsClient
from ..protocol.messages import NatsState
from ..protocol.session_ids import WORKER_ID_GRAMMAR
from .control_subscription import ControlConnection, ControlSubscription
from .known_workers import KnownWorkers
from .signatures import Signatures

__all__ = ["ControlChannel", "ControlConnection", "RequestHandler", "UnknownWorkerError"]

logger = limited_logger()

_NO_RESPONDERS = b"NATS/1.0 503"
_STOP_SECONDS = 1.0
_MAX_PENDING_BYTES = DEFAULT_PENDING_SIZE // 2
_POLL_SECONDS = 0.02
_CHECK_SECONDS = 5.0
_ECHO_SECONDS = 5.0
_CHECK_INTERVAL_SECONDS = 30.0
_SUBSCRIPTIONS = 3
_CHECK = "check"
_END = "end"
_HELLO = b"hello"
"""The payload of a check after which the other workers announce themselves too."""
_HELLO_SPREAD_SECONDS = 0.5
_UNSIGNED = {"settings"}
_FIRST_RETRY_SECONDS = 1.0
_MAX_RETRY_SECONDS = 5.0

RequestHandler = Callable[[bytes], Coroutine[Any, Any, bytes]]
"""A function that returns the reply to a request. It must not raise."""


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
        signatures: Signs the messages of this worker, and checks the others.
        known: The workers that have announced themselves.
        max_requests: The largest number of requests of other workers that are executed at once.
        dropped: Counts the messages that were dropped, by reason.
    """

    def __init__(
        self,
        connection: ControlConnection,
        prefix: str,
        *,
        on_request: RequestHandler,
        on_announcement: Mapping[str, Callable[[bytes], None]],
        on_ready: Callable[[], Coroutine[Any, Any, None]],
        signatures: Signatures,
        known: KnownWorkers,
        max_requests: int,
        dropped: Counter[str],
    ) -> None:
        self._signatures = signatures
        self._known = known
        self._max_requests = max_requests
        self._dropped = dropped
        self._connection = connection
        self.prefix = prefix
        self._on_request = on_request
        self._on_announcement = on_announcement
        self._on_ready = on_ready
        self._worker = ""
        self._stopped = False
        self._client: NatsClient | None = None
        """The client of the connection for which `established` was called."""
        self._checked = False
        self._subscriptions: dict[str, ControlSubscription] = {}
        """The present subscriptions by the names of their subjects."""
        self._timer: asyncio.TimerHandle | None = None
        """The next retry or check."""
        self._checking: NatsClient | None = None
        """The client of the connection that a check is testing."""
        self._retry_seconds = _FIRST_RETRY_SECONDS
        self._unreachable_logged = False
        self._answering_hello: asyncio.TimerHandle | None = None
        self._pending: dict[str, asyncio.Future[tuple[bytes, bytes]]] = {}
        """The replies that this worker waits for, by the stamp of the request: headers and payload."""
        self._echoes: dict[str, asyncio.Future[None]] = {}
        """The announcements of this worker that NATS hasn't delivered to itself yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = 0
        """Requests of other workers in progress."""
        stamp = r"\d{1,12}-\d{1,18}"
        self._reply_subject = re.compile(rf"{re.escape(prefix)}\.reply\.{WORKER_ID_GRAMMAR}\.{stamp}".encode())
        self._sender = re.compile(rf"({WORKER_ID_GRAMMAR})\.({stamp})")

    @property
    def ready(self) -> bool:
        """True if the NATS server delivers what this worker sends to itself.

        Links between NATS servers, which may separate it from other workers, aren't checked.
        """
        return self._checked and self._is_connected

    @property
    def worker(self) -> str:
        """The id of this worker."""
        return self._worker

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
        """Stop receiving requests, wait one second at most for those in progress, and announce the end of this worker.

        Announcements still pass until `stop`. A connection that is established from now on isn't used.
        """
        was_stopped, self._stopped = self._stopped, True
        self._cancel_timer()
        requests = self._subscriptions.pop("worker", None)
        if requests is not None:
            self._unsubscribe(requests)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        if not was_stopped and self.ready:
            with contextlib.suppress(ConnectionError, ValueError, TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._publish_announcement(_END, b"")

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
            UnknownWorkerError: NATS has no subscriber for this id.
            TimeoutError: The worker has not replied within ``seconds``, or before `stop`.
            ValueError: The payload exceeds ``max_payload`` of the NATS server.
        """
        self.check_ready()
        return await self._request(worker, payload, seconds)

    async def _request(self, worker: str, payload: bytes, seconds: float) -> bytes:
        async with asyncio.timeout(seconds):
            await self._writable()
            stamp = self._signatures.stamp()
            future: asyncio.Future[tuple[bytes, bytes]]
            future = self._pending[stamp] = asyncio.get_running_loop().create_future()
            try:
                subject = f"{self.prefix}.worker.{worker}"
                await self._publish(subject, payload, f"{self.prefix}.reply.{self._worker}.{stamp}")
                headers, reply = await future
            finally:
                del self._pending[stamp]
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
        self.check_ready()
        return await self._announce(kind, payload)

    async def _announce(self, kind: str, payload: bytes) -> Coroutine[Any, Any, None]:
        echo = asyncio.get_running_loop().create_future()
        stamp = await self._publish_announcement(kind, payload, echo)
        return self._delivered(stamp, echo)

    async def _publish_announcement(self, kind: str, payload: bytes, echo: asyncio.Future[None] | None = None) -> str:
        """Send an announcement; return its stamp. Its echo is set when NATS has delivered it to this worker."""
        await self._writable()
        stamp = self._signatures.stamp()
        if echo is not None:
            self._echoes[stamp] = echo
        try:
            subject = f"{self.prefix}.all.{kind}.{self._worker}.{stamp}"
            await self._publish(subject, payload, signed=kind not in _UNSIGNED)
        except BaseException:
            self._echoes.pop(stamp, None)
            raise
        return stamp

    async def _delivered(self, stamp: str, echo: asyncio.Future[None]) -> None:
        client = self._client
        try:
            async with asyncio.timeout(_ECHO_SECONDS):
                await echo
        except TimeoutError:
            if client is self._client:
                self._lost(self._undelivered)
            raise ConnectionError("NATS does not deliver announcements to the workers") from None
        finally:
            self._echoes.pop(stamp, None)

    def check_ready(self) -> None:
        """Raise ConnectionError unless the channel is ready."""
        if self.ready:
            return
        if self._stopped:
            raise ConnectionError("this worker is stopping")
        if self._is_connected:
            raise ConnectionError("NATS does not let the workers reach each other")
        raise ConnectionError("NATS is disconnected")

    async def _writable(self) -> None:
        """Wait until the connection takes more data. A stamp is made after that, because it has the time."""
        # nats-py would wait for its buffer too. But that wait ignores cancellation and the end of the connection.
        while self._is_connected and self._client is not None and self._client.pending_data_size > _MAX_PENDING_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    async def _publish(self, subject: str, payload: bytes, reply: str = "", *, signed: bool = True) -> None:
        if self._client is None or not self._is_connected:
            raise ConnectionError("NATS is disconnected")
        message = self._signatures.sign(subject, reply, payload) if signed else payload
        try:
            await self._client.publish(subject, message, reply)
        except nats.errors.MaxPayloadError:
            raise ValueError(f"payload must fit max_payload of the NATS server, got {len(message)} bytes") from None
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
                subscription = ControlSubscription(f"{self.prefix}.{subject}", handler, self._answered)
                self._subscriptions[name] = subscription
                subscription.sid = self._connection.subscribe_control(subscription.subject, subscription)
        self._answered()

    def _unsubscribe(self, *subscriptions: ControlSubscription) -> None:
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
            await (await self._announce(_CHECK, b"" if self._checked else _HELLO))
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
        if not was_ready:
            self._known.connected(asyncio.get_running_loop().time())
        self._retry_seconds = _FIRST_RETRY_SECONDS
        self._schedule(_CHECK_INTERVAL_SECONDS)
        if self._unreachable_logged:
            self._unreachable_logged = False
            logger.info("The workers of this app can reach each other again")
        if not was_ready:
            await self._on_ready()

    @property
    def _undelivered(self) -> str:
        return f"NATS delivers no messages below {self.prefix!r} that this worker publishes"

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
                self.prefix,
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
        if waiting is None or waiting.done():
            return
        if headers.startswith(_NO_RESPONDERS):
            # The NATS server itself signs nothing.
            waiting.set_result((headers, b""))
            return
        # It needs no check of its time, because this worker waits for it.
        accepted = self._signatures.accept(subject, b"", payload, fresh=False)
        if accepted is not None:
            waiting.set_result((headers, accepted))

    def _receive_request(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        if not self._reply_subject.fullmatch(reply):
            return
        request = self._signatures.accept(subject, reply, payload)
        if request is None:
            return
        if self._requests >= self._max_requests:
            self._dropped["busy"] += 1
            logger.warning("Dropped a request of another worker, because %d are in progress", self._requests)
            return
        self._requests += 1
        self._spawn(self._reply(reply.decode(), request))

    async def _reply(self, subject: str, request: bytes) -> None:
        try:
            # An empty request is a check.
            reply = await self._on_request(request) if request else b""
            await self._writable()
            await self._publish(subject, reply)
        except (ConnectionError, ValueError) as error:
            logger.info("Cannot send a reply to another worker: %s", error)
        finally:
            self._requests -= 1

    def _receive_announcement(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        kind, _, rest = subject[len(self.prefix) + len(".all.") :].decode("ascii", "replace").partition(".")
        sender = self._sender.fullmatch(rest)
        if sender is None:
            return
        accepted = payload if kind in _UNSIGNED else self._signatures.accept(subject, b"", payload)
        if accepted is None:
            return
        worker, stamp = sender.groups()
        if worker == self._worker:
            echo = self._echoes.get(stamp)
            if echo is not None and not echo.done():
                echo.set_result(None)
        elif kind == _CHECK:
            self._known.heard(worker, asyncio.get_running_loop().time())
            if accepted == _HELLO:
                self._answer_hello()
        elif kind == _END:
            self._known.ended(worker)
        receive = self._on_announcement.get(kind)
        if receive is not None:
            receive(accepted)

    def _answer_hello(self) -> None:
        """Announce this worker soon; once, if several workers have just started."""
        if self._answering_hello is None and self.ready and not self._stopped:
            delay = random.uniform(0, _HELLO_SPREAD_SECONDS)
            self._answering_hello = asyncio.get_running_loop().call_later(delay, self._hello_due)

    def _hello_due(self) -> None:
        self._answering_hello = None
        if self.ready and not self._stopped:
            self._spawn(self._announce_presence())

    async def _announce_presence(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            await self._publish_announcement(_CHECK, b"")

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
