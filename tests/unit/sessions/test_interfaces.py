import inspect

from sanic_nats_bridge.sessions.interfaces import HistoryOwner
from sanic_nats_bridge.sessions.session import Session


def test_session_has_the_members_that_its_history_needs() -> None:
    members = {name: member for name, member in vars(HistoryOwner).items() if not name.startswith("_")}
    assert {"command_lock", "follow_live", "patterns_ended"} <= members.keys()
    for name, member in members.items():
        own = inspect.getattr_static(Session, name)
        assert type(own) is type(member), name
        if inspect.isfunction(member):
            # It may have more parameters, with defaults.
            inspect.signature(own).bind(*inspect.signature(member).parameters)
