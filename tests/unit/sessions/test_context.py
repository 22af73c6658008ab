"""The parts that sessions share."""

from sanic_nats_bridge.sessions.registry import SessionRegistry
from sanic_nats_bridge.settings import Settings
from tests.support.fakes import FakeLink


def registry(**options: object) -> SessionRegistry:
    settings = Settings.resolve(options, {})
    return SessionRegistry(settings, FakeLink(), on_opened=lambda session: None, on_closed=lambda session, code: None)


def test_streams_exist_only_if_some_are_configured() -> None:
    assert registry()._context.streams is None
    with_streams = registry(streams={"ORDERS": None})
    assert with_streams._context.streams is with_streams.streams
    assert with_streams.streams is not None
    assert [feed.name for feed in with_streams.streams.feeds] == ["ORDERS"]
