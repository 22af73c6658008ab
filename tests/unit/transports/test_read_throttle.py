import asyncio

import pytest

from sanic_nats_bridge.transports.read_throttle import Intake
from tests.support.bridge import until
from tests.unit.transports.test_assembler import FakeTransport

SLICE = 4_096
MUCH = bytes(range(256)) * 40  # two slices and a half


class Websocket:
    """Takes what is fed to it; tells of it in its order."""

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
def intake(transport: FakeTransport, websocket: Websocket) -> Intake:
    return Intake(transport, websocket.feed, websocket.end)


async def turn() -> None:
    """Let the event loop turn once."""
    await asyncio.sleep(0)


async def test_little_is_passed_on_as_it_is_and_at_once(intake: Intake, websocket: Websocket) -> None:
    data = bytes(SLICE)
    intake.data_received(data)
    assert websocket.heard == [data]
    assert websocket.heard[0] is data


async def test_of_much_each_turn_of_the_loop_brings_a_slice_and_nothing_is_read_meanwhile(
    intake: Intake, websocket: Websocket, transport: FakeTransport
) -> None:
    intake.data_received(MUCH)
    for count in (1, 2):
        assert websocket.fed == MUCH[: count * SLICE]
        assert not transport.reading
        await turn()
    assert websocket.fed == MUCH
    assert transport.reading
    intake.data_received(b"next")
    assert websocket.fed == MUCH + b"next"


async def test_what_is_read_all_the_same_stands_behind_what_waits(intake: Intake, websocket: Websocket) -> None:
    intake.data_received(MUCH)
    intake.data_received(b"next")
    assert len(websocket.heard) == 1
    await until(lambda: len(websocket.heard) == 3)
    assert websocket.fed == MUCH + b"next"


async def test_nothing_is_fed_while_the_inbox_takes_nothing(
    intake: Intake, websocket: Websocket, transport: FakeTransport
) -> None:
    intake.data_received(MUCH)
    intake.pause_reading()
    for _ in range(5):
        await turn()
    assert websocket.fed == MUCH[:SLICE]
    intake.resume_reading()
    assert not transport.reading
    await until(lambda: websocket.fed == MUCH)
    assert transport.reading


async def test_what_comes_while_the_inbox_takes_nothing_waits(
    intake: Intake, websocket: Websocket, transport: FakeTransport
) -> None:
    intake.pause_reading()
    assert not transport.reading
    intake.data_received(b"late")
    await turn()
    assert websocket.heard == []
    intake.resume_reading()
    await turn()
    assert websocket.heard == [b"late"]
    assert transport.reading


async def test_an_inbox_that_fills_by_the_last_slice_is_read_no_further(
    intake: Intake, websocket: Websocket, transport: FakeTransport
) -> None:
    intake.data_received(MUCH[: SLICE + 1])
    assert websocket.fed == MUCH[:SLICE]
    feed = websocket.feed

    def fill(data: bytes) -> None:
        feed(data)
        intake.pause_reading()

    intake._feed = fill
    await until(lambda: websocket.fed == MUCH[: SLICE + 1])
    assert not transport.reading
    intake.resume_reading()
    assert transport.reading


async def test_the_end_comes_behind_all_that_waits(intake: Intake, websocket: Websocket) -> None:
    intake.data_received(MUCH)
    assert not intake.eof_received()
    assert "end" not in websocket.heard
    await until(lambda: "end" in websocket.heard)
    assert (websocket.fed, websocket.heard[-1]) == (MUCH, "end")


async def test_the_end_is_told_at_once_where_nothing_waits(intake: Intake, websocket: Websocket) -> None:
    assert intake.eof_received() is False
    assert websocket.heard == ["end"]


@pytest.mark.parametrize("paused", [False, True])
async def test_what_is_dropped_is_never_fed_and_leaves_nothing_behind(
    intake: Intake, websocket: Websocket, transport: FakeTransport, paused: bool
) -> None:
    intake.data_received(MUCH)
    if paused:
        intake.pause_reading()
    intake.drop()
    intake.drop()
    for _ in range(5):
        await turn()
    assert websocket.fed == MUCH[:SLICE]
    assert transport.reading is not paused
    assert (intake._unfed, intake._turn) == (None, None)


async def test_a_slice_that_fails_the_connection_is_the_last(
    intake: Intake, websocket: Websocket, transport: FakeTransport
) -> None:
    def fail(data: bytes) -> None:
        websocket.feed(data)
        intake.drop()

    intake._feed = fail
    intake.data_received(MUCH)
    for _ in range(5):
        await turn()
    assert websocket.fed == MUCH[:SLICE]
    assert transport.reading


async def test_nothing_is_fed_once_the_connection_ends(
    intake: Intake, websocket: Websocket, transport: FakeTransport
) -> None:
    intake.data_received(MUCH)
    transport.closing = True
    assert intake.is_closing()
    for _ in range(5):
        await turn()
    assert websocket.fed == MUCH[:SLICE]
    assert (intake._unfed, intake._turn) == (None, None)
