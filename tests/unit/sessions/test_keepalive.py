import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.sessions.keepalive import Keepalive
from sanic_nats_bridge.settings import Settings
from tests.support.clock import LeapingLoop
from tests.support.fakes import FakeTransport

ROUNDING = 1e-6
FRAME = b"\x81\x02{}"
HEARTBEAT = b'\x81\x14{"type":"heartbeat"}'

SECONDS = st.floats(0.5, 20)
STEPS = st.floats(0.001, 2)  # of a heartbeat, or of a write timeout


@dataclass
class Clocked(FakeTransport):
    """A transport that records the times of frames, of the client's reads, and of its abort."""

    loop: LeapingLoop
    written_at: list[float] = field(default_factory=list)
    beaten_at: list[float] = field(default_factory=list)
    kept_at: list[float] = field(default_factory=list)
    stalled_at: float = 0
    aborted_at: float | None = None
    _all_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def write(self, data: bytes) -> None:
        if not self.pending:
            self.stalled_at = self.loop.now
        super().write(data)
        self._all_at.append(self.loop.now)
        (self.beaten_at if data == HEARTBEAT else self.written_at).append(self.loop.now)

    def take(self, size: int | None = None) -> None:
        super().take(size)
        self.stalled_at = self.loop.now

    def keepalive(self) -> None:
        self.kept_at.append(self.loop.now)

    def abort(self) -> None:
        super().abort()
        self.aborted_at = self.loop.now

    @property
    def all_at(self) -> list[float]:
        return self._all_at

    @property
    def frames_at(self) -> list[float]:
        return sorted(self.written_at + self.beaten_at)


def run_scenario(loop: LeapingLoop, scene: Coroutine[Any, Any, None]) -> None:
    try:
        loop.run_until_complete(scene)
    finally:
        loop.close()


def timing(heartbeat: float, write_timeout: float) -> Settings:
    return Settings.resolve({"heartbeat": heartbeat, "write_timeout": write_timeout}, {})


# Heartbeats


@given(SECONDS, SECONDS, st.lists(STEPS, max_size=20))
def test_each_interval_has_frame_and_no_premature_heartbeat(
    heartbeat: float, write_timeout: float, pauses: list[float]
) -> None:
    transport = Clocked(LeapingLoop())

    async def scene() -> None:
        transport.write(FRAME)
        pulse = Keepalive(transport, timing(heartbeat, write_timeout))
        for pause in [*pauses, 3]:
            await asyncio.sleep(pause * heartbeat)
            transport.write(FRAME)
        pulse.stop()

    run_scenario(transport.loop, scene())
    assert all(later - earlier <= heartbeat + ROUNDING for earlier, later in pairwise(transport.frames_at))
    last = {at: max(frame for frame in transport.frames_at if frame < at) for at in transport.beaten_at}
    assert all(at - before >= heartbeat / 3 - ROUNDING for at, before in last.items())
    assert not transport.aborted


@given(SECONDS, SECONDS, st.floats(0.01, 0.33), st.integers(1, 60))
def test_no_heartbeat_is_sent_while_frames_are_sent(
    heartbeat: float, write_timeout: float, pause: float, count: int
) -> None:
    transport = Clocked(LeapingLoop())

    async def scene() -> None:
        pulse = Keepalive(transport, timing(heartbeat, write_timeout))
        for _ in range(count):
            transport.write(FRAME)
            await asyncio.sleep(pause * heartbeat)
        pulse.stop()

    run_scenario(transport.loop, scene())
    assert transport.beaten_at == []


@given(SECONDS, SECONDS, st.floats(0.01, 4))
def test_heartbeat_is_sent_within_interval_after_buffer_empties(
    heartbeat: float, write_timeout: float, slowness: float
) -> None:
    transport = Clocked(LeapingLoop())
    transport.limit = 10**6
    step = min(write_timeout, heartbeat) / 2

    async def scene() -> None:
        pulse = Keepalive(transport, timing(heartbeat, write_timeout))
        transport.write(FRAME * 1000)
        for _ in range(int(slowness * heartbeat / step)):
            await asyncio.sleep(step)
            transport.take(1)
        transport.limit = None
        transport.pending = 0
        await asyncio.sleep(heartbeat + ROUNDING)
        pulse.stop()

    run_scenario(transport.loop, scene())
    (beaten, *_) = transport.beaten_at
    assert beaten >= transport.loop.now - heartbeat - 2 * ROUNDING


@given(SECONDS, SECONDS)
def test_transport_keepalive_is_called_twice_per_heartbeat_interval(heartbeat: float, write_timeout: float) -> None:
    transport = Clocked(LeapingLoop())

    async def scene() -> None:
        pulse = Keepalive(transport, timing(heartbeat, write_timeout))
        await asyncio.sleep(3 * heartbeat)
        pulse.stop()

    run_scenario(transport.loop, scene())
    assert all(later - earlier <= heartbeat / 2 + ROUNDING for earlier, later in pairwise([0, *transport.kept_at]))


# A client that takes nothing


@given(SECONDS, SECONDS, st.lists(STEPS, min_size=1, max_size=10), st.booleans())
def test_stalled_client_is_disconnected_only_after_write_timeout(
    heartbeat: float, write_timeout: float, pauses: list[float], takes_all: bool
) -> None:
    transport = Clocked(LeapingLoop())
    transport.limit = 10**6

    async def scene() -> None:
        pulse = Keepalive(transport, timing(heartbeat, write_timeout))
        for pause in pauses:
            await asyncio.sleep(pause * write_timeout)
            if transport.aborted:
                return
            transport.take(None if takes_all else 1)
            transport.write(FRAME)
        await asyncio.sleep(2 * write_timeout)
        pulse.stop()

    run_scenario(transport.loop, scene())
    assert transport.aborted_at is not None
    assert write_timeout - ROUNDING <= transport.aborted_at - transport.stalled_at <= 1.5 * write_timeout + ROUNDING


@given(SECONDS, SECONDS, st.integers(1, 40))
def test_client_accepting_one_byte_per_timeout_is_not_disconnected(
    heartbeat: float, write_timeout: float, count: int
) -> None:
    transport = Clocked(LeapingLoop())
    transport.limit = 10**6

    async def scene() -> None:
        pulse = Keepalive(transport, timing(heartbeat, write_timeout))
        transport.write(FRAME * 1000)
        for _ in range(count):
            await asyncio.sleep(write_timeout * 0.999)
            transport.take(1)
        pulse.stop()

    run_scenario(transport.loop, scene())
    assert not transport.aborted


@given(SECONDS, SECONDS)
def test_client_without_pending_data_is_not_disconnected(heartbeat: float, write_timeout: float) -> None:
    transport = Clocked(LeapingLoop())

    async def scene() -> None:
        pulse = Keepalive(transport, timing(heartbeat, write_timeout))
        await asyncio.sleep(3 * write_timeout)
        pulse.stop()

    run_scenario(transport.loop, scene())
    assert not transport.aborted


@pytest.mark.parametrize("stuck", [False, True])
def test_no_heartbeat_is_sent_after_stop_or_abort(stuck: bool) -> None:
    transport = Clocked(LeapingLoop())

    async def scene() -> None:
        pulse = Keepalive(transport, timing(1, 1))
        if stuck:
            transport.pending = 1
            await asyncio.sleep(2)
        else:
            pulse.stop()
        written = transport.written
        await asyncio.sleep(10)
        assert transport.written == written
        assert transport.aborted == stuck

    run_scenario(transport.loop, scene())


def test_stop_during_tick_prevents_further_ticks() -> None:
    class Ending(Clocked):
        pulse: Keepalive

        def keepalive(self) -> None:
            super().keepalive()
            self.pulse.stop()

    transport = Ending(LeapingLoop())

    async def scene() -> None:
        transport.pulse = Keepalive(transport, timing(1, 1))
        await asyncio.sleep(10)

    run_scenario(transport.loop, scene())
    assert len(transport.kept_at) == 1
    assert transport.written == 0


def test_client_is_not_disconnected_if_pending_size_is_unknown() -> None:
    transport = Clocked(LeapingLoop())
    transport.reports_pending = False

    async def scene() -> None:
        pulse = Keepalive(transport, timing(1, 1))
        transport.pending = 1
        await asyncio.sleep(10)
        pulse.stop()

    run_scenario(transport.loop, scene())
    assert not transport.aborted


def test_position_is_announced_at_least_every_fourth_interval() -> None:
    loop = LeapingLoop()
    transport = Clocked(loop)

    async def scene() -> None:
        settings = Settings.resolve({"heartbeat": 10, "write_timeout": 20}, {})
        keepalive = Keepalive(transport, settings)
        keepalive.announce_position(lambda: "key.1.2")
        for _ in range(200):
            await asyncio.sleep(1)
            transport.write(FRAME)
        keepalive.stop()

    run_scenario(loop, scene())
    positions = [at for at, frame in zip(transport.all_at, transport.writes, strict=True) if b"key.1.2" in frame]
    assert positions
    assert all(later - earlier <= 4 * 10 + ROUNDING for earlier, later in pairwise([0, *positions, 200]))


def test_idle_client_gets_its_position_in_place_of_the_heartbeat() -> None:
    loop = LeapingLoop()
    transport = Clocked(loop)

    async def scene() -> None:
        keepalive = Keepalive(transport, Settings.resolve({"heartbeat": 10}, {}))
        keepalive.announce_position(lambda: "key.1.2")
        await asyncio.sleep(100)
        keepalive.stop()

    run_scenario(loop, scene())
    assert transport.writes
    assert set(transport.writes) == {b'\x81\x23{"type":"heartbeat","id":"key.1.2"}'}


def test_client_that_is_behind_gets_heartbeats_without_position() -> None:
    loop = LeapingLoop()
    transport = Clocked(loop)

    async def scene() -> None:
        keepalive = Keepalive(transport, Settings.resolve({"heartbeat": 10}, {}))
        keepalive.announce_position(str)
        await asyncio.sleep(100)
        keepalive.stop()

    run_scenario(loop, scene())
    assert set(transport.writes) == {HEARTBEAT}
