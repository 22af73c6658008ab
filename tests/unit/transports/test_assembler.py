import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sanic.exceptions import WebsocketClosed
from websockets.frames import Frame, Opcode

from sanic_nats_bridge.errors import SizeLimitExceeded
from sanic_nats_bridge.transports.assembler import MessageAssembler
from tests.support.clock import LeapingLoop, turns
from tests.support.frames import CONT, PING, TEXT, frame

MAX_BYTES = 70_000
SECONDS = 20.0


class FakeTransport(asyncio.Transport):
    """A transport that records whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.resumed = 0
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert not self.closing
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.closing
        self.reading = True
        self.resumed += 1


class Made:
    """An assembler with the parts around it."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.parsed: list[bytes] = []
        self.failed: list[int] = []
        self.assembler = MessageAssembler(
            self.transport, MAX_BYTES, SECONDS, self.parsed.append, lambda code, _: self.failed.append(code)
        )


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def transport(made: Made) -> FakeTransport:
    return made.transport


@pytest.fixture
def assembler(made: Made) -> MessageAssembler:
    return made.assembler


def run_leaping(run: Callable[[], Awaitable[None]]) -> None:
    """Run a test on a loop whose clock leaps."""
    loop = LeapingLoop()
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


def text(content: str) -> Frame:
    return Frame(Opcode.TEXT, content.encode())


async def test_messages_keep_their_order_and_type(assembler: MessageAssembler) -> None:
    await assembler.put(text("one"))
    await assembler.put(Frame(Opcode.BINARY, b"\xff"))
    await assembler.put(text(""))
    assert [await assembler.get() for _ in range(3)] == ["one", b"\xff", ""]


async def test_fragments_split_within_characters_are_joined(assembler: MessageAssembler) -> None:
    await assembler.put(Frame(Opcode.TEXT, b"gr\xc3", fin=False))
    await assembler.put(Frame(Opcode.CONT, b"\xb6", fin=False))
    reader = asyncio.create_task(assembler.get())
    await asyncio.sleep(0)
    await assembler.put(Frame(Opcode.CONT, b"\xc3\x9fe"))
    assert await reader == "größe"


@pytest.mark.parametrize("parts", [[b"\xff"], [b"\xc3", b"("], [b"ok", b"\xc3"]])
async def test_text_that_is_not_utf_8_is_rejected(assembler: MessageAssembler, parts: list[bytes]) -> None:
    opcodes = [Opcode.TEXT, *[Opcode.CONT] * (len(parts) - 1)]
    *first, last = zip(opcodes, parts, strict=True)
    for opcode, data in first:
        await assembler.put(Frame(opcode, data, fin=False))
    with pytest.raises(UnicodeDecodeError):
        await assembler.put(Frame(*last))


async def test_message_wakes_waiting_reader(assembler: MessageAssembler) -> None:
    reader = asyncio.create_task(assembler.get())
    await asyncio.sleep(0)
    await assembler.put(text("a"))
    await assembler.put(text("b"))
    assert await reader == "a"
    assert await assembler.get() == "b"


async def test_queued_message_is_returned_before_websocket_closed(assembler: MessageAssembler) -> None:
    await assembler.put(text("last"))
    assembler.cancel()
    assert await assembler.get() == "last"
    with pytest.raises(WebsocketClosed):
        await assembler.get()


async def test_cancel_wakes_waiting_reader(assembler: MessageAssembler) -> None:
    reader = asyncio.create_task(assembler.get())
    await asyncio.sleep(0)
    assembler.cancel()
    assembler.cancel()
    with pytest.raises(WebsocketClosed):
        await reader


async def test_full_queue_pauses_reading_until_it_is_empty(
    assembler: MessageAssembler, transport: FakeTransport
) -> None:
    for number in range(15):
        await assembler.put(text(str(number)))
    assert transport.reading
    await assembler.put(text("15"))
    assert not transport.reading
    for _ in range(15):
        await assembler.get()
    assert not transport.reading
    await assembler.get()
    assert transport.reading


async def test_messages_that_fill_no_queue_leave_reading_alone(
    assembler: MessageAssembler, transport: FakeTransport
) -> None:
    for number in range(20):
        await assembler.put(text(str(number)))
        assert await assembler.get() == str(number)
    assert not transport.resumed


async def test_pause_stops_reading_until_resume(assembler: MessageAssembler, transport: FakeTransport) -> None:
    assembler.pause()
    assert not transport.reading
    await assembler.put(text("a"))
    await assembler.get()
    assert not transport.reading
    assembler.resume()
    assert transport.reading


async def test_resume_does_not_read_while_queue_is_full(assembler: MessageAssembler, transport: FakeTransport) -> None:
    assembler.pause()
    for number in range(16):
        await assembler.put(text(str(number)))
    assembler.resume()
    assert not transport.reading


async def test_stopped_assembler_never_reads_again(assembler: MessageAssembler, transport: FakeTransport) -> None:
    await assembler.put(text("one"))
    assembler.stop()
    assembler.pause()
    assembler.resume()
    assert not transport.reading
    assert await assembler.get() == "one"
    assert not transport.reading


async def test_closing_transport_is_not_resumed(assembler: MessageAssembler, transport: FakeTransport) -> None:
    assembler.pause()
    transport.closing = True
    assembler.resume()
    assert not transport.reading


async def test_ping_is_ignored_even_between_fragments(assembler: MessageAssembler) -> None:
    await assembler.put(Frame(Opcode.PING, b"a"))
    await assembler.put(Frame(Opcode.TEXT, b"o", fin=False))
    await assembler.put(Frame(Opcode.PING, b"b"))
    await assembler.put(Frame(Opcode.CONT, b"ne"))
    assert await assembler.get() == "one"


async def test_reading_pauses_when_queued_bytes_reach_limit(
    assembler: MessageAssembler, transport: FakeTransport
) -> None:
    await assembler.put(text("x" * 65_535))
    assert transport.reading
    await assembler.put(text("x"))
    assert not transport.reading
    await assembler.get()
    await assembler.get()
    assert transport.reading
    await assembler.put(text("x" * 65_535))
    assert transport.reading


def test_input_within_limits_is_parsed(made: Made) -> None:
    data = frame(TEXT, b"ab", fin=False) + frame(CONT, b"c")
    made.assembler.data_received(data)
    assert made.parsed == [data]


async def test_too_large_message_follows_those_before_it(made: Made) -> None:
    before = frame(TEXT, b"first")
    made.assembler.data_received(before + frame(TEXT, length=MAX_BYTES + 1))
    made.assembler.data_received(bytes(100_000))
    assert made.parsed == [before]
    made.assembler.add("first")
    assert await made.assembler.get() == "first"
    with pytest.raises(SizeLimitExceeded, match=f"A command must be at most {MAX_BYTES} bytes"):
        await made.assembler.get()
    reader = asyncio.create_task(made.assembler.get())
    await turns()
    assert not reader.done()
    made.assembler.cancel()
    with pytest.raises(WebsocketClosed):
        await reader


async def test_parts_of_too_large_message_are_dropped(made: Made) -> None:
    await made.assembler.put(Frame(Opcode.TEXT, b"a" * 69_000, fin=False))
    made.assembler.data_received(frame(TEXT, b"a" * 69_000, fin=False) + frame(CONT, length=1_001))
    await turns()
    assert not made.assembler._part


async def test_message_of_largest_size_is_parsed(made: Made) -> None:
    data = frame(TEXT, b"a" * MAX_BYTES)
    made.assembler.data_received(data)
    assert made.parsed == [data]
    await turns()
    assert made.assembler._messages is None


async def test_long_control_frame_fails_connection_once(made: Made) -> None:
    made.assembler.data_received(frame(PING, length=126))
    made.assembler.data_received(bytes(1_000))
    await turns()
    assert (made.failed, made.parsed) == ([1002], [])


BEGINNINGS = {
    "a byte": frame(TEXT, b"abc")[:1],
    "half a frame": frame(TEXT, b"abc")[:-1],
    "a fragment": frame(TEXT, b"abc", fin=False),
    "fragments": frame(TEXT, b"abc", fin=False) + frame(CONT, b"abc", fin=False),
    "half a ping": frame(PING, b"abc")[:-1],
}


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("trickles", [False, True])
def test_message_must_be_complete_in_time(beginning: bytes, trickles: bool) -> None:
    async def run() -> None:
        made = Made()
        await asyncio.sleep(100)
        made.assembler.data_received(beginning)
        if trickles and beginning[0] & 0x80 == 0:
            await asyncio.sleep(SECONDS - 1)
            made.assembler.data_received(frame(CONT, b"a", fin=False) + frame(PING))
            await asyncio.sleep(0.9)
        else:
            await asyncio.sleep(SECONDS - 0.1)
        assert made.failed == []
        await asyncio.sleep(0.2)
        assert made.failed == [1013]

    run_leaping(run)


def test_each_message_has_its_own_time() -> None:
    async def run() -> None:
        made = Made()
        message = frame(TEXT, b"abc")
        for _ in range(10):
            made.assembler.data_received(message[:3])
            await asyncio.sleep(SECONDS * 0.6)
            made.assembler.data_received(message[3:] + message[:1])
            await asyncio.sleep(SECONDS * 0.6)
            made.assembler.data_received(message[1:])
        await asyncio.sleep(SECONDS * 3)
        assert made.failed == []

    run_leaping(run)


def test_time_begins_again_after_pause_of_reading() -> None:
    async def run() -> None:
        made = Made()
        made.assembler.data_received(frame(TEXT, fin=False))
        made.assembler.pause()
        await asyncio.sleep(SECONDS * 2.5)
        made.assembler.resume()
        await asyncio.sleep(SECONDS - 0.1)
        made.assembler.resume()
        assert made.failed == []
        await asyncio.sleep(0.2)
        assert made.failed == [1013]

    run_leaping(run)


@pytest.mark.parametrize("end", [MessageAssembler.release, MessageAssembler.cancel])
def test_time_is_not_limited_after_end(end: Callable[[MessageAssembler], None]) -> None:
    async def run() -> None:
        made = Made()
        made.assembler.data_received(frame(TEXT, fin=False))
        end(made.assembler)
        made.assembler.data_received(frame(CONT, fin=False))
        assert made.assembler._timer is None
        await asyncio.sleep(SECONDS * 2)
        assert made.failed == []

    run_leaping(run)


async def test_complete_messages_start_no_timer(made: Made) -> None:
    made.assembler.data_received(frame(TEXT, b"a") * 3)
    assert made.assembler._timer is None
