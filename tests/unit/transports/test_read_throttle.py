import asyncio

import pytest

from sanic_nats_bridge.transports.read_throttle import ReadThrottle
from tests.support.bridge import until
from tests.unit.transports.test_assembler import FakeTransport

SLICE = 4_096
MUCH = bytes(range(256)) * 40  # two slices and a half


class Websocket:
    """A WebSocket that records the data fed to it, in order."""

    def __init__(self) -> None:
        self.heard: list[bytes | str] = []

    def feed(self, data: bytes) -> None:
        self.heard.append(data)

    def end(self) -> bool:
        self.heard.append("end")
        return False

    @property
    def fed(self) -> bytes:
        return b"".join(part for part in self.heard if isinstance(part, bytes))


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def websocket() -> Websocket:
    return Websocket()


@pytest.fixture
def throttle(transport: FakeTransport, websocket: Websocket) -> ReadThrottle:
    throttle = ReadThrottle(transport, websocket.end)
    throttle.feed = websocket.feed
    return throttle


async def turn() -> None:
    """Let the event loop turn once."""
    await asyncio.sleep(0)


async def test_small_read_is_forwarded_immediately_without_copy(throttle: ReadThrottle, websocket: Websocket) -> None:
    data = bytes(SLICE)
    throttle.data_received(data)
    assert websocket.heard == [data]
    assert websocket.heard[0] is data


async def test_large_read_is_fed_in_slices_while_reading_is_paused(
    throttle: ReadThrottle, websocket: Websocket, transport: FakeTransport
) -> None:
    throttle.data_received(MUCH)
    for count in (1, 2):
        assert websocket.fed == MUCH[: count * SLICE]
        assert not transport.reading
        await turn()
    assert websocket.fed == MUCH
    assert transport.reading
    throttle.data_received(b"next")
    assert websocket.fed == MUCH + b"next"


async def test_further_data_is_fed_after_pending_slices(throttle: ReadThrottle, websocket: Websocket) -> None:
    throttle.data_received(MUCH)
    throttle.data_received(b"next")
    assert len(websocket.heard) == 1
    await until(lambda: len(websocket.heard) == 3)
    assert websocket.fed == MUCH + b"next"


async def test_nothing_is_fed_while_reading_is_paused(
    throttle: ReadThrottle, websocket: Websocket, transport: FakeTransport
) -> None:
    throttle.data_received(MUCH)
    throttle.pause_reading()
    for _ in range(5):
        await turn()
    assert websocket.fed == MUCH[:SLICE]
    throttle.resume_reading()
    assert not transport.reading
    await until(lambda: websocket.fed == MUCH)
    assert transport.reading


async def test_data_received_while_paused_is_fed_after_resume(
    throttle: ReadThrottle, websocket: Websocket, transport: FakeTransport
) -> None:
    throttle.pause_reading()
    assert not transport.reading
    throttle.data_received(b"late")
    await turn()
    assert websocket.heard == []
    throttle.resume_reading()
    await turn()
    assert websocket.heard == [b"late"]
    assert transport.reading


async def test_transport_is_not_resumed_if_last_slice_pauses_reading(
    throttle: ReadThrottle, websocket: Websocket, transport: FakeTransport
) -> None:
    throttle.data_received(MUCH[: SLICE + 1])
    assert websocket.fed == MUCH[:SLICE]
    feed = websocket.feed

    def fill(data: bytes) -> None:
        feed(data)
        throttle.pause_reading()

    throttle.feed = fill
    await until(lambda: websocket.fed == MUCH[: SLICE + 1])
    assert not transport.reading
    throttle.resume_reading()
    assert transport.reading


async def test_eof_follows_pending_data(throttle: ReadThrottle, websocket: Websocket) -> None:
    throttle.data_received(MUCH)
    assert not throttle.eof_received()
    assert "end" not in websocket.heard
    await until(lambda: "end" in websocket.heard)
    assert (websocket.fed, websocket.heard[-1]) == (MUCH, "end")


async def test_eof_is_forwarded_immediately_if_nothing_is_pending(throttle: ReadThrottle, websocket: Websocket) -> None:
    assert throttle.eof_received() is False
    assert websocket.heard == ["end"]


@pytest.mark.parametrize("paused", [False, True])
async def test_drop_discards_pending_data_and_scheduled_turn(
    throttle: ReadThrottle, websocket: Websocket, transport: FakeTransport, paused: bool
) -> None:
    throttle.data_received(MUCH)
    if paused:
        throttle.pause_reading()
    throttle.drop()
    throttle.drop()
    for _ in range(5):
        await turn()
    assert websocket.fed == MUCH[:SLICE]
    assert transport.reading is not paused
    assert (throttle._unfed, throttle._turn) == (None, None)


async def test_feeding_stops_after_slice_that_fails_connection(
    throttle: ReadThrottle, websocket: Websocket, transport: FakeTransport
) -> None:
    def fail(data: bytes) -> None:
        websocket.feed(data)
        throttle.drop()

    throttle.feed = fail
    throttle.data_received(MUCH)
    for _ in range(5):
        await turn()
    assert websocket.fed == MUCH[:SLICE]
    assert transport.reading


async def test_nothing_is_fed_once_transport_is_closing(
    throttle: ReadThrottle, websocket: Websocket, transport: FakeTransport
) -> None:
    throttle.data_received(MUCH)
    transport.closing = True
    assert throttle.is_closing()
    for _ in range(5):
        await turn()
    assert websocket.fed == MUCH[:SLICE]
    assert (throttle._unfed, throttle._turn) == (None, None)
