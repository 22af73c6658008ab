import inspect
from typing import Any

import pytest

from sanic_nats_bridge.nats.interfaces import ControlListener, MessageListener
from sanic_nats_bridge.streams.feed import Feed
from sanic_nats_bridge.streams.hub import StreamHub


@pytest.mark.parametrize(("interface", "implementation"), [(MessageListener, StreamHub), (ControlListener, Feed)])
def test_implementation_signatures_match_interface(interface: Any, implementation: Any) -> None:
    methods = {name: member for name, member in vars(interface).items() if inspect.isfunction(member)}
    public = {name for name in methods if not name.startswith("_")}
    assert public >= {"confirmed", "refused"}
    for name in public:
        expected = list(inspect.signature(methods[name]).parameters)
        assert list(inspect.signature(getattr(implementation, name)).parameters) == expected, name
