import inspect
from typing import Any

import pytest

from sanic_nats_bridge.streams.hub import StreamHub, _Link
from sanic_nats_bridge.streams.interfaces import FeedLink, FeedListener


@pytest.mark.parametrize(("interface", "implementation"), [(FeedLink, _Link), (FeedListener, StreamHub)])
def test_implementation_signatures_match_interface(interface: Any, implementation: Any) -> None:
    methods = {name: member for name, member in vars(interface).items() if inspect.isfunction(member)}
    public = {name for name in methods if not name.startswith("_")}
    assert public
    for name in public:
        expected = list(inspect.signature(methods[name]).parameters)
        assert list(inspect.signature(getattr(implementation, name)).parameters) == expected, name
