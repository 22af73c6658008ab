import inspect
from typing import Any

import pytest

from sanic_nats_bridge.cluster.control_subscription import ControlSubscription
from sanic_nats_bridge.hub.hub import Hub
from sanic_nats_bridge.nats.interfaces import ControlListener, MessageListener
from sanic_nats_bridge.publishing.answers import _Question
from sanic_nats_bridge.streams.inbox import Inbox


@pytest.mark.parametrize(
    ("interface", "implementation"),
    [
        (MessageListener, Hub),
        (ControlListener, ControlSubscription),
        (ControlListener, Inbox),
        (ControlListener, _Question),
    ],
)
def test_implementation_signatures_match_interface(interface: Any, implementation: Any) -> None:
    methods = {name: member for name, member in vars(interface).items() if inspect.isfunction(member)}
    public = {name for name in methods if not name.startswith("_")}
    assert public
    for name in public - {"on_message", "room"}:  # of some of them they are set for each instance
        # Their names differ, because to a connection a sink may be anything.
        expected = len(inspect.signature(methods[name]).parameters)
        assert len(inspect.signature(getattr(implementation, name)).parameters) == expected, name
