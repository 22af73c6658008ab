from sanic_nats_bridge.hub.interest import State
from sanic_nats_bridge.streams.followed import Followed, Scope
from sanic_nats_bridge.streams.window import Record, WindowMemory
from tests.support.fakes import FakeSubscriber, granted


def test_channel_of_a_scope_exists_while_it_has_subscribers() -> None:
    followed = Followed("o.>", WindowMemory(1_000), 0)
    scope, other = Scope(()), Scope(())
    channel = followed.channel(scope)
    assert followed.channel(scope) is channel is followed.sole_channel
    assert channel.state is State.ACTIVE
    assert (channel.scope, channel.followed) == (scope, followed)
    second = followed.channel(other)
    assert second is not channel
    assert followed.sole_channel is None
    subscriber = FakeSubscriber()
    view = channel.add(subscriber, granted("o.>")[0])
    followed.drop_if_empty(channel)
    assert followed.channel(scope) is channel
    channel.remove(subscriber, view)
    followed.drop_if_empty(channel)
    assert list(followed.channels.values()) == [second]
    assert followed.sole_channel is second
    # It was removed already.
    followed.drop_if_empty(channel)
    followed.drop_if_empty(second)
    assert not followed.channels
    assert followed.sole_channel is None


def test_window_begins_again() -> None:
    memory = WindowMemory(1_000_000)
    followed = Followed("o.>", memory, 5)
    old = followed.window
    old.add(Record(6, 1, "o.1", b"", b"x"))
    followed.restart_window(2)
    assert old.is_closed
    assert (followed.window.floor, len(followed.window), memory.bytes) == (2, 0, 0)
