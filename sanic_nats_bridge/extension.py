"""`NatsBridge`, the public API of the bridge."""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

from sanic import Request, Sanic
from sanic.exceptions import ServiceUnavailable
from sanic_ext.extensions.base import Extension

from . import errors
from .auth.permissions import Permissions
from .cluster.permission_updates import UpdateResult
from .errors import SettingsError
from .log_limits import limited_logger
from .metrics.stats import Stats
from .nats.connection import NatsClient
from .publishing import publications
from .publishing.app import Headers
from .publishing.publications import PublishFunctions
from .publishing.results import Acknowledgement, Answer
from .routes.client import versioned_name
from .routes.public_prefix import public_prefix
from .runtime import BridgeRuntime
from .sessions.registry import SessionsView
from .sessions.session import Session
from .settings import SettingKeywords, Settings

__all__ = ["NatsBridge", "NatsUnavailable", "Publication", "PublishDecorator"]

logger = limited_logger()

D = TypeVar("D")
R = TypeVar("R")


class Publication(publications.Publication[Session, D]):
    """A message that a client wants to publish, for a function of `NatsBridge.on_publish`.

    Attributes:
        session: The session of the client; ``None`` if it publishes by ``POST /publish``.
        identity: The `Permissions.identity` of the client.
        subject: The subject as NATS knows it, without aliases.
        data: The data, decoded into the schema. Without a schema it is the decoded JSON, or a ``str`` or ``bytes`` if
            the client has sent those, or ``None`` without data.
        headers: The headers that the client has set: name → values.
    """

    __slots__ = ()


class PublishDecorator(Protocol[D]):
    """A decorator for a function that checks publications. It returns the function unchanged."""

    def __call__(self, function: Callable[[Publication[D]], R], /) -> Callable[[Publication[D]], R]:
        """Register the function."""


class NatsUnavailable(ServiceUnavailable):
    """NATS is disconnected, or accepts no data. If a handler lets it pass, Sanic responds with status 503."""


class NatsBridge(Extension):  # type: ignore[no-untyped-call]  # sanic-ext's __init_subclass__ has no annotations
    """A Sanic extension that lets browsers subscribe to NATS subjects.

    With the app at hand, one line is enough:

        bridge = NatsBridge(app, subscribe=["orders.>"])

    A bridge made without an app is put on one by `init_app`, or by
    ``app.extend(extensions=[bridge])``.

    The app's handlers get the bridge by an argument annotated ``NatsBridge``, or as ``app.ctx.nats_bridge``.
    The bridge dispatches three Sanic signals: ``natsbridge.session.opened`` (context: ``session``),
    ``natsbridge.session.closed`` (``session`` and ``code``, a WebSocket close code) and
    ``natsbridge.nats.connected``.

    Args:
        app: The app to put the bridge on.
        settings: The options; `Settings` has their types and defaults.

    Raises:
        SettingsError: A setting is unknown, or its value is invalid, or the app has a bridge already.
    """

    name = "natsbridge"

    def __init__(self, app: Sanic[Any, Any] | None = None, **settings: Unpack[SettingKeywords]) -> None:
        self._keywords = dict(settings)
        Settings.resolve(self._keywords, {})
        self._runtime: BridgeRuntime | None = None
        self._publish_functions = PublishFunctions(Publication)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Sanic[Any, Any]) -> None:
        """Put the bridge on an app. Sets up sanic-ext with its defaults if ``app.extend`` wasn't called before.

        Raises:
            SettingsError: A setting in the app's configuration is invalid, or the bridge or the app is taken.
        """
        extensions = app.ext
        Extension.create(self, app, extensions.config)
        self.startup(extensions)
        extensions.extensions.append(self)

    @property
    def settings(self) -> Settings:
        """The options of the bridge, once it is on an app.

        Raises:
            RuntimeError: The bridge is on no app yet.
        """
        return self._on_app.settings

    @property
    def client(self) -> NatsClient | None:
        """The connected nats-py client, for what `publish` and `request` don't do; ``None`` while NATS is disconnected.

        Don't cache it: it is replaced on every reconnect. Subscriptions made on it end with it; make them in a
        handler of the signal ``natsbridge.nats.connected``.
        """
        return None if self._runtime is None else self._runtime.connection.client

    async def connected(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until NATS is connected, for instance in a listener for ``after_server_start``.

        Args:
            timeout: The largest number of seconds, or ``None`` for no limit.

        Raises:
            NatsUnavailable: NATS isn't connected in time, or the worker stops.
            RuntimeError: The worker hasn't started yet, or the bridge is on no app.
        """
        with _as_503():
            await self._on_app.publisher.connected(timeout)

    @overload
    async def publish(
        self,
        subject: str,
        data: Any = b"",
        *,
        headers: Headers | None = None,
        ack: Literal[False] = False,
        msg_id: str | None = None,
    ) -> None: ...

    @overload
    async def publish(
        self,
        subject: str,
        data: Any = b"",
        *,
        headers: Headers | None = None,
        ack: Literal[True],
        msg_id: str | None = None,
    ) -> Acknowledgement: ...

    @overload
    async def publish(
        self, subject: str, data: Any = b"", *, headers: Headers | None = None, ack: bool, msg_id: str | None = None
    ) -> Acknowledgement | None: ...

    async def publish(
        self,
        subject: str,
        data: Any = b"",
        *,
        headers: Headers | None = None,
        ack: bool = False,
        msg_id: str | None = None,
    ) -> Acknowledgement | None:
        """Publish a message.

        Nothing is buffered: without ``ack`` the message is handed to the live connection to NATS, and it is lost if
        that connection ends before NATS has read it.

        Args:
            subject: The subject as NATS knows it.
            data: ``bytes`` are sent as they are, a ``str`` in UTF-8, and anything else as JSON, by msgspec.
            headers: The headers: name → value or values.
            ack: Whether to wait until a JetStream stream has stored the message, for 4 seconds at most.
            msg_id: The id by which a stream recognizes the same message, if it is published again within its
                ``duplicate_window``.

        Returns:
            The acknowledgement of JetStream with ``ack``, otherwise ``None``.

        Raises:
            NatsUnavailable: NATS is disconnected, or accepts no data. Nothing was published.
            PublishUnstored: No stream has stored the message: JetStream has refused it, or no stream and no subscriber
                receives the subject.
            PublishUnknown: No acknowledgement has arrived, so the message may be stored.
            NatsRefused: The NATS user of the bridge may not publish on the subject. Only with ``ack``; without it the
                log has a line.
            ValueError: The subject or a header is invalid, or the message is too large for NATS.
            TypeError: The data has a type that msgspec doesn't encode.
            RuntimeError: The bridge is on no app yet.
        """
        with _as_503():
            return await self._on_app.app_publisher.publish(subject, data, headers, ack=ack, msg_id=msg_id)

    async def request(
        self,
        subject: str,
        data: Any = b"",
        *,
        headers: Headers | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Answer:
        """Send a request, and return the first answer.

        The answer comes to a subject below ``<control_prefix>.answer.``, so no ``_INBOX`` is needed.

        Args:
            subject: The subject as NATS knows it.
            data: The data, as for `publish`.
            headers: The headers: name → value or values.
            timeout: The largest number of seconds, or ``None`` for the setting ``request_timeout``.

        Raises:
            NatsUnavailable: NATS is disconnected, or accepts no data, or the connection has ended before the answer.
            NoResponders: Nothing subscribes to the subject.
            RequestTimedOut: No answer has arrived in time.
            RequestFailed: A service has answered with an error. Its ``service_code`` is the service's own.
            NatsRefused: The NATS user of the bridge may not publish on the subject, or not receive the answer.
            ValueError: The subject or a header is invalid, or the message is too large for NATS.
            TypeError: The data has a type that msgspec doesn't encode.
            RuntimeError: The bridge is on no app yet.
        """
        with _as_503():
            return await self._on_app.app_publisher.request(subject, data, headers, timeout)

    @overload
    def on_publish(self, pattern: str, schema: type[D]) -> PublishDecorator[D]: ...

    @overload
    def on_publish(self, pattern: str, schema: Any = None) -> PublishDecorator[Any]: ...

    def on_publish(self, pattern: str, schema: Any = None) -> PublishDecorator[Any]:
        """Register a function that checks what clients publish, as a decorator.

        The function gets a `Publication`. It returns nothing, or the data to publish in place of the client's. It may
        be async. A ``ValueError`` refuses the publication, and its message is for the client (``publish.invalid``).
        After another exception, or ``permissions_timeout``, the client gets ``internal``, and the reason is logged.

        The permissions are checked before. Of several functions whose pattern matches, only the one that was
        registered first is called.

        Args:
            pattern: The pattern for the subjects as NATS knows them.
            schema: A type that msgspec supports, such as a ``Struct``, into which the data is decoded. Data that
                doesn't fit is refused.

        Raises:
            ValueError: The pattern is invalid.
            TypeError: msgspec doesn't support the schema.
        """

        def register(function: Any) -> Any:
            self._publish_functions.add(pattern, schema, function)
            return function

        return register

    @property
    def sessions(self) -> Collection[Session]:
        """The sessions of this worker, read-only; empty while the bridge is on no app."""
        return () if self._runtime is None else SessionsView(self._runtime.sessions)

    @property
    def client_url(self) -> str:
        """The path of the browser client, for pages that the app renders.

        It changes with each version of the client, so browsers may cache it indefinitely. ``client.js`` in the
        same folder is always the current version.

        Behind a proxy that removes a prefix from the path, it begins with that prefix: with the setting
        ``public_prefix``, or with ``X-Forwarded-Prefix`` of the current request if Sanic trusts the proxy.

        Raises:
            RuntimeError: The bridge is on no app yet.
        """
        return f"{public_prefix(self.settings)}{self.settings.prefix}/{versioned_name()}"

    def allows_host(self, request: Request) -> bool:
        """Return whether a request was sent to a known host of the app, by the setting ``allowed_hosts``.

        The bridge checks its own routes itself. If other routes of the app serve data without a login, a request
        middleware of the app can check those.

        Raises:
            RuntimeError: The bridge is on no app yet.
        """
        return self._on_app.guard.allows_host(request)

    def stats(self) -> Stats:
        """Return the stats of this worker as of now. Must be called in its event loop.

        Raises:
            RuntimeError: The bridge is on no app yet.
        """
        return self._on_app.stats()

    async def position(self, *patterns: str) -> str:
        """Return the present position of the streams that hold these patterns, for a page that the app renders.

        Read it first, then load the state that the page shows, and let the page subscribe with ``after`` this position.
        It gets every message that was published after the call, and none that was acknowledged before it. The position
        has the form of the ``id`` of a message. Clients can see from it how many messages the streams have had.

        Args:
            patterns: The patterns as NATS knows them, without aliases.

        Raises:
            LookupError: No stream of the setting ``streams`` holds one of the patterns.
            ValueError: A pattern is invalid, or none is given, or they are on more than four streams.
            ConnectionError: NATS is disconnected, or doesn't answer.
            RuntimeError: The bridge is on no app yet.
        """
        return await self._on_app.position(patterns)

    async def revoke(self, *, identity: str | None = None, session: str | Session | None = None) -> UpdateResult:
        """End the sessions of an identity, or one session, with close code 4403.

        The other workers of the app, on any machine, are notified over NATS at most once each: a worker misses it if
        it is disconnected from NATS, or behind a link between NATS servers that is cut. Use `Permissions.expires` for
        what must be certain.

        Args:
            identity: The `Permissions.identity` of the sessions.
            session: One session: a `Session`, its `Session.key`, or its id as its client knows it.

        Returns:
            The number of sessions that ended on this worker, and whether this worker's NATS server has delivered it.

        Raises:
            ValueError: Neither argument is given, or both are.
            TypeError: The argument has another type.
            RuntimeError: The bridge is on no app yet.
        """
        return await self._on_app.permission_updates.revoke(identity, _key(session))

    async def update_permissions(
        self, permissions: Permissions, *, identity: str | None = None, session: str | Session | None = None
    ) -> UpdateResult:
        """Replace the permissions of the sessions of an identity, or of one session.

        Subscriptions that the new permissions don't allow end, and what they add to ``follow`` is followed at once. The
        permissions are replaced as a whole: without ``expires`` a session doesn't expire any more. A session keeps its
        identity. The other workers are notified as by `revoke`.

        Args:
            permissions: The new permissions.
            identity: The `Permissions.identity` of the sessions.
            session: One session: a `Session`, its `Session.key`, or its id as its client knows it.

        Returns:
            The number of sessions changed on this worker, and whether this worker's NATS server has delivered it.

        Raises:
            ValueError: Neither argument is given, or both are, or the permissions have another identity, or follow more
                than ``max_subscriptions`` patterns, or name subjects of the bridge.
            TypeError: An argument has another type.
            RuntimeError: The bridge is on no app yet.
        """
        return await self._on_app.permission_updates.update_permissions(permissions, identity, _key(session))

    @property
    def _on_app(self) -> BridgeRuntime:
        if self._runtime is None:
            raise RuntimeError("This NatsBridge is on no app yet: call init_app or app.extend first")
        return self._runtime

    def startup(self, bootstrap: Any) -> None:
        """Register the bridge on the app. sanic-ext calls it in the main process and in each worker."""
        if self._runtime is not None:
            raise SettingsError("One NatsBridge serves one app; give each app its own")
        self._runtime = BridgeRuntime(
            self.app, Settings.resolve(self._keywords, self.app.config), self, self._publish_functions
        )
        self.app.ctx.nats_bridge = self
        settings = self._runtime.settings
        closed = settings.permissions is None and not (settings.subscribe or settings.publish or settings.request)
        if closed and "SANIC_WORKER_IDENTIFIER" not in os.environ:
            logger.unlimited.warning("NatsBridge setting 'subscribe' is empty: no subject may be followed")

    def label(self) -> str:
        """Return the text that sanic-ext logs at the start."""
        return self.settings.prefix or "/"


def _key(session: str | Session | None) -> str | None:
    return session.key if isinstance(session, Session) else session


@contextlib.contextmanager
def _as_503() -> Iterator[None]:
    try:
        yield
    except errors.NatsUnavailable as error:
        raise NatsUnavailable(error.message) from None
