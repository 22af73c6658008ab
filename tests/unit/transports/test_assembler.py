import asyncio

import pytest
from sanic.exceptions import WebsocketClosed
from websockets.frames import Frame, Opcode

from sanic_nats_bridge.transports.assembler import MessageAssembler

MAX_BYTES = 70_000


class FakeTransport(asyncio.Transport):
    """A transport that records whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert not self.closing
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.closing
        self.reading = True


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def assembler(transport: FakeTransport) -> MessageAssembler:
    return MessageAssembler(transport, MAX_BYTES)


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


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
async def test_unfinished_message_is_returned_when_over_size_limit(transport: FakeTransport, opcode: Opcode) -> None:
    assembler = MessageAssembler(transport, 3)
    await assembler.put(Frame(opcode, "aä".encode(), fin=False))
    reader = asyncio.create_task(assembler.get())
    await asyncio.sleep(0)
    assert not reader.done()
    await assembler.put(Frame(Opcode.CONT, "ö".encode()[:1], fin=False))
    assert await reader == "aäö".encode()[:4]
    await assembler.put(Frame(Opcode.CONT, "ö".encode()[1:]))
    assert await assembler.get() == "ö".encode()[1:]
    await assembler.put(text("next"))
    assert await assembler.get() == "next"


async def test_message_at_size_limit_is_returned_whole(transport: FakeTransport) -> None:
    assembler = MessageAssembler(transport, 3)
    for frame in (Frame(Opcode.TEXT, b"ab", fin=False), Frame(Opcode.CONT, b"c", fin=False), Frame(Opcode.CONT, b"")):
        await assembler.put(frame)
    assert await assembler.get() == "abc"
