"""A proxy of our own that can refuse, cut, swallow, hold back, delay, limit and rewrite each kind of request."""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable

from ..harness.tcp_server import TcpServer
from .http_heads import READ_BYTES, Head, kind_of, read_chunk
from .rules import Answer, Rule, Rules
from .stages import Compress, CutError, Frame, Output, Pad, Stage, treatment

__all__ = ["Middlebox"]

_POLL_SECONDS = 0.1
_HOP_BY_HOP = ("connection", "keep-alive")
_TOO_LARGE = Answer(431)
_CONNECTION_ERRORS = (CutError, OSError, ValueError, asyncio.IncompleteReadError)


class Middlebox(TcpServer):
    """A proxy to another port of this machine. Each of its connections carries one request."""

    def __init__(self, target: int, rules: Rules) -> None:
        super().__init__()
        self._target = target
        self._rules = rules
        self._first_stream: float | None = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(*_CONNECTION_ERRORS):
                request = await Head.read(reader)
                kind = kind_of(request)
                rule = self._rules.get(kind, Rule())
                if kind == "events" and self._first_stream is None:
                    self._first_stream = time.monotonic()
                if rule.swallow:
                    await _read_all(reader)
                elif answer := self._answer(request, rule):
                    await _respond(writer, request, answer)
                else:
                    await self._forward(request, rule, reader, writer)
        finally:
            writer.close()

    def _answer(self, request: Head, rule: Rule) -> Answer | None:
        """Return the proxy's own answer to a request, if it gives one now."""
        if 0 < rule.rewrite.max_bytes < request.size:
            return _TOO_LARGE
        answer = rule.answer
        if answer is None:
            return None
        if rule.answer_between is not None:
            begin, end = rule.answer_between
            if not begin <= self._seconds < end:
                return None
        # A redirect to another host isn't repeated there.
        location = _location(answer, request)
        return None if location.startswith(f"http://{request.get('host')}/") else answer

    @property
    def _seconds(self) -> float:
        """Seconds since the first request for an event stream."""
        return 0.0 if self._first_stream is None else time.monotonic() - self._first_stream

    async def _forward(
        self, request: Head, rule: Rule, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        link = _Link(rule, self._target, Output(server_writer), Output(writer))
        try:
            await link.run(request, reader, server_reader, self._interruption(rule))
        finally:
            server_writer.close()

    def _interruption(self, rule: Rule) -> Callable[[], float]:
        """Return a function for the seconds until the proxy answers by itself, which cuts older connections."""
        begin = math.inf if rule.answer_between is None else rule.answer_between[0]
        if self._seconds >= begin:
            begin = math.inf
        return lambda: begin - self._seconds


class _Link:
    """One request and its response."""

    def __init__(self, rule: Rule, target: int, to_server: Output, to_client: Output) -> None:
        self._rule = rule
        self._target = target
        self._outputs = (to_server, to_client)
        self._to_server = to_server
        self._up = treatment(rule.up, to_server)
        self._down = treatment(rule.down, to_client)

    async def run(
        self,
        request: Head,
        reader: asyncio.StreamReader,
        server_reader: asyncio.StreamReader,
        seconds_left: Callable[[], float],
    ) -> None:
        """Forward the request and its response until one side closes the connection, or the rule cuts it."""
        await self._to_server.write(bytes(self._forwarded(request)))
        up = asyncio.create_task(_until_error(self._copy_request(reader)))
        down = self._drain_response(server_reader) if self._rule.keeps_upstream else self._copy_response(server_reader)
        others = {asyncio.create_task(_until_error(down)), asyncio.create_task(self._cut(seconds_left))}
        try:
            awaited = others if self._rule.keeps_upstream else {up, *others}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._up.stop()
            self._down.stop()
            for task in (up, *others):
                task.cancel()
            await asyncio.wait({up, *others})

    async def _copy_request(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(READ_BYTES):
            await self._up.write(data)

    async def _copy_response(self, reader: asyncio.StreamReader) -> None:
        head = await Head.read(reader)
        changes = head.is_chunked_event_stream and self._changes(head)
        await self._down.write(bytes(self._returned(head, changed=changes)))
        if not changes:
            while data := await reader.read(READ_BYTES):
                await self._down.write(data)
            await self._down.end()
            return
        stage: Stage = Frame(self._down, self._rule.framing)
        if self._compresses(head):
            stage = Compress(stage, flushed=self._rule.compress == "flushed")
        if self._rule.padding:
            stage = Pad(stage, self._rule.padding)
        while content := await read_chunk(reader):
            await stage.write(content)
        await stage.end()

    async def _drain_response(self, reader: asyncio.StreamReader) -> None:
        """Read the response to its end, even if the client has closed its connection."""
        await _until_error(self._copy_response(reader))
        await _read_all(reader)

    def _changes(self, head: Head) -> bool:
        rule = self._rule
        return self._compresses(head) or bool(rule.padding) or rule.framing != "kept"

    def _compresses(self, head: Head) -> bool:
        kept = "no-transform" in head.get("cache-control")
        return self._rule.compress == "always" or bool(self._rule.compress and not kept)

    def _forwarded(self, request: Head) -> Head:
        """Return the head of the request as the server gets it."""
        rewrite = self._rule.rewrite
        host = request.get("host")
        head = request.without(*rewrite.remove)
        if rewrite.as_http10:
            head = head._replace(line=head.line.replace("HTTP/1.1", "HTTP/1.0"))
        if not head.is_upgrade:
            head = head.without(*_HOP_BY_HOP).extended(("Connection", "close"))
        if rewrite.own_host:
            head = head.without("host").extended(("Host", f"127.0.0.1:{self._target}"))
        if rewrite.forwarded:
            forwarded = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": host}
            head = head.extended(*forwarded.items())
        return head.lower_case() if rewrite.lower_case else head

    def _returned(self, head: Head, *, changed: bool) -> Head:
        """Return the head of the response as the client gets it."""
        rewrite = self._rule.rewrite
        if changed and self._rule.framing == "close":
            head = head.without("transfer-encoding")
        if changed and self._compresses(head):
            head = head.extended(("Content-Encoding", "gzip"))
        if not head.is_upgrade:
            head = head.without(*_HOP_BY_HOP).extended(("Connection", "close"))
            if rewrite.as_http10:
                head = head._replace(line=head.line.replace("HTTP/1.1", "HTTP/1.0"))
        return head.lower_case() if rewrite.lower_case else head

    async def _cut(self, seconds_left: Callable[[], float]) -> None:
        """Wait until the connection must be cut."""
        begin = time.monotonic()
        while seconds_left() > 0:
            now = time.monotonic()
            if self._rule.cut_after is not None and now - begin >= self._rule.cut_after:
                return
            idle = now - max(output.last_write for output in self._outputs)
            if self._rule.cut_idle is not None and idle >= self._rule.cut_idle:
                return
            await asyncio.sleep(_POLL_SECONDS)


async def _until_error(work: Awaitable[None]) -> None:
    """Wait for the end of the work, which is also an error of a connection."""
    with contextlib.suppress(*_CONNECTION_ERRORS):
        await work


async def _read_all(reader: asyncio.StreamReader) -> None:
    while await reader.read(READ_BYTES):
        pass


def _location(answer: Answer, request: Head) -> str:
    _, path, _ = request.line.split(" ")
    return answer.location.format(port=request.get("host").rpartition(":")[2], path=path)


async def _respond(writer: asyncio.StreamWriter, request: Head, answer: Answer) -> None:
    headers = [("Content-Type", "text/html"), ("Content-Length", str(len(answer.body))), ("Connection", "close")]
    if answer.location:
        headers.append(("Location", _location(answer, request)))
    writer.write(bytes(Head(f"HTTP/1.1 {answer.status} Middlebox", tuple(headers))))
    if not request.line.startswith("HEAD "):
        writer.write(answer.body.encode())
    await writer.drain()
