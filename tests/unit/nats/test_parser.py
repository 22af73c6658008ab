from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanic_nats_bridge.nats.parser import MalformedLineError, Parser

OWN_SIDS = range(1, 5)


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

    @property
    def sinks(self) -> Mapping[bytes, int]:
        return {b"%d" % sid: sid for sid in OWN_SIDS}

    @property
    def own(self) -> list[Message]:
        return [message for message in self.seen if isinstance(message, Message) and message.own]

    def on_message(self, sink: int, subject: bytes, headers: bytes, payload: bytes) -> None:
        self.seen.append(Message(sink, subject, b"", headers, payload))

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


async def test_unterminated_line_raises_malformed_line_error() -> None:
    with pytest.raises(MalformedLineError):
        await parsed([b"x" * 65_536] * 32)


async def test_long_info_line_is_parsed() -> None:
    info = b'INFO {"connect_urls":["' + b"n" * 500_000 + b'"]}'
    assert await parsed(cut(info + b"\r\nPING\r\n", [65_536])) == [Line(info), Line(b"PING")]


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
