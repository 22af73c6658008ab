import inspect
from typing import Any

import pytest

from sanic_nats_bridge.hub.interfaces import Link, Subscriber
from sanic_nats_bridge.nats.supervisor import ConnectionSupervisor
from sanic_nats_bridge.sessions.session import Session
from tests.support.fakes import FakeLink, FakeSubscriber


@pytest.mark.parametrize(
    ("interface", "implementation"),
    [(Link, ConnectionSupervisor), (Link, FakeLink), (Subscriber, Session), (Subscriber, FakeSubscriber)],
)
def test_implementation_signatures_match_interface(interface: Any, implementation: Any) -> None:
    methods = {name: member for name, member in vars(interface).items() if inspect.isfunction(member)}
    public = {name for name in methods if not name.startswith("_")}
    assert public
    for name in public - {"write"}:  # a session's `write` is that of its transport, set for each session
        expected = list(inspect.signature(methods[name]).parameters)
        assert list(inspect.signature(getattr(implementation, name)).parameters) == expected, name
