"""The check of the past that a command asks for."""

import pytest

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.errors import HistoryForbidden, HistoryUnavailable
from sanic_nats_bridge.protocol.messages import Command
from sanic_nats_bridge.protocol.start import From
from sanic_nats_bridge.sessions.starts import check_start
from tests.unit.streams.test_hub import made

PERMISSIONS = Permissions(["a.>", "b.>"], history=["a.old.>", "b.>"])


def command(start: From, *patterns: str, after: str | None = None) -> Command:
    fields = {} if after is None else {"after": after}
    return Command(action="subscribe", subjects=list(patterns), from_=start, **fields)


@pytest.mark.parametrize("start", ["all", "last_per_subject"])
async def test_past_needs_permission_and_then_a_stream(start: From) -> None:
    streams, _ = made("ONE")
    grants = [PERMISSIONS.grant(pattern) for pattern in ("a.old.x", "a.new.x", "b.x")]
    with pytest.raises(HistoryForbidden) as forbidden:
        check_start(command(start, "a.old.x", "a.new.x", "b.x"), grants, PERMISSIONS.allows_history, streams)
    assert forbidden.value.subjects == ("a.new.x",)
    with pytest.raises(HistoryUnavailable) as unavailable:
        check_start(command(start, "a.old.x", "b.x"), [grants[0], grants[2]], PERMISSIONS.allows_history, streams)
    assert unavailable.value.subjects == ("b.x",)
    check_start(command(start, "a.old.x", "b.x"), [grants[0], grants[2]], PERMISSIONS.allows_history, None)
    check_start(command(start, "a.old.x"), grants[:1], PERMISSIONS.allows_history, streams)


async def test_new_messages_and_a_position_never_fail() -> None:
    streams, _ = made("ONE")
    grants = [PERMISSIONS.grant("a.new.x")]
    check_start(command("new", "a.new.x"), grants, PERMISSIONS.allows_history, streams)
    check_start(command("all", "a.new.x", after="x"), grants, PERMISSIONS.allows_history, streams)
