import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from sanic import HTTPResponse, Request, Sanic
from sanic.response import json

from sanic_nats_bridge import NatsBridge, Permissions, Session, SettingsError, UpdateResult
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import (
    SERVERS,
    WAIT_SECONDS,
    Bridge,
    Publisher,
    ServerName,
    flush,
    running,
    served,
    until,
)

App = Sanic[Any, Any]


def app_with(bridge: NatsBridge, **config: Any) -> App:
    """Return an app that is extended with the bridge, with ``NATS_BRIDGE_…`` in its configuration."""
    app: App = Sanic(f"test_{uuid4().hex}", configure_logging=False)
    app.config.update({f"NATS_BRIDGE_{name.upper()}": value for name, value in config.items()})
    bridge.init_app(app)
    return app


# In the app's hands


async def test_bridge_is_available_by_injection_and_in_app_context(shared_nats: NatsServer) -> None:
    def prepare(app: App) -> None:
        @app.get("/same")
        async def same(request: Request, bridge: NatsBridge) -> HTTPResponse:
            return json([bridge is request.app.ctx.nats_bridge, bridge.client is not None])

    async with running(servers=shared_nats.url, prepare=prepare) as bridge:
        assert bridge.app.ctx.nats_bridge is bridge.extension
        async with bridge.http.get(f"http://127.0.0.1:{bridge.port}/same") as response:
            assert await response.json() == [True, True]


async def test_client_is_none_while_disconnected_and_new_after_reconnect(
    nats_server: NatsServer,
) -> None:
    nats_server.stop()
    assert NatsBridge().client is None
    async with running(servers=nats_server.url, connected=False) as bridge:
        extension = bridge.extension
        assert extension.client is None
        nats_server.start()
        await until(lambda: extension.client is not None)
        first = extension.client
        nats_server.stop()
        await until(lambda: extension.client is None)
        nats_server.start()
        await until(lambda: extension.client is not None)
        assert extension.client is not first
    assert extension.client is None


async def test_bridge_without_app_raises_runtime_error() -> None:
    bridge = NatsBridge(subscribe=["a"])
    assert (bridge.client, len(bridge.sessions)) == (None, 0)
    for early in (bridge.stats, lambda: bridge.client_url):
        with pytest.raises(RuntimeError, match="on no app yet"):
            early()
    for decided in (bridge.revoke(identity="ada"), bridge.update_permissions(Permissions(["a"]), identity="ada")):
        with pytest.raises(RuntimeError, match="on no app yet"):
            await decided


async def test_app_publishes_through_client(bridge: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with bridge.websocket() as websocket:
        await websocket.follow(subject)
        assert bridge.extension.client is not None
        await bridge.extension.client.publish(subject, b"1")
        assert await websocket.data(1) == [1]


# Settings


async def test_app_config_supplies_settings_and_keywords_override_it(
    shared_nats: NatsServer,
) -> None:
    extension = NatsBridge(prefix="/keyword")
    app = app_with(extension, servers=shared_nats.url, prefix="/config", heartbeat=3, subscribe="a.> b")
    settings = extension.settings
    assert (settings.prefix, settings.heartbeat, settings.subscribe) == ("/keyword", 3.0, ("a.>", "b"))
    async with served(app) as port:
        await until(lambda: extension._on_app.sessions.hub.connected)
        async with Bridge(app, extension, port, "/keyword").websocket() as websocket:
            assert websocket.welcome["heartbeat"] == 3
            await websocket.follow("b")


@pytest.mark.parametrize(
    "settings", [{"nonsense": 1}, {"heartbeat": -1}, {"servers": "http://x"}], ids=["unknown", "value", "server"]
)
def test_error_for_invalid_setting_names_it(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(SettingsError, match=name):
        NatsBridge(**settings)
    with pytest.raises(SettingsError, match=name):
        app_with(NatsBridge(), **settings)


@pytest.mark.parametrize(
    ("subscribe", "worker", "warnings"),
    [([], False, 1), ([], True, 0), (["a"], False, 0)],
    ids=["main process", "worker process", "not empty"],
)
def test_bridge_without_allowed_subjects_logs_one_warning(
    subscribe: list[str],
    worker: bool,
    warnings: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SANIC_WORKER_IDENTIFIER", raising=False)
    if worker:
        monkeypatch.setenv("SANIC_WORKER_IDENTIFIER", "Srv 0")
    app_with(NatsBridge(subscribe=subscribe))
    assert caplog.text.count("no subject may be followed") == warnings


def test_one_bridge_on_two_apps_is_rejected() -> None:
    extension = NatsBridge(subscribe=["a"])
    app_with(extension)
    with pytest.raises(SettingsError, match="one app"):
        app_with(extension)


def test_two_bridges_on_one_app_are_rejected() -> None:
    app: App = Sanic(f"test_{uuid4().hex}", configure_logging=False)
    extensions: list[Any] = [NatsBridge(subscribe=["a"]), NatsBridge(subscribe=["b"], prefix="/other")]
    with pytest.raises(SettingsError, match="One app has one NatsBridge"):
        app.extend(extensions=extensions)


async def test_two_apps_work_with_separate_bridges(shared_nats: NatsServer, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    options: dict[str, Any] = {"servers": shared_nats.url, "subscribe": [">"]}
    async with running(**options) as first, running(**options, prefix="/other") as second:
        assert first.extension is not second.extension
        async with first.websocket() as one, second.websocket() as other:
            await one.follow(subject)
            await other.follow(subject)
            await publisher.send(subject, b"1")
            assert await one.data(1) == await other.data(1) == [1]


# Signals


def record_signals(signals: list[tuple[Any, ...]]) -> Callable[[App], None]:
    def prepare(app: App) -> None:
        @app.signal("natsbridge.session.opened")
        async def opened(session: Session) -> None:
            signals.append(("opened", session.key))

        @app.signal("natsbridge.session.closed")
        async def closed(session: Session, code: int) -> None:
            signals.append(("closed", session.key, code))

        @app.signal("natsbridge.nats.connected")
        async def connected() -> None:
            signals.append(("connected",))

    return prepare


async def test_signals_report_sessions_and_nats_connections(nats_server: NatsServer) -> None:
    signals: list[tuple[Any, ...]] = []
    async with running(servers=nats_server.url, prepare=record_signals(signals)) as bridge:
        await until(lambda: signals == [("connected",)])
        async with bridge.websocket() as websocket:
            await until(lambda: signals[1:] == [("opened", websocket.key)])
            await websocket.connection.close(1000)
            await until(lambda: signals[2:] == [("closed", websocket.key, 1000)])
        async with bridge.events() as events:
            await until(lambda: signals[3:] == [("opened", events.key)])
        await until(lambda: signals[4:] == [("closed", events.key, 1006)])
        nats_server.restart()
        await until(lambda: signals[5:] == [("connected",)])
        async with bridge.websocket() as websocket:
            websocket.connection.transport.abort()
            await until(lambda: signals[7:] == [("closed", websocket.key, 1006)])


async def test_connected_signal_restores_app_subscription_after_reconnect(nats_server: NatsServer) -> None:
    received: list[bytes] = []
    restarts: list[int] = []

    def prepare(app: App) -> None:
        @app.signal("natsbridge.nats.connected")
        async def connected() -> None:
            async def take(message: Any) -> None:
                received.append(message.data)

            await app.ctx.nats_bridge.client.subscribe("app", cb=take)

    async with running(servers=nats_server.url, prepare=prepare):
        for number in range(2):
            restarts.append(number)
            await until(lambda: nats_server.subscriptions() == ["app"])
            async with Publisher.connected(nats_server) as publisher:
                await publisher.send("app", b"%d" % number)
            await until(lambda: len(received) == len(restarts))
            nats_server.restart()
    assert received == [b"0", b"1"]


@pytest.mark.parametrize("event", ["session.opened", "session.closed", "nats.connected"])
async def test_failing_signal_handler_is_logged_and_affects_no_session(
    nats_server: NatsServer, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    def prepare(app: App) -> None:
        @app.signal(f"natsbridge.{event}")
        async def fail(**_: Any) -> None:
            raise RuntimeError("the app's own fault")

    async with running(servers=nats_server.url, subscribe=["a"], prepare=prepare) as bridge:
        async with bridge.websocket():
            pass
        async with bridge.websocket() as websocket:
            await websocket.follow("a")
            async with Publisher.connected(nats_server) as publisher:
                await publisher.send("a", b"1")
            assert await websocket.data(1) == [1]
        await until(lambda: f"natsbridge.{event}" in caplog.text)
    assert "the app's own fault" in caplog.text


async def test_hanging_signal_handler_blocks_no_session_and_ends_with_app(shared_nats: NatsServer) -> None:
    started: list[str] = []

    def prepare(app: App) -> None:
        @app.signal("natsbridge.session.opened")
        async def hang(session: Session) -> None:
            started.append(session.key)
            await asyncio.Event().wait()

    before = asyncio.all_tasks()
    async with running(servers=shared_nats.url, subscribe=[">"], prepare=prepare) as bridge:
        for _ in range(2):
            async with bridge.websocket() as websocket:
                await until(lambda: websocket.key in started)
                assert (await websocket.ask({"action": "ping"}))["message"] == "pong"
    assert len(started) == 2
    await until(lambda: asyncio.all_tasks() == before)


# The end


async def test_stopped_app_leaves_no_session_connection_or_task(nats_server: NatsServer) -> None:
    before = asyncio.all_tasks()
    async with running(servers=nats_server.url, subscribe=[">"]) as bridge:
        sessions = bridge.runtime.sessions
        async with bridge.websocket() as websocket, bridge.events("a") as events:
            await websocket.follow("a", "b.>")
            assert len(sessions) == 2
            await bridge.runtime._stop(bridge.app)
            closes = await websocket.frame(), await events.frame()
            assert [(close["type"], close["code"], close["reconnect"]) for close in closes] == [
                ("close", 1001, True)
            ] * 2
            await websocket.connection.wait_closed()
            assert websocket.connection.close_code == 1001
            assert bridge.extension.client is not None
            await bridge.runtime._stopped(bridge.app)
            assert bridge.extension.client is None
        assert len(sessions) == 0
    await until(lambda: nats_server.monitor("/connz")["num_connections"] == 0)
    await until(lambda: asyncio.all_tasks() == before)


@pytest.mark.parametrize("server", SERVERS)
async def test_client_and_revoke_work_in_every_stop_listener_of_the_app(
    shared_nats: NatsServer, publisher: Publisher, server: ServerName
) -> None:
    subject = publisher.subject("goodbye")
    app: App = Sanic(f"test_{uuid4().hex}", configure_logging=False)
    revoked: list[UpdateResult] = []

    def listener(name: str) -> Any:
        async def say_goodbye(app: App) -> None:
            assert bridge.client is not None
            await bridge.client.publish(subject, name.encode())
            revoked.append(await bridge.revoke(identity=name))

        return say_goodbye

    app.before_server_stop(listener("before the bridge"))
    bridge = NatsBridge(app, servers=shared_nats.url)
    app.before_server_stop(listener("after the bridge"))
    app.before_server_stop(listener("first"), priority=1000)
    app.before_server_stop(listener("last"), priority=-1000)
    received = await publisher.client.subscribe(subject)
    await flush(publisher.client)
    async with served(app, server):
        control = bridge._on_app.control
        await until(lambda: control.ready and not control._tasks)
    messages = [(await received.next_msg(timeout=WAIT_SECONDS)).data.decode() for _ in range(4)]
    assert sorted(messages) == ["after the bridge", "before the bridge", "first", "last"]
    assert revoked == [UpdateResult(sessions=0, announced=True)] * 4


async def test_app_starts_with_clean_state_when_served_again(nats_server: NatsServer) -> None:
    app: App = Sanic(f"test_{uuid4().hex}", configure_logging=False)
    bridge = NatsBridge(servers=nats_server.url, subscribe=["a"], unsubscribe_delay=60)
    extensions: list[Any] = [bridge]
    app.extend(extensions=extensions)
    for _ in range(2):
        async with served(app) as port, Publisher.connected(nats_server) as publisher:
            await until(lambda: bridge._on_app.sessions.hub.connected)
            async with Bridge(app, bridge, port).websocket() as websocket:
                assert websocket.welcome["nats"] == "connected"
                await websocket.follow("a")
                assert nats_server.subscriptions() == ["a"]
                await publisher.send("a", b"1")
                assert await websocket.data(1) == [1]
        assert bridge._on_app.sessions.hub.patterns == ()
        assert not bridge._on_app.sessions.hub.connected


async def test_bridge_works_without_built_in_extensions(nats_server: NatsServer) -> None:
    app: App = Sanic(f"test_{uuid4().hex}", configure_logging=False)
    bridge = NatsBridge(servers=nats_server.url, subscribe=["a"])
    extensions: list[Any] = [bridge]
    app.extend(extensions=extensions, built_in_extensions=False)
    async with served(app) as port:
        await until(lambda: bridge._on_app.sessions.hub.connected)
        async with Bridge(app, bridge, port).websocket() as websocket:
            await websocket.follow("a")
