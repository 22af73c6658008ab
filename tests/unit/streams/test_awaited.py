"""The sequences that replays wait for."""

import contextlib
import math

from sanic_nats_bridge.streams.awaited import AwaitedSequences


async def test_message_wakes_those_that_wait_for_it_or_an_earlier_one() -> None:
    awaited = AwaitedSequences()
    with contextlib.ExitStack() as waiting:
        events = {seq: waiting.enter_context(awaited.waiting(seq)) for seq in (9, 3, 7, 5)}
        assert (awaited.next, len(awaited)) == (3, 4)
        awaited.arrived(6)
        assert {seq for seq, event in events.items() if event.is_set()} == {3, 5}
        assert awaited.next == 7
    assert (awaited.next, len(awaited)) == (math.inf, 0)


async def test_sequences_that_never_arrive_leave_nothing() -> None:
    awaited = AwaitedSequences()
    for seq in range(1000):
        with awaited.waiting(10**9 - seq):
            assert len(awaited._queue) <= 2
    assert not awaited._queue
