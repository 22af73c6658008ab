"""``NatsBridge``: the one place where all parts are put together, and tied to an app's life."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from sanic import Blueprint, Sanic
from sanic.exceptions import SanicException
from sanic_ext import openapi
from sanic_ext.extensions.base import Extension
from sanic_routing.exceptions import NotFound

from .auth.origins import OriginRule
from .auth.permissions import CONTROL_TOKEN, Permissions
from .cluster.control_channel import ControlChannel
from .cluster.permission_updates import Decisions
from .cluster.relay import Relay
from .errors import SettingsError
from .hub.hub import Hub
from .metrics.loop_lag import LoopLag
from .metrics.stats import Stats
from .nats.connection import NatsClient
from .nats.supervisor import NatsLink
from .neighbours import neighbours_ended
from .routes.client import add_client_routes, versioned_name
from .routes.commands import add_command_routes
from .routes.cors import CrossOrigin
from .routes.events import add_event_route
from .routes.health import add_health_routes
from .routes.log_redaction import QueryRedaction
from .routes.request_guard import Doorkeeper
from .routes.websocket import add_websocket_route
from .sessions.registry import Sessions, SessionsView
from .sessions.session import Session
from .settings import SettingKeywords, Settings

if TYPE_CHECKING:
    from .metrics.aggregator import MetricsBoard

__all__ = ["NatsBridge"]

logger = logging.getLogger("sanic.root.nats_bridge")

_LAST_SIGNALS_SECONDS: Final = 1.0
_BLUEPRINT: Final = "natsbridge"
_ONLY_WORKER: Final = "single"


class NatsBridge(Extension):  # type: ignore[no-untyped-call]  # sanic-ext's __init_subclass__
    """A Sanic extension through which browsers follow NATS subjects.

    Put one on an app, before anything uses ``app.ext``::

        app.extend(extensions=[NatsBridge(subscribe=["orders.>"])])

    The app's own code gets it by injection (a handler argument annotated ``NatsBridge``) or as
    ``app.ctx.nats_bridge``. The app is told of ``natsbridge.session.opened`` (context: ``session``),
    ``natsbridge.session.closed`` (``session`` and ``code``, a WebSocket close code) and
    ``natsbridge.link.connected`` by Sanic signals.

    Raises:
        SettingsError: A setting is unknown, or its value is wrong.
    """

    name = "natsbridge"

    def __init__(self, **settings: Unpack[SettingKeywords]) -> None:
        self._keywords = dict(settings)
        Settings.resolve(self._keywords, {})
        self._link: NatsLink | None = None
        self._lag = LoopLag()
        self._board: MetricsBoard | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def client(self) -> NatsClient | None:
        """The live nats-py client, for publishing and requests; ``None`` while there is none.

        Read it each time: it changes when the connection is made anew. Subscriptions made on it go
        with it; make them in a handler of the signal ``natsbridge.link.connected``.
        """
        return None if self._link is None else self._link.client

    @property
    def sessions(self) -> Collection[Session]:
        """The sessions of this worker, to be read only; none before the bridge is on an app."""
        return SessionsView(self._sessions) if self._link is not None else ()

    def stats(self) -> Stats:
        """How this worker fares; to be called in its event loop.

        Raises:
            RuntimeError: The bridge is on no app yet.
        """
        return self._on_app._sessions.stats(self._lag.seconds)

    @property
    def client_url(self) -> str:
        """Path of the browser client, another one with each version of it, which browsers may keep for ever.

        For pages that the app renders; ``client.js`` in the same place is always the current one.

        Raises:
            RuntimeError: The bridge is on no app yet.
        """
        return f"{self._on_app.settings.prefix}/{versioned_name()}"

    async def revoke(self, *, identity: str | None = None, session: str | None = None) -> int:
        """End the sessions of an identity, or one session, with close code 4403.

        ``session`` is the id that its client has, or `Session.key`. Returns how many there were on this
        worker. Every other worker of the app, on whichever machine, hears of it over NATS, at most once:
        one that is cut off from NATS does not. What must be certain uses `Permissions.expires`.

        Raises:
            ValueError: Neither is given, or both are.
            TypeError: What is given is no ``str``.
            RuntimeError: The bridge is on no app yet.
        """
        return await self._on_app._decisions.revoke(identity, session)

    async def repermit(
        self, permissions: Permissions, *, identity: str | None = None, session: str | None = None
    ) -> int:
        """Have the sessions of an identity, or one session, go by other permissions, wherever `revoke` would end them.

        Returns how many there were on this worker. Subscriptions that do not fit any more end. The
        permissions take the place of the old ones as a whole: without ``expires`` a session has no end any
        more. It keeps its identity alone.

        Raises:
            ValueError: Neither is given, or both are; or the permissions have another identity.
            TypeError: What is given is no ``str``, or the permissions are no `Permissions`.
            RuntimeError: The bridge is on no app yet.
        """
        return await self._on_app._decisions.repermit(permissions, identity, session)

    @property
    def _on_app(self) -> Self:
        """The bridge, for what it can do on an app only: its parts are made there."""
        if self._link is None:
            raise RuntimeError("This NatsBridge is on no app yet: call app.extend first")
        return self

    def startup(self, bootstrap: Any) -> None:
        """Called by sanic-ext, in the main process and in each worker: registers, opens nothing."""
        if self._link is not None:
            raise SettingsError("One NatsBridge serves one app; give each app its own")
        if _BLUEPRINT in self.app.blueprints:
            raise SettingsError("One app has one NatsBridge; this one has another already")
        self.settings = Settings.resolve(self._keywords, self.app.config)
        self._link = NatsLink(self.settings)
        self._hub = Hub(
            self._link,
            linger=self.settings.linger,
            headers=self.settings.headers,
            flush_interval=self.settings.flush_interval,
            max_patterns=self.settings.max_patterns,
            max_sub_rate=self.settings.max_sub_rate,
        )
        self._sessions = Sessions(self.settings, self._hub)
        self._sessions.on_opened = self._session_opened
        self._sessions.on_closed = self._session_closed
        self._link.on_connected = self._link_connected
        self._talk_to_others(self._link)
        self.app.ctx.nats_bridge = self
        cross_origin = self._add_routes()
        self._add_operators_routes(cross_origin)
        self.app.register_listener(self._start, "before_server_start")
        self.app.register_listener(self._stop, "before_server_stop")
        self.app.register_listener(self._stopped, "after_server_stop")
        closed = not self.settings.subscribe and self.settings.permissions is None
        if closed and "SANIC_WORKER_IDENTIFIER" not in os.environ:
            logger.warning("NatsBridge setting 'subscribe' is empty: no subject may be followed")

    def _talk_to_others(self, link: NatsLink) -> None:
        prefix = self.settings.control_prefix or f"{CONTROL_TOKEN}.{self.app.name}"
        self._control = ControlChannel(link, prefix)
        self._relay = Relay(self._sessions, self._control)
        self._decisions = Decisions(self._sessions, self._control)
        self._control.answer = self._relay.answer
        self._control.on_announced = self._decisions.hear
        self._control.on_ready = self._decisions.nats_returned

    def label(self) -> str:
        """What sanic-ext shows at the start."""
        return self.settings.prefix or "/"

    def _add_routes(self) -> CrossOrigin:
        blueprint = Blueprint(_BLUEPRINT, url_prefix=self.settings.prefix)
        rule = OriginRule(self.settings.allowed_origins)
        doorkeeper, cross_origin = Doorkeeper(rule), CrossOrigin(rule)
        doorkeeper.guard(blueprint)
        add_websocket_route(blueprint, self._sessions, doorkeeper)
        add_event_route(blueprint, self._sessions, cross_origin)
        add_command_routes(blueprint, self._relay, self._sessions)
        add_client_routes(blueprint)
        cross_origin.add_preflights(blueprint, "stream", "events", "subscribe", "unsubscribe")
        self.app.blueprint(blueprint)
        paths = _paths(blueprint)
        cross_origin.watch(self.app)
        cross_origin.cover(paths)
        self._redaction = QueryRedaction(paths)
        for route in blueprint.routes:
            # Sanic would wait for a body before its guard sees the request; a handler with `stream` reads it itself.
            route.extra.ignore_body = not route.extra.stream
            # OpenAPI knows a WebSocket by the wrapper that Sanic puts around its handler.
            if route.extra.websocket:
                openapi.exclude()(route.handler)
        return cross_origin

    def _add_operators_routes(self, cross_origin: CrossOrigin) -> None:
        # A blueprint of their own: its guard would turn away who asks from another origin, a dashboard for one.
        blueprint = Blueprint("natsbridge_operators", url_prefix=self.settings.prefix)
        add_health_routes(blueprint, self._sessions)
        if self.settings.metrics:
            # Imported here, for they need what is not everywhere: prometheus_client, and file locks (POSIX).
            from .metrics.aggregator import MetricsBoard
            from .metrics.worker_files import shared_folder
            from .routes.metrics import add_metrics_route

            worker = os.environ.get("SANIC_WORKER_NAME", _ONLY_WORKER)
            self._board = MetricsBoard(self.stats, self.app.name, worker, shared_folder())
            add_metrics_route(blueprint, self._board)
        self.app.blueprint(blueprint)
        cross_origin.cover(_paths(blueprint))
        for route in blueprint.routes:
            route.extra.ignore_body = True

    async def _start(self, app: Sanic[Any, Any]) -> None:
        self._redaction.install()
        with contextlib.suppress(SanicException):  # the app may do without sanic-ext's injection
            app.ext.dependency(self)
        assert self._link is not None
        self._sessions.start()
        self._control.start(self._sessions.worker)
        self._link.start(self._hub)
        self._lag.start()
        if self._board is not None:
            await self._board.start()

    async def _stop(self, app: Sanic[Any, Any]) -> None:
        assert self._link is not None
        try:
            self._sessions.close_all("The server is going away")
        finally:
            await self._control.stop()
            await self._link.stop()
            self._hub.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_LAST_SIGNALS_SECONDS)
            for task in late:
                task.cancel()
        await neighbours_ended(app)

    async def _stopped(self, app: Sanic[Any, Any]) -> None:
        if self._board is not None:
            await self._board.stop()
        self._lag.stop()
        self._redaction.remove()

    # Signals

    def _session_opened(self, session: Session) -> None:
        self._signal("natsbridge.session.opened", session=session)

    def _session_closed(self, session: Session, code: int) -> None:
        self._signal("natsbridge.session.closed", session=session, code=code)

    def _link_connected(self) -> None:
        self._control.connected()
        self._signal("natsbridge.link.connected")

    def _signal(self, event: str, **context: Any) -> None:
        """Dispatch a signal, where it has handlers, without waiting for them."""
        try:
            self.app.signal_router.get(event)
        except NotFound:
            return
        task = asyncio.create_task(self._dispatch(event, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dispatch(self, event: str, context: dict[str, Any]) -> None:
        try:
            await self.app.dispatch(event, context=context, inline=True)
        except Exception:
            # Sanic logs it only in debug mode.
            logger.exception("A handler of the signal %s has failed", event)


def _paths(blueprint: Blueprint) -> set[str]:
    return {f"/{route.path.strip('/')}" for route in blueprint.routes}
