"""The publishes and requests of clients: allowed, checked by the app, sent, and answered."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from ..auth.permissions import Permissions
from ..auth.publish_policy import AuthorizedPublish, PublishPolicy
from ..concurrency import ConcurrencyLimit
from ..errors import BridgeError, PublishRateExceeded, PublishUnknown, RequestLimitExceeded, UnreachableSession
from ..protocol.messages import Outcome, Reply
from ..protocol.publish import PublishCommand
from ..protocol.publish_replies import answered_reply, published_reply, stored_reply
from ..settings import Settings
from ..token_bucket import ClientBuckets, SpacedBucket
from .in_progress import InProgress
from .publications import PublishFunctions, TimeLimits
from .publisher import ACKNOWLEDGE_SECONDS, Publisher
from .results import Acknowledgement, Answer

__all__ = ["Awaited", "ClientPublisher"]

_MAX_UNACKNOWLEDGED = 10_000
_MAX_UNACKNOWLEDGED_OF_SESSION = 256
"""More than ``publish_rate`` allows within `ACKNOWLEDGE_SECONDS`."""
_RETRY_SECONDS = 1.0
_MARGIN_SECONDS = 1.0
"""The time after which an answer is late, beyond the publisher's own. It matters only if the worker stops."""

Result: TypeAlias = Acknowledgement | Answer


class Awaited(NamedTuple):
    """A publish or a request that was sent, and whose answer is awaited."""

    future: asyncio.Future[Any]
    """The acknowledgement or the answer. It may be cancelled."""

    release: Callable[[], None]
    """Must be called once when the client has the reply, or gets none."""


class ClientPublisher:
    """The publishes and requests of the clients of one worker, with a session or without.

    Args:
        settings: The options of the bridge.
        publisher: The publisher of the worker.
        policy: The rules for each publish and request.
        functions: The app's own checks.
        deadlines: The timeouts of the worker.
    """

    def __init__(
        self,
        settings: Settings,
        publisher: Publisher,
        policy: PublishPolicy,
        functions: PublishFunctions,
        deadlines: TimeLimits,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._functions = functions
        self._deadlines = deadlines
        self._exposed = frozenset(settings.expose_headers)
        self.policy = policy
        self.published: Counter[str] = Counter(sent=0, stored=0, duplicate=0)
        """Publishes that have succeeded, by result."""
        self.answered = 0
        """Requests that were answered."""
        burst = settings.publish_burst
        self._buckets = ClientBuckets(settings.publish_rate, burst, partial(SpacedBucket, places=burst))
        """The budgets of clients without a session."""
        most = settings.max_requests
        self._requests = InProgress(
            most,
            settings.max_requests_per_worker,
            session_error=lambda: RequestLimitExceeded(
                f"At most {most} requests of a client in progress (max_requests)", retry_after=_RETRY_SECONDS
            ),
            error=lambda: RequestLimitExceeded(
                "This server has too many requests in progress (max_requests_per_worker); try again later",
                retry_after=_RETRY_SECONDS,
            ),
        )
        self._unacknowledged = InProgress(
            _MAX_UNACKNOWLEDGED_OF_SESSION,
            _MAX_UNACKNOWLEDGED,
            session_error=lambda: PublishRateExceeded(
                "Too many publishes await their acknowledgement", retry_after=_RETRY_SECONDS
            ),
            error=lambda: PublishRateExceeded(
                "Too many publishes await their acknowledgement", retry_after=_RETRY_SECONDS
            ),
        )
        self._checks = ConcurrencyLimit(
            settings.max_permissions_calls_per_client,
            settings.max_permissions_calls,
            client_error=lambda: PublishRateExceeded(
                "Too many publishes await the app's check", retry_after=_RETRY_SECONDS
            ),
            error=lambda: PublishRateExceeded("Too many publishes await the app's check", retry_after=_RETRY_SECONDS),
        )

    @property
    def in_progress(self) -> int:
        """The number of publishes and requests of clients whose answer is awaited, or not yet written."""
        return len(self._requests) + len(self._unacknowledged)

    @property
    def in_progress_by_action(self) -> Mapping[str, int]:
        """The numbers of these publishes, and of these requests."""
        return {"publish": len(self._unacknowledged), "request": len(self._requests)}

    def authorize(self, permissions: Permissions, command: PublishCommand) -> AuthorizedPublish:
        """Return what goes to NATS, as `PublishPolicy.authorize` does."""
        return self.policy.authorize(permissions, command)

    def needs_check(self, command: PublishCommand, allowed: AuthorizedPublish) -> bool:
        """Return whether a function of the app checks this publish. Requests aren't checked."""
        return command.action == "publish" and self._functions.concern(allowed.subject)

    async def check(
        self, command: PublishCommand, allowed: AuthorizedPublish, identity: str | None, session: Any, client: str
    ) -> bytes:
        """Return the payload, after the app's function has seen it.

        The caller must authorize the command again afterwards, because permissions may have changed meanwhile.

        Args:
            command: The command.
            allowed: What goes to NATS.
            identity: The identity of the client.
            session: The session of the client; ``None`` if it has none.
            client: The client, for which the checks in progress are counted.

        Raises:
            PublishInvalid: The function, or its schema, refuses the data.
            PublishRateExceeded: Too many checks are in progress.
            InternalError: The function has failed, or has taken too long.
            UnreachableSession: The worker stops.
        """
        headers = [(name, value) for name, values in allowed.headers.items() for value in values]
        with self._checks.counting(client):
            return await self._functions.check(
                allowed.subject,
                command.payload,
                command.encoding,
                headers,
                identity=identity,
                session=session,
                limits=self._deadlines,
                seconds=self._settings.permissions_timeout,
            )

    def send(
        self, command: PublishCommand, allowed: AuthorizedPublish, payload: bytes, session: str, client: str
    ) -> Reply | Awaited:
        """Send a publish or a request to NATS; return the reply, or what is awaited for it.

        Args:
            command: The command.
            allowed: What goes to NATS.
            payload: The payload, which the app may have replaced.
            session: The session, or the client without one, for which those in progress are counted.
            client: The client, for which they are counted too.

        Raises:
            BridgeError: Nothing was sent.
        """
        try:
            if command.action == "request":
                seconds = min(command.timeout or self._settings.request_timeout, self._settings.request_timeout)
                return self._counted(
                    self._requests,
                    session,
                    client,
                    lambda: self._publisher.request(allowed.subject, payload, allowed.block, seconds=seconds),
                )
            if command.ack:
                return self._counted(
                    self._unacknowledged,
                    session,
                    client,
                    lambda: self._publisher.store(allowed.subject, payload, allowed.block),
                )
            self._publisher.send(allowed.subject, payload, allowed.block)
        except BridgeError as error:
            raise _naming(command, error) from None
        self.published["sent"] += 1
        return published_reply(command)

    def outcome(self, command: PublishCommand, future: asyncio.Future[Any]) -> Outcome:
        """Return the outcome of a command whose future is done, and wasn't cancelled."""
        error = future.exception()
        if isinstance(error, BridgeError):
            return Outcome.rejected(_naming(command, error), command.action, command.id)
        result: Result = future.result()
        if isinstance(result, Acknowledgement):
            self.published["duplicate" if result.duplicate else "stored"] += 1
            return Outcome(stored_reply(command, result.stream, result.sequence, duplicate=result.duplicate))
        self.answered += 1
        return Outcome(answered_reply(command, result.data, result.header_block, self._exposed))

    async def execute(self, command: PublishCommand, permissions: Callable[[], Permissions], address: str) -> Outcome:
        """Execute the command of a client without a session.

        Args:
            command: The command.
            permissions: Returns the permissions of the client as of now.
            address: The address of the client.

        Raises:
            BridgeError: The command was rejected, or the worker stops.
        """
        current = permissions()
        client = f"address {address}" if current.identity is None else f"identity {current.identity}"
        self._count(client)
        payload, allowed = command.payload, self.authorize(current, command)
        while self.needs_check(command, allowed):
            payload = await self.check(command, allowed, current.identity, None, client)
            checked, current = allowed, permissions()
            allowed = self.authorize(current, command)
            if allowed == checked:
                break
        sent = self.send(command, allowed, payload, client, client)
        return Outcome(sent) if isinstance(sent, Reply) else await self._answered(command, sent)

    def _count(self, client: str) -> None:
        wait = self._buckets.spend(client, asyncio.get_running_loop().time())
        if wait:
            rate = self._settings.publish_rate
            message = f"At most {rate:g} publishes and requests per second (publish_rate); try again later"
            raise PublishRateExceeded(message, retry_after=wait)

    @staticmethod
    def _counted(limit: InProgress, session: str, client: str, send: Callable[[], asyncio.Future[Any]]) -> Awaited:
        limit.acquire(session, client)
        try:
            return Awaited(send(), lambda: limit.release(session, client))
        except BaseException:
            limit.release(session, client)
            raise

    async def _answered(self, command: PublishCommand, sent: Awaited) -> Outcome:
        seconds = max(ACKNOWLEDGE_SECONDS, self._settings.request_timeout) + _MARGIN_SECONDS
        try:
            async with self._deadlines.within(seconds):
                await asyncio.wait([sent.future])
        except TimeoutError:
            if command.ack:
                raise PublishUnknown(
                    "Not acknowledged, because the server is going away; it may have been stored", [command.subject]
                ) from None
            raise UnreachableSession("The server is going away") from None
        finally:
            sent.release()
            sent.future.cancel()
        return self.outcome(command, sent.future)


def _naming(command: PublishCommand, error: BridgeError) -> BridgeError:
    """Return an error that names the subject as the client does. The publisher knows only the real one."""
    if not error.subjects:
        error.subjects = (command.subject,)
    return error
