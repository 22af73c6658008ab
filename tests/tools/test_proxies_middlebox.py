"""The middlebox, between a client and a server of bare sockets."""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from tests.support.bridge import WAIT_SECONDS
from tools.proxies.http_heads import Head
from tools.proxies.middlebox import Middlebox
from tools.proxies.rules import Answer, Flow, Rewrite, Rule, Rules

EVENTS = "GET /nats/events?subjects=a HTTP/1.1\r\nHost: app:1\r\nOrigin: http://app:1\r\n"
WEBSOCKET = "GET /nats/stream HTTP/1.1\r\nHost: app:1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
POST = "POST /nats/subscribe HTTP/1.1\r\nHost: app:1\r\nContent-Length: 2\r\n"
HEAD = "HEAD /nats/events HTTP/1.1\r\nHost: app:1\r\n"
PAGE = "GET /page HTTP/1.1\r\nHost: app:1\r\n"

UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nCache-Control: no-store\r\n\r\n"
)
KEPT = STREAM.replace(b"no-store", b"no-store, no-transform")


class Peer(NamedTuple):
    """One end of a connection, and the head that it has received."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: Head

    async def read(self, count: int) -> bytes:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.reader.readexactly(count)

    async def rest(self) -> bytes:
        """Read to the end of the connection."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.reader.read()

    async def is_silent(self) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.reader.read(1), 0.05)


class Network:
    """A client, the proxy, and a server that hands each connection to the test."""

    def __init__(self) -> None:
        self.port = 0
        self.served: asyncio.Queue[Peer] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError):
            self.served.put_nowait(Peer(reader, writer, await Head.read(reader)))

    async def request(self, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        writer.write(head.encode() + b"\r\n" + body)
        return reader, writer

    async def answer(self, head: str) -> Peer:
        """Send a request, and return the client's end with the head of the proxy's own answer."""
        reader, writer = await self.request(head)
        async with asyncio.timeout(WAIT_SECONDS):
            return Peer(reader, writer, await Head.read(reader))

    async def connect(self, head: str, response: bytes, body: bytes = b"") -> tuple[Peer, Peer]:
        """Send a request, answer it with a head, and return the client's end and the server's."""
        reader, writer = await self.request(head, body)
        async with asyncio.timeout(WAIT_SECONDS):
            server = await self.served.get()
            server.writer.write(response)
            return Peer(reader, writer, await Head.read(reader)), server

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@contextlib.asynccontextmanager
async def network(rules: Rules) -> AsyncIterator[Network]:
    net = Network()
    server = await asyncio.start_server(net.accept, "127.0.0.1", 0)
    async with Middlebox(server.sockets[0].getsockname()[1], rules).running() as box:
        net.port = box.port
        try:
            yield net
        finally:
            net.close()
            server.close()


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


# Without a rule


async def test_request_and_response_pass_with_forwarded_headers() -> None:
    async with network({}) as net:
        client, server = await net.connect(POST, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"{}")
        assert await server.read(2) == b"{}"
        assert server.head.line == "POST /nats/subscribe HTTP/1.1"
        assert (server.head.get("host"), server.head.get("connection")) == ("app:1", "close")
        assert server.head.get("x-forwarded-host") == "app:1"
        server.writer.write(b"ok")
        server.writer.close()
        assert (client.head.line, await client.rest()) == ("HTTP/1.1 200 OK", b"ok")


async def test_websocket_passes_both_ways_and_ends_with_client() -> None:
    async with network({}) as net:
        client, server = await net.connect(WEBSOCKET, UPGRADED)
        assert (client.head.get("connection"), server.head.get("connection")) == ("Upgrade", "Upgrade")
        client.writer.write(b"up")
        server.writer.write(b"down")
        assert (await server.read(2), await client.read(4)) == (b"up", b"down")
        client.writer.close()
        assert await server.rest() == b""


# Answers of the proxy itself


@pytest.mark.parametrize(
    ("kind", "request_head"),
    [("websocket", WEBSOCKET), ("events", EVENTS), ("post", POST), ("head", HEAD), ("other", PAGE)],
)
async def test_own_answer_is_given_to_its_kind_of_request_only(kind: str, request_head: str) -> None:
    rules: Rules = {kind: Rule(Answer(403, "no"))}  # type: ignore[dict-item]
    async with network(rules) as net:
        client = await net.answer(request_head)
        assert client.head.line.startswith("HTTP/1.1 403 ")
        assert await client.rest() == (b"" if kind == "head" else b"no")
        for other in {WEBSOCKET, EVENTS, POST, HEAD, PAGE} - {request_head}:
            _, server = await net.connect(other, b"HTTP/1.1 200 OK\r\n\r\n")
            assert server.head.line == other.partition("\r\n")[0]


async def test_redirect_names_port_and_path_and_is_not_repeated_at_other_host() -> None:
    async with network({"events": Rule(Answer(308, location="http://other:{port}{path}"))}) as net:
        client = await net.answer(EVENTS)
        assert client.head.get("location") == "http://other:1/nats/events?subjects=a"
        _, server = await net.connect(EVENTS.replace("Host: app:1", "Host: other:1"), STREAM)
        assert server.head.get("host") == "other:1"


async def test_swallowed_request_is_never_answered() -> None:
    async with network({"post": Rule(swallow=True)}) as net:
        reader, writer = await net.request(POST, b"{}")
        writer.write_eof()
        async with asyncio.timeout(WAIT_SECONDS):
            assert await reader.read() == b""
        assert net.served.empty()


async def test_temporary_answer_begins_with_first_event_stream_and_cuts_older_connections() -> None:
    temporary = Rule(Answer(404), answer_between=(0.05, 1e9))
    async with network({"websocket": temporary, "events": temporary}) as net:
        websocket, _ = await net.connect(WEBSOCKET, UPGRADED)
        stream, _ = await net.connect(EVENTS, STREAM)
        assert (await websocket.rest(), await stream.rest()) == (b"", b"")
        assert (await net.answer(EVENTS)).head.line.startswith("HTTP/1.1 404 ")


# Flows


async def test_lost_bytes_go_one_way_only() -> None:
    async with network({"websocket": Rule(up=Flow(lost_after=0))}) as net:
        client, server = await net.connect(WEBSOCKET, UPGRADED)
        client.writer.write(b"up")
        server.writer.write(b"down")
        assert await client.read(4) == b"down"
        client.writer.close()
        assert await server.rest() == b""


@pytest.mark.parametrize("size", [0, 3])
async def test_connection_is_cut_after_number_of_bytes(size: int) -> None:
    async with network({"websocket": Rule(up=Flow(cut_after_bytes=size))}) as net:
        client, server = await net.connect(WEBSOCKET, UPGRADED)
        client.writer.write(b"abc"[:size])
        assert await server.read(size) == b"abc"[:size]
        client.writer.write(b"d")
        assert (await client.rest(), await server.rest()) == (b"", b"")


@pytest.mark.parametrize("rule", [Rule(cut_after=0.05), Rule(cut_idle=0.05)])
async def test_connection_is_cut_after_time(rule: Rule) -> None:
    async with network({"websocket": rule}) as net:
        reader, _ = await net.request(WEBSOCKET)
        server = await net.served.get()
        assert await server.rest() == b""
        async with asyncio.timeout(WAIT_SECONDS):
            assert await reader.read() == b""


async def test_held_bytes_wait_for_more() -> None:
    async with network({"websocket": Rule(down=Flow(hold_bytes=len(UPGRADED) + 10))}) as net:
        reader, writer = await net.request(WEBSOCKET)
        client, server = Peer(reader, writer, Head("", ())), await net.served.get()
        server.writer.write(UPGRADED + b"12345")
        await client.is_silent()
        server.writer.write(b"67890")
        assert (await client.read(len(UPGRADED) + 10)).endswith(b"1234567890")
        server.writer.write(b"the rest")
        await client.is_silent()
        server.writer.close()
        assert await client.rest() == b"the rest"


@pytest.mark.parametrize(
    "flow", [Flow(delay=0.05), Flow(flush_every=0.05), Flow(piece_bytes=3), Flow(bytes_per_second=2000)]
)
async def test_slow_flow_loses_and_reorders_nothing(flow: Flow) -> None:
    async with network({"websocket": Rule(up=flow, down=flow)}) as net:
        client, server = await net.connect(WEBSOCKET, UPGRADED)
        for source, target in ((client, server), (server, client)):
            for number in range(5):
                source.writer.write(b"%d" % number * 10)
                await source.writer.drain()
            assert await target.read(50) == b"".join(b"%d" % number * 10 for number in range(5))
        server.writer.write(b"last")
        server.writer.close()
        assert await client.rest() == b"last"


async def test_upstream_connection_may_outlive_client() -> None:
    async with network({"events": Rule(keeps_upstream=True)}) as net:
        client, server = await net.connect(EVENTS, STREAM)
        client.writer.close()
        await client.writer.wait_closed()
        await server.is_silent()


# Content


async def stream(net: Network, head: bytes, *events: bytes) -> tuple[Head, bytes]:
    """Return an event stream as the client gets it."""
    client, server = await net.connect(EVENTS, head)
    for event in events:
        server.writer.write(chunk(event))
    server.writer.write(chunk(b""))
    server.writer.close()
    return client.head, await client.rest()


async def test_flushed_compression_delivers_each_event() -> None:
    async with network({"events": Rule(compress="flushed")}) as net:
        client, server = await net.connect(EVENTS, STREAM)
        assert client.head.get("content-encoding") == "gzip"
        unpacker = zlib.decompressobj(31)
        for event in (b"data: 1\n\n", b"data: 2\n\n"):
            server.writer.write(chunk(event))
            async with asyncio.timeout(WAIT_SECONDS):
                size = int(await client.reader.readline(), 16)
                assert unpacker.decompress(await client.reader.readexactly(size)) == event
                await client.reader.readline()


@pytest.mark.parametrize(("compress", "head"), [("whole", STREAM), ("always", STREAM), ("always", KEPT)])
async def test_compression_without_flush_delivers_events_at_end(compress: str, head: bytes) -> None:
    async with network({"events": Rule(compress=compress, framing="close")}) as net:  # type: ignore[arg-type]
        received, body = await stream(net, head, b"data: 1\n\n", b"data: 2\n\n")
        assert received.get("content-encoding") == "gzip"
        assert zlib.decompress(body, 31) == b"data: 1\n\ndata: 2\n\n"


@pytest.mark.parametrize("compress", ["whole", "flushed"])
async def test_compression_respects_no_transform(compress: str) -> None:
    async with network({"events": Rule(compress=compress)}) as net:  # type: ignore[arg-type]
        received, body = await stream(net, KEPT, b"data: 1\n\n")
        assert received.get("content-encoding") == ""
        assert body == chunk(b"data: 1\n\n") + chunk(b"")


async def test_event_stream_without_chunks_ends_with_connection() -> None:
    async with network({"events": Rule(framing="close")}) as net:
        received, body = await stream(net, STREAM, b"data: 1\n\n", b"data: 2\n\n")
        assert received.get("transfer-encoding") == ""
        assert body == b"data: 1\n\ndata: 2\n\n"


async def test_event_stream_may_come_byte_by_byte() -> None:
    async with network({"events": Rule(framing="bytes")}) as net:
        _, body = await stream(net, STREAM, b"ab", b"c")
        assert body == b"".join(map(chunk, (b"a", b"b", b"c", b"")))


async def test_padding_is_one_comment_before_first_event() -> None:
    async with network({"events": Rule(padding=3, framing="close")}) as net:
        _, body = await stream(net, STREAM, b"data: 1\n\n", b"data: 2\n\n")
        assert body == b":   \n\ndata: 1\n\ndata: 2\n\n"


# Heads


async def test_headers_are_removed_and_written_in_lower_case() -> None:
    rewrite = Rewrite(remove=("origin",), lower_case=True, forwarded=False)
    async with network({"events": Rule(rewrite=rewrite)}) as net:
        client, server = await net.connect(EVENTS, STREAM)
        assert server.head.headers == (("host", "app:1"), ("connection", "close"))
        assert client.head.headers[0] == ("content-type", "text/event-stream")


async def test_host_may_be_that_of_server() -> None:
    async with network({"events": Rule(rewrite=Rewrite(own_host=True))}) as net:
        _, server = await net.connect(EVENTS, STREAM)
        assert server.head.get("host").startswith("127.0.0.1:")
        assert server.head.get("x-forwarded-host") == "app:1"


async def test_both_heads_may_become_http10() -> None:
    async with network({"events": Rule(rewrite=Rewrite(as_http10=True))}) as net:
        client, server = await net.connect(EVENTS, STREAM)
        assert server.head.line.endswith(" HTTP/1.0")
        assert client.head.line == "HTTP/1.0 200 OK"


async def test_long_head_is_refused() -> None:
    size = len(EVENTS) + 2
    async with network({"events": Rule(rewrite=Rewrite(max_bytes=size))}) as net:
        await net.connect(EVENTS, STREAM)
        client = await net.answer(f"{EVENTS}X: 1\r\n")
        assert client.head.line.startswith("HTTP/1.1 431 ")
