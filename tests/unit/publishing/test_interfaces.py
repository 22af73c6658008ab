import inspect
import re
from typing import Any

import pytest

from sanic_nats_bridge.nats.connection import Connection
from sanic_nats_bridge.nats.supervisor import ConnectionSupervisor
from sanic_nats_bridge.publishing.interfaces import Outlet, PublishLink
from sanic_nats_bridge.publishing.publications import TimeLimits
from sanic_nats_bridge.sessions.deadlines import Deadlines
from tests.support.fakes import FakeOutlet, FakePublishLink


@pytest.mark.parametrize(
    ("interface", "implementation"),
    [
        (Outlet, Connection),
        (Outlet, FakeOutlet),
        (PublishLink, ConnectionSupervisor),
        (PublishLink, FakePublishLink),
        (TimeLimits, Deadlines),
    ],
)
def test_implementation_has_members_of_interface(interface: Any, implementation: Any) -> None:
    members = {name: member for name, member in vars(interface).items() if not name.startswith("_")}
    assert members
    source = inspect.getsource(implementation)
    for name, member in members.items():
        if inspect.isfunction(member):
            expected = list(inspect.signature(member).parameters)
            assert list(inspect.signature(getattr(implementation, name)).parameters) == expected, name
        else:
            assert hasattr(implementation, name) or re.search(rf"self\.{name}\b[^=\n]*= ", source), name
