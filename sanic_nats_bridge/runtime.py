"""The composition root: builds the parts of a bridge, registers its routes, starts and stops them."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sanic import Blueprint, Sanic
from sanic.exceptions import SanicException
from sanic_ext import openapi
from sanic_routing.exceptions import NotFound

from .auth.hosts import HostPolicy
from .auth.origins import OriginPolicy
from .auth.permissions import CONTROL_TOKEN
from .cluster.control_channel import ControlChannel
from .cluster.known_workers import KnownWorkers
from .cluster.permission_updates import PermissionUpdates
from .cluster.questions import Questions
from .cluster.relay import Relay
from .cluster.settings_comparison import SettingsComparison
from .cluster.signatures import Signatures
from .errors import SettingsError
from .metrics.loop_lag import LoopLag
from .metrics.stats import Stats
from .nats.compatibility import check_nats_py
from .nats.supervisor import ConnectionSupervisor
from .protocol import subjects
from .publishing.app import AppPublisher
from .publishing.clients import ClientPublisher
from .publishing.publications import PublishFunctions
from .publishing.publisher import Publisher
from .routes.client import add_client_routes
from .routes.commands import add_command_routes
from .routes.cors import CrossOrigin
from .routes.events import add_event_route
from .routes.health import add_health_routes
from .routes.log_redaction import QueryRedaction
from .routes.publish import add_publish_routes
from .routes.request_guard import RequestGuard
from .routes.responses import mark_method_errors
from .routes.websocket import add_websocket_route
from .sessions.deadlines import Deadlines
from .sessions.registry import SessionRegistry
from .sessions.session import Session
from .settings import Settings
from .transports.compatibility import check_sanic

if TYPE_CHECKING:
    from .metrics.aggregator import MetricsAggregator

from .log_limits import limited_logger

__all__ = ["BridgeRuntime"]

logger = limited_logger()

_BLUEPRINT = "natsbridge"
_SIGNALS_SECONDS = 1.0
_ONLY_WORKER = "single"
_NEIGHBOUR_TASK = "RunServer"


class BridgeRuntime:
    """The parts of one bridge on one app, in one process.

    Args:
        app: The app, on which nothing of a bridge was registered yet.
        settings: The options of the bridge.
        injected: The object that handlers of the app get for an argument annotated with its type.
        publish_functions: The app's own checks of what clients publish.

    Raises:
        SettingsError: The app has another bridge already.
        IncompatiblePackageError: The installed version of nats-py, Sanic or `websockets` doesn't work.
    """

    def __init__(
        self, app: Sanic[Any, Any], settings: Settings, injected: object, publish_functions: PublishFunctions
    ) -> None:
        if _BLUEPRINT in app.blueprints:
            raise SettingsError("One app has one NatsBridge; this one has another already")
        check_nats_py()
        check_sanic()
        self.settings = settings
        self._app = app
        self._injected = injected
        self._open_server_logged = False
        self._lag = LoopLag()
        self._signal_tasks: set[asyncio.Task[None]] = set()
        self.connection = ConnectionSupervisor(
            settings,
            # Lambdas, because the others need the connection.
            on_established=lambda: self._established(),
            on_connected=lambda: self._signal("natsbridge.nats.connected"),
            on_closed=lambda: self._closed(),
            on_denied=lambda subject: self._denied(subject),
        )
        self.publisher = Publisher(self.connection)
        self.app_publisher = AppPublisher(self.publisher, settings.request_timeout)
        control_prefix = settings.control_prefix or f"{CONTROL_TOKEN}.{app.name}"
        deadlines = Deadlines()
        self.sessions = SessionRegistry(
            settings,
            self.connection,
            on_opened=self._session_opened,
            on_closed=self._session_closed,
            streams_prefix=f"{control_prefix}.streams.{secrets.token_hex(8)}",
            deadlines=deadlines,
            publishing=ClientPublisher(
                settings, self.publisher, settings.publish_policy(control_prefix), publish_functions, deadlines
            ),
        )
        counters, known = self.sessions.counters, KnownWorkers()
        self.control = ControlChannel(
            self.connection,
            control_prefix,
            # Lambdas, because the relay and the permission updates need the channel.
            on_request=lambda request: self.relay.answer(request),
            on_announcement={
                "permissions": lambda announcement: self.permission_updates.receive(announcement),
                "settings": lambda announcement: self.settings_comparison.receive(announcement),
            },
            on_ready=self._control_ready,
            signatures=Signatures(
                settings.control_key or (), counters.control_dropped, stall=lambda: self._lag.seconds
            ),
            known=known,
            max_requests=settings.max_relays,
            dropped=counters.control_dropped,
        )
        self.relay = Relay(self.sessions, self.control.request, Questions(self.control, known))
        self.permission_updates = PermissionUpdates(self.sessions, partial(self.control.announce, "permissions"))
        self.settings_comparison = SettingsComparison(
            settings,
            app=app.name,
            prefix=control_prefix,
            announce=partial(self.control.announce, "settings"),
        )
        self._origins = OriginPolicy(settings.allowed_origins)
        self._cross_origin = CrossOrigin(self._origins)
        self.guard = RequestGuard(self._origins, HostPolicy(settings.allowed_hosts), self.sessions)
        self._aggregator: MetricsAggregator | None = None
        paths = self._add_client_facing_routes() | self._add_operators_routes()
        self._redaction = QueryRedaction(settings.prefix, paths)
        app.register_listener(self._start, "before_server_start")
        app.register_listener(self._stop, "before_server_stop")
        app.register_listener(self._stopped, "after_server_stop")

    def stats(self) -> Stats:
        """Return the stats of this worker as of now. Must be called in its event loop."""
        return self.sessions.stats(self._lag.seconds, self.control.state)

    async def position(self, patterns: Sequence[str]) -> str:
        """Return the present position of the streams that hold these patterns, as `NatsBridge.position` does."""
        if not patterns:
            raise ValueError("position must be called with at least one pattern")
        for pattern in patterns:
            if not isinstance(pattern, str) or not subjects.is_valid(pattern):
                raise ValueError(f"patterns must be valid, got {pattern!r}")
        if self.sessions.streams is None:
            raise LookupError("no stream has history: the setting 'streams' is empty")
        return await self.sessions.streams.position(patterns)

    # Routes

    def _add_client_facing_routes(self) -> set[str]:
        """Register the routes for browsers; return their paths."""
        blueprint = Blueprint(_BLUEPRINT, url_prefix=self.settings.prefix)
        guard = self.guard
        guard.install(blueprint)
        add_websocket_route(blueprint, self.sessions, guard)
        add_event_route(blueprint, self.sessions, self._cross_origin)
        add_command_routes(blueprint, self.relay, self.sessions)
        add_publish_routes(blueprint, self.sessions)
        self._cross_origin.add_preflights(
            blueprint, "stream", "events", "subscribe", "unsubscribe", "publish", "request"
        )
        # Not rejected: browsers send an Origin with modules, and behind a proxy that changes the Host header even the
        # app's own pages would get none. A page of a foreign origin can't run them without the CORS headers.
        modules = Blueprint(f"{_BLUEPRINT}_modules", url_prefix=self.settings.prefix)
        guard.install_log(modules)
        add_client_routes(self._app, modules)
        self._app.blueprint(blueprint)
        self._app.blueprint(modules)
        paths = _paths(blueprint) | _paths(modules)
        self._cross_origin.install(self._app)
        mark_method_errors(self._app, self._cross_origin.covers)
        self._cross_origin.add_paths(paths)
        for route in (*blueprint.routes, *modules.routes):
            # Sanic would wait for a body before its guard sees the request; a handler with `stream` reads it itself.
            route.extra.ignore_body = not route.extra.stream
            # OpenAPI knows a WebSocket by the wrapper that Sanic puts around its handler.
            if route.extra.websocket:
                openapi.exclude()(route.handler)
        return paths

    def _add_operators_routes(self) -> set[str]:
        """Register health and metrics; return their paths. No origin check, because a probe has no origin."""
        blueprint = Blueprint(f"{_BLUEPRINT}_operators", url_prefix=self.settings.prefix)
        self.guard.install_for_operators(blueprint)
        add_health_routes(blueprint, self.sessions, lambda: self.control.state)
        if self.settings.metrics:
            # Imported here, because they need an optional package (prometheus_client) and POSIX file locks.
            from .metrics.aggregator import MetricsAggregator
            from .metrics.worker_files import worker_folder
            from .routes.metrics import add_metrics_route

            worker = os.environ.get("SANIC_WORKER_NAME", _ONLY_WORKER)
            try:
                folder = worker_folder()
            except OSError as error:
                folder = None
                if "SANIC_WORKER_IDENTIFIER" not in os.environ:
                    logger.unlimited.warning(
                        "The workers cannot share their metrics. /metrics of a server with several workers has those "
                        "of one of them at a time: %s",
                        error,
                    )
            self._aggregator = MetricsAggregator(self.stats, self._app.name, worker, folder)
            add_metrics_route(blueprint, self._aggregator)
        self._app.blueprint(blueprint)
        paths = _paths(blueprint)
        self._cross_origin.add_paths(paths)
        for route in blueprint.routes:
            route.extra.ignore_body = True
        return paths

    # The connection to NATS

    def _established(self) -> None:
        self.control.established()
        self.publisher.established()

    def _closed(self) -> None:
        self.control.closed()
        self.publisher.closed()

    def _denied(self, subject: str) -> bool:
        """Note that NATS hasn't accepted a message; return false, so that it is logged."""
        self.publisher.denied(subject)
        return False

    # Start and stop

    async def _control_ready(self) -> None:
        self._warn_of_open_server()
        await self.settings_comparison.announce()
        await self.permission_updates.nats_connected()

    def _warn_of_open_server(self) -> None:
        """Log once if any program that reaches NATS may be able to command the sessions of this app.

        The NATS permissions of other users can't be seen from here. That NATS requires no login can.
        """
        address = self.connection.open_server
        if address is None or self.settings.control_key or self._open_server_logged:
            return
        self._open_server_logged = True
        logger.warning(
            "NATS at %s requires no login. Any program that reaches it can command and revoke sessions, unless NATS "
            "denies it '%s.>'. Allow these subjects to the bridge's NATS user only, or set 'control_key'",
            address,
            self.control.prefix,
        )

    async def _start(self, app: Sanic[Any, Any]) -> None:
        self._redaction.install()
        with contextlib.suppress(SanicException):  # the app may have disabled sanic-ext's injection
            app.ext.dependency(self._injected)
        # A developer who saves a file waits for the page to reconnect.
        developing = app.debug or app.auto_reload
        self.sessions.start(reconnect_spread=0 if developing else self.settings.reconnect_spread)
        self.control.start(self.sessions.worker)
        self.publisher.start(f"{self.control.prefix}.answer.{self.sessions.worker}")
        self.connection.start(self.sessions.hub)
        if self.sessions.streams is not None:
            self.sessions.streams.start()
        self._lag.start()
        if self._aggregator is not None:
            await self._aggregator.start()

    async def _stop(self, app: Sanic[Any, Any]) -> None:
        try:
            self.sessions.close_all("The server is going away")
            await self.sessions.closed()
        finally:
            await self.control.stop_requests()
        if self._signal_tasks:
            _, late = await asyncio.wait(self._signal_tasks, timeout=_SIGNALS_SECONDS)
            for task in late:
                task.cancel()
        await _neighbours_ended(app)

    async def _stopped(self, app: Sanic[Any, Any]) -> None:
        # Now, so that every listener of the app for "before_server_stop" can use the client and revoke sessions.
        if self.sessions.streams is not None:
            await self.sessions.streams.stop()
        await self.control.stop()
        self.publisher.stop()
        await self.connection.stop()
        self.sessions.hub.close()
        if self._aggregator is not None:
            await self._aggregator.stop()
        self._lag.stop()
        self._redaction.remove()

    # Signals

    def _session_opened(self, session: Session) -> None:
        self._signal("natsbridge.session.opened", session=session)

    def _session_closed(self, session: Session, code: int) -> None:
        self._signal("natsbridge.session.closed", session=session, code=code)

    def _signal(self, event: str, **context: Any) -> None:
        """Dispatch a signal if it has handlers, without waiting for them."""
        try:
            self._app.signal_router.get(event)
        except NotFound:
            return
        task = asyncio.create_task(self._dispatch(event, context))
        self._signal_tasks.add(task)
        task.add_done_callback(self._signal_tasks.discard)

    async def _dispatch(self, event: str, context: dict[str, Any]) -> None:
        try:
            await self._app.dispatch(event, context=context, inline=True)
        except Exception:
            # Sanic logs it only in debug mode.
            logger.exception("A handler of the signal %s has failed", event)


def _paths(blueprint: Blueprint) -> set[str]:
    """Return the paths of the routes, without those that have parameters."""
    return {f"/{route.path.strip('/')}" for route in blueprint.routes if not route.defined_params}


async def _neighbours_ended(app: Sanic[Any, Any]) -> None:
    """Wait until the other apps of the process have ended, for Sanic's ``GRACEFUL_SHUTDOWN_TIMEOUT`` at most.

    Sanic's own server runs them as tasks of the first app. When that app ends first, Sanic 25.12 counts down to
    zero in steps of 0.1 without running the event loop. It never ends if the steps miss zero.
    """
    others = [task for task in app.tasks if task.get_name() == _NEIGHBOUR_TASK]
    if others:
        await asyncio.wait(others, timeout=app.config.GRACEFUL_SHUTDOWN_TIMEOUT)
