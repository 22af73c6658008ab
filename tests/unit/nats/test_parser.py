import asyncio
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanic_nats_bridge.nats.parser import MAX_MESSAGE_BYTES, Control, MalformedLineError, Parser
from tests.support.growth import assert_linear

OWN_SIDS = range(1, 5)
CONTROL_SID = 7


@dataclass(frozen=True)
class Message:
    sid: int
    subject: bytes
    reply: bytes
    headers: bytes
    payload: bytes

    @property
    def own(self) -> bool:
        return self.sid in OWN_SIDS

    @property
    def taken(self) -> "Message":
        """The message after it was taken: the bridge needs no reply subject of its own messages."""
        return replace(self, reply=b"") if self.own else self

    def encoded(self) -> bytes:
        words = [self.subject, b"%d" % self.sid, *([self.reply] if self.reply else [])]
        words = [b"HMSG", *words, b"%d" % len(self.headers)] if self.headers else [b"MSG", *words]
        body = self.headers + self.payload
        return b" ".join([*words, b"%d" % len(body)]) + b"\r\n" + body + b"\r\n"


@dataclass(frozen=True)
class Line:
    text: bytes

    @property
    def taken(self) -> "Line":
        return self

    def encoded(self) -> bytes:
        return self.text + b"\r\n"


@dataclass
class Recorder:
    """A recorder of operations in order, which takes the messages of `OWN_SIDS`."""

    seen: list[Message | Line] = field(default_factory=list)
    counted: tuple[int, int] = (0, 0)
    too_large: list[int] = field(default_factory=list)
    turns: int = 0
    full_after: Sequence[int] = ()
    """The numbers of own messages after which the next turn of the loop is due."""
    gathers: bool = False
    """True if the messages of control subscriptions are gathered for one flush."""

    @property
    def sinks(self) -> Mapping[bytes, int]:
        return {b"%d" % sid: sid for sid in OWN_SIDS}

    @property
    def own(self) -> list[Message]:
        return [message for message in self.seen if isinstance(message, Message) and message.own]

    def on_message(self, sink: int, subject: bytes, headers: bytes, payload: bytes) -> bool:
        self.seen.append(Message(sink, subject, b"", headers, payload))
        return len(self.own) in self.full_after

    @property
    def controls(self) -> Mapping[bytes, Control]:
        return {b"%d" % CONTROL_SID: _ControlRecorder(self)}

    def delivery_failed(self, sink: Any, error: Exception) -> None:
        raise error

    def received(self, messages: int, size: int) -> None:
        self.counted = (self.counted[0] + messages, self.counted[1] + size)

    async def foreign_message(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        message = Message(sid, subject, reply, headers, payload)
        assert not message.own
        self.seen.append(message)

    async def control(self, line: bytes) -> None:
        self.seen.append(Line(line))

    def message_too_large(self, size: int) -> None:
        self.too_large.append(size)

    async def next_turn(self) -> None:
        self.turns += 1


@dataclass
class _ControlRecorder:
    recorder: Recorder

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, /) -> bool | None:
        self.recorder.seen.append(Message(CONTROL_SID, subject, reply, headers, payload))
        if len(self.recorder.seen) in self.recorder.full_after:
            return True
        return False if self.recorder.gathers else None


async def parsed(reads: Iterable[bytes]) -> list[Message | Line]:
    recorder = Recorder()
    parser = Parser(recorder)
    for read in reads:
        await parser.parse(read)
    assert recorder.counted == (len(recorder.own), sum(len(message.payload) for message in recorder.own))
    return recorder.seen


def cut(stream: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    position = 0
    for size in cycle(sizes):
        yield stream[position : position + size]
        position += size
        if position >= len(stream):
            return


LOOK_ALIKES = (b"", b"\r\n", b"\r", b"\n", b"MSG a 1 2\r\nhi\r\n", b"PING\r\n", b"HMSG a 1 9 9\r\n", b"-ERR 'x'")

subjects = st.binary(min_size=1, max_size=20).map(lambda raw: raw.translate(None, b" \t\r\n") or b"\x0b\x0c")
bodies = st.binary(max_size=300) | st.lists(st.sampled_from(LOOK_ALIKES), max_size=4).map(b"".join)
header_blocks = bodies.map(lambda raw: b"NATS/1.0\r\n" + raw + b"\r\n\r\n")
messages = st.builds(
    Message,
    sid=st.integers(1, 9) | st.integers(1, 2**63),
    subject=subjects,
    reply=st.just(b"") | subjects,
    headers=st.just(b"") | header_blocks,
    payload=bodies,
)
lines = st.sampled_from(
    [b"PING", b"PONG", b"+OK", b'INFO {"server_id":"x","MSG ":1}', b"-ERR 'Permissions Violation for \"MSG a 1 2\"'"]
).map(Line)


@given(st.lists(messages | lines, max_size=8), st.lists(st.integers(1, 400), min_size=1, max_size=12))
@example([Message(1, b"a", b"", b"", b"\r\n"), Line(b"PING")], [1])
async def test_operations_are_parsed_in_order_at_any_read_boundary(
    operations: list[Message | Line], sizes: list[int]
) -> None:
    stream = b"".join(operation.encoded() for operation in operations)
    assert await parsed(cut(stream, sizes)) == [operation.taken for operation in operations]


async def test_message_is_processed_in_read_that_completes_it() -> None:
    recorder = Recorder()
    parser = Parser(recorder)
    first, second = Message(1, b"a", b"r", b"", b"one"), Message(7, b"b", b"", b"NATS/1.0\r\n\r\n", b"two")
    stream = first.encoded() + second.encoded()
    await parser.parse(stream[:-1])
    assert recorder.seen == [first.taken]
    await parser.parse(stream[-1:])
    assert recorder.seen == [first.taken, second]


async def test_large_payload_in_many_reads_is_reassembled() -> None:
    message = Message(1, b"a", b"", b"", bytes(range(256)) * 4 * 8_192)
    assert await parsed(cut(message.encoded() + b"PING\r\n", [4_096])) == [message, Line(b"PING")]


async def test_empty_read_changes_nothing() -> None:
    message = Message(1, b"a", b"", b"", b"payload")
    stream = message.encoded()
    assert await parsed([b"", stream[:5], b"", stream[5:12], b"", stream[12:], b""]) == [message]


async def test_reads_that_complete_nothing_are_counted() -> None:
    parser = Parser(Recorder())
    for read in (b"MSG a", b" 1 4\r", b"", b"\n1", b"2", b"3", b"", b"4"):
        await parser.parse(read)
    assert parser.reads == 6


async def test_reset_discards_partial_input() -> None:
    recorder = Recorder()
    parser = Parser(recorder)
    for part in (b"MSG a 1 50\r\npart", b"MSG a", b"PI"):
        await parser.parse(part)
        parser.reset()
    await parser.parse(b"PONG\r\n")
    assert recorder.seen == [Line(b"PONG")]


@pytest.mark.parametrize(
    "line",
    [
        b"MSG ",
        b"MSG a",
        b"MSG a 1",
        b"MSG a 1 ",
        b"MSG a 1 x",
        b"MSG a x 1",
        b"MSG a 1 -1",
        b"MSG a 1 1.0",
        b"MSG a 1 \xd9\xa1",
        b"MSG a 1 " + b"9" * 5_000,
        b"MSG a  1 1",
        b"MSG  1 1",
        b"MSG a 1 b c 1",
        b"MSG a 1 b  1",
        b"HMSG a 1 1",
        b"HMSG a 1 x 1",
        b"HMSG a 1 2 1",
        b"HMSG a 1 -1 1",
        b"HMSG a 1 b c 1 1",
    ],
    ids=lambda line: ascii(line[:24])[1:],
)
async def test_invalid_message_line_raises_malformed_line_error(line: bytes) -> None:
    with pytest.raises(MalformedLineError):
        await parsed([b"PING\r\n", line + b"\r\n\r\n\r\n"])


@pytest.mark.parametrize("end", [b"\n\r", b"\rx", b"x\n", b"xx"], ids=ascii)
@pytest.mark.parametrize("split", [1_000, 1])
async def test_payload_without_line_end_raises_malformed_line_error(end: bytes, split: int) -> None:
    with pytest.raises(MalformedLineError, match="payload size differs from its message line"):
        await parsed(cut(b"MSG a 1 2\r\nhi" + end + b"PING\r\n", [split]))


@pytest.mark.parametrize("size", [0, 1, 9, 10, 2_047, 2_048, 9_999, 10_000])
@pytest.mark.parametrize("form", [b"MSG a 1 %b", b"MSG a 1 r %b", b"HMSG a 1 0 %b", b"MSG a 1 00%b"], ids=ascii)
async def test_payload_of_any_length_is_parsed(form: bytes, size: int) -> None:
    stream = form % b"%d" % size + b"\r\n" + bytes(size) + b"\r\nPING\r\n"
    assert await parsed([stream]) == [Message(1, b"a", b"", b"", bytes(size)), Line(b"PING")]


async def test_unterminated_line_raises_malformed_line_error() -> None:
    with pytest.raises(MalformedLineError):
        await parsed([b"x" * 65_536] * 32)


async def test_long_info_line_is_parsed() -> None:
    info = b'INFO {"connect_urls":["' + b"n" * 500_000 + b'"]}'
    assert await parsed(cut(info + b"\r\nPING\r\n", [65_536])) == [Line(info), Line(b"PING")]


# Lengths and floods


@pytest.mark.parametrize(
    ("line", "size"),
    [
        (b"MSG a 1 1025", 1025),
        (b"MSG a 7 1025", 1025),
        (b"MSG a 1 r 9999999999999999999", 9_999_999_999_999_999_999),
        (b"HMSG a 1 12 66561", 66_561),
        (b"HMSG a 1 r 66560 66561", 66_561),
    ],
    ids=ascii,
)
async def test_message_above_limit_is_malformed_before_its_payload_arrives(line: bytes, size: int) -> None:
    recorder = Recorder()
    parser = Parser(recorder)
    parser.max_payload = 1024
    with pytest.raises(MalformedLineError, match=f"a message of {size} bytes, although max_payload is 1024"):
        await parser.parse(line + b"\r\n")
    assert recorder.too_large == [size]


async def test_complete_message_above_limit_is_malformed_too() -> None:
    recorder = Recorder()
    parser = Parser(recorder)
    parser.max_payload = 10
    with pytest.raises(MalformedLineError):
        await parser.parse(Message(1, b"a", b"", b"", b"x" * 11).encoded())
    assert recorder.seen == []


async def test_message_at_limit_is_accepted_with_headers_that_a_server_adds() -> None:
    added = b"NATS/1.0\r\nNats-Stream: S\r\n\r\n"
    operations = [Message(1, b"a", b"", b"", b"x" * 1024), Message(1, b"a", b"", added, b"y" * 1024)]
    recorder = Recorder()
    parser = Parser(recorder)
    parser.max_payload = 1024
    for operation in operations:
        await parser.parse(operation.encoded())
    assert recorder.seen == operations


async def test_limit_without_info_is_that_of_nats() -> None:
    with pytest.raises(MalformedLineError):
        await parsed([b"MSG a 1 %d\r\n" % (MAX_MESSAGE_BYTES + 1)])


async def test_limit_of_info_holds_for_next_message_of_same_read() -> None:
    class Raising(Recorder):
        async def control(self, line: bytes) -> None:
            parser.max_payload = int(line)

    recorder = Raising()
    parser = Parser(recorder)
    parser.max_payload = 1
    await parser.parse(b"2\r\n" + Message(1, b"a", b"", b"", b"12").encoded())
    with pytest.raises(MalformedLineError):
        await parser.parse(b"1\r\n" + Message(1, b"a", b"", b"", b"12").encoded())
    assert len(recorder.seen) == 1


@pytest.mark.parametrize("line", [b"HMSG a 1 2 1", b"HMSG a 1 1000000 5", b"HMSG a 1 r 6 5"], ids=ascii)
async def test_header_longer_than_message_is_malformed_before_it_arrives(line: bytes) -> None:
    with pytest.raises(MalformedLineError, match="invalid message line"):
        await parsed([line + b"\r\n"])


async def test_line_end_may_be_split_between_reads() -> None:
    assert await parsed([b"PI", b"NG\r", b"\nPONG", b"\r", b"\n"]) == [Line(b"PING"), Line(b"PONG")]
    assert await parsed([b"PI\n", b"\nN\r", b"G\r", b"", b"\n"]) == [Line(b"PI\n\nN\rG")]


async def test_line_of_a_mebibyte_is_too_long_at_any_read_size() -> None:
    for size in (1024 * 1024, 65_536, 1000):
        with pytest.raises(MalformedLineError, match="line too long"):
            await parsed(cut(b"INFO " + b"x" * 1024 * 1024, [size]))


@pytest.mark.parametrize("unit", [b"x", b"\n", b"\r"], ids=ascii)
def test_work_for_line_grows_with_its_length_in_any_reads(unit: bytes) -> None:
    def make(count: int) -> Callable[[], object]:
        reads = [unit] * count + [b"\r\n"]
        return lambda: asyncio.run(parsed(reads))

    assert_linear(make, 20_000)


def test_work_for_message_grows_with_its_length_in_tiny_reads() -> None:
    def make(count: int) -> Callable[[], object]:
        reads = [b"MSG a 1 %d\r\n" % (2 * count), *[b"xy"] * count, b"\r\n"]
        return lambda: asyncio.run(parsed(reads))

    assert_linear(make, 20_000)


@pytest.mark.parametrize("sizes", [(2,), (511,), (512,), (2, 2, 600)], ids=str)
async def test_message_in_small_reads_takes_little_more_memory_than_its_length(sizes: tuple[int, ...]) -> None:
    size = 1024 * 1024
    parser = Parser(Recorder())
    await parser.parse(b"MSG a 1 %d\r\n" % size)
    tracemalloc.start()
    try:
        for number in range(size // sum(sizes)):
            for each in sizes:
                await parser.parse(b"%c%c" % (number & 0xFF, number >> 8 & 0xFF) + bytes(each - 2))
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("flood", "count", "per_turn"),
    [
        (b"PONG\r\n", 1_000, 16),
        (b"-ERR 'x'\r\n", 1_000, 16),
        (b"MSG a 9 1\r\n1\r\n", 1_000, 128),
        (b"MSG a 7 r 1\r\n1\r\n", 1_000, 128),
    ],
    ids=["PONG", "error", "unknown subscription", "control subscription"],
)
@pytest.mark.parametrize("size", [1_000_000, 512, 1])
async def test_flood_is_processed_in_many_turns_of_the_loop(flood: bytes, count: int, per_turn: int, size: int) -> None:
    recorder = Recorder()
    parser = Parser(recorder)
    for read in cut(flood * count, [size]):
        await parser.parse(read)
    assert len(recorder.seen) == count
    assert recorder.turns == count // per_turn


async def test_own_messages_are_processed_in_one_turn() -> None:
    recorder = Recorder()
    await Parser(recorder).parse(Message(1, b"a", b"", b"", b"1").encoded() * 1_000)
    assert (len(recorder.seen), recorder.turns) == (1_000, 0)


async def test_messages_of_a_control_subscription_that_gathers_them_are_processed_in_one_turn() -> None:
    recorder = Recorder(gathers=True)
    await Parser(recorder).parse(Message(CONTROL_SID, b"a", b"r", b"", b"1").encoded() * 1_000)
    assert (len(recorder.seen), recorder.turns) == (1_000, 0)


garbage = st.binary(max_size=200) | st.lists(
    st.sampled_from([b"MSG ", b"HMSG ", b"a", b" ", b"1", b"-1", b"12", b"\r\n", b"\r", b"\n", b"\xff", b"PING"])
).map(b"".join)


@given(garbage, st.lists(st.integers(1, 50), min_size=1, max_size=5))
async def test_garbage_raises_only_malformed_line_error(stream: bytes, sizes: list[int]) -> None:
    recorder = Recorder()
    parser = Parser(recorder)
    try:
        for read in cut(stream, sizes):
            await parser.parse(read)
    except MalformedLineError:
        pass
    assert all(operation.encoded()[:-2] in stream for operation in recorder.seen if isinstance(operation, Line))


async def test_next_turn_is_due_before_next_message_if_listener_is_full() -> None:
    recorder = Recorder(full_after=(2, 3))
    parser = Parser(recorder)
    turns: list[tuple[int, int]] = []
    next_turn = recorder.next_turn

    async def counted() -> None:
        turns.append((len(recorder.own), recorder.counted[0]))
        await next_turn()

    recorder.next_turn = counted  # type: ignore[method-assign]
    own = Message(OWN_SIDS[0], b"a", b"", b"", b"12").encoded()
    await parser.parse(own * 5 + own[:3])
    await parser.parse(own[3:])
    assert turns == [(2, 0), (3, 0)]
    assert recorder.counted == (6, 12)


async def test_messages_of_control_subscriptions_keep_their_reply_subjects() -> None:
    messages = [Message(CONTROL_SID, b"a", reply, headers, b"1") for reply in (b"r", b"") for headers in (b"", b"h")]
    assert await parsed([b"".join(message.encoded() for message in messages)]) == messages


async def test_next_turn_is_due_after_a_control_message_that_fills_the_listener() -> None:
    recorder = Recorder(full_after=(2,))
    await Parser(recorder).parse(Message(CONTROL_SID, b"a", b"r", b"", b"1").encoded() * 3)
    assert (len(recorder.seen), recorder.turns) == (3, 1)
