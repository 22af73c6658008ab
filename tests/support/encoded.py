"""Payloads that are hard to encode, and readers of encoded messages that are built on the parsers of other projects."""

import json
from collections.abc import Generator
from typing import Any

import h11
import httpx
from httpx_sse import EventSource
from hypothesis import strategies as st
from sseclient import SSEClient
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

TRICKY = (
    b"",
    b"1",
    b"\r",
    b"\n\n",
    b"\r\n\r\n0\r\n\r\n",
    b'{"a":\r\n[1,\n2]\r}',
    b'"data: 1\\n\\nevent: x"',
    b"data: 1\n\nevent: close\ndata: 2\n\n",
    b"event:",
    b":comment",
    "\u2028\u2029\x85\x0b\x0c\x1c\x1e".encode(),
    '["\u2028\u2029\x85"]'.encode(),
    b"\xef\xbb\xbf",
    b"\xef\xbb\xbf[1]",
    b'["\xff"]',
    b"\x00",
    b'"\\ud800"',
)

payloads = (
    st.sampled_from(TRICKY)
    | st.binary()
    | st.text().map(str.encode)
    | st.lists(st.sampled_from(TRICKY), max_size=4).map(b"".join)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ).map(lambda value: json.dumps(value, allow_nan=True, ensure_ascii=False, indent=1).encode("utf-8", "replace"))
)
subject_texts = st.text(max_size=30) | st.sampled_from(["a\u2028b", "\ufeffa", 'a","data":1', "event:", "data:\x0b"])


def run(parser: Generator[None, None, Frame]) -> Frame:
    try:
        next(parser)
    except StopIteration as end:
        frame: Frame = end.value
        return frame
    raise AssertionError("the frame wants more bytes than there are")


def websocket_payloads(data: bytes) -> list[bytes]:
    """Return the payloads that the `websockets` library reads: whole, unmasked text frames only."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    found = []
    while reader.buffer:
        frame = run(Frame.parse(reader.read_exact, mask=False))
        assert (frame.fin, frame.opcode) == (True, Opcode.TEXT)
        found.append(bytes(frame.data))
    return found


def body(chunks: bytes) -> bytes:
    """Return the body that an HTTP client decodes from the chunks, without a remaining byte."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert isinstance(client.next_event(), h11.Response)
    found = b""
    while isinstance(event := client.next_event(), h11.Data):
        found += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data == (b"", False)
    return found


def events(chunks: bytes) -> list[tuple[str, str, int | None]]:
    """Name, data and retry of each event, none of which has an id."""
    found = events_with_ids(body(chunks))
    assert [id_ for *_, id_ in found] == [None] * len(found)
    return [(name, data, retry) for name, data, retry, _ in found]


def events_with_ids(stream: bytes) -> list[tuple[str, str, int | None, str | None]]:
    """Name, data, retry and id of each event, on which two foreign parsers must agree."""
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream; charset=utf-8"}, content=stream)
    by_httpx = []
    last_id = ""
    for event in EventSource(response).iter_sse():
        # This parser repeats the last id for an event without one, as a browser does.
        by_httpx.append((event.event, event.data, event.retry, event.id if event.id != last_id else None))
        last_id = event.id
    prefix: Any = iter([stream])
    by_sseclient = [
        (event.event, event.data, int(event.retry) if event.retry else None, event.id)
        for event in SSEClient(prefix).events()
    ]
    assert by_httpx == by_sseclient
    return by_httpx


def decoded(frame: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(frame)
    return document
