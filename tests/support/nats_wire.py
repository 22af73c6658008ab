"""The bytes that a bridge writes to NATS: a proxy that records them, and a reader that accepts nothing unusual.

The reader shares no code with the bridge. A line end that a client has smuggled into a subject or a header becomes a
line that the protocol doesn't have, or a message that no client has sent.
"""

import asyncio
import re
from collections.abc import Iterator
from typing import NamedTuple

from sanic_nats_bridge.testing import NatsServer
from tests.support.nats import Proxy

__all__ = ["RecordingProxy", "Sent", "read_sent"]

# nats-py, which other parts of the bridge use, writes two spaces if there is no subject for answers.
_TOKENS = rb"[!-)+-=?-~]+"
_LINE = re.compile(
    rb"(?P<plain>PING|PONG|CONNECT \{[^\r\n]*\}|SUB [!-~]+(?: [!-~]+)? \d+|UNSUB \d+(?: \d+)?)"
    rb"|PUB (?P<subject>%b)(?: (?P<reply>%b)?)? (?P<size>\d+)"
    rb"|HPUB (?P<hsubject>%b)(?: (?P<hreply>%b)?)? (?P<hlength>\d+) (?P<hsize>\d+)" % ((_TOKENS,) * 4)
)


class Sent(NamedTuple):
    """A message that the bridge has published."""

    subject: str
    reply: str
    headers: list[tuple[str, bytes]]
    payload: bytes


class RecordingProxy(Proxy):
    """A proxy that keeps what the client writes, for each connection."""

    def __init__(self, server: NatsServer) -> None:
        super().__init__(server)
        self.connections: list[bytearray] = []

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, changed: Proxy | None) -> None:
        if changed is not None:
            await super()._pump(source, target, changed)
            return
        kept = bytearray()
        self.connections.append(kept)
        try:
            while data := await source.read(65_536):
                kept += data
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass

    def sent(self) -> list[Sent]:
        """Return the messages that the bridge has sent for its clients or its app."""
        return [
            message
            for kept in self.connections
            for message in read_sent(bytes(kept))
            if not message.subject.startswith("_NATSBRIDGE.")
        ]


def read_sent(data: bytes) -> Iterator[Sent]:
    """Yield the messages in what a client of NATS has written, up to the last complete one."""
    position = 0
    while (end := data.find(b"\r\n", position)) >= 0:
        line = _LINE.fullmatch(data, position, end)
        assert line is not None, data[position:end][:300]
        position = end + 2
        if line["plain"] is not None:
            continue
        size = int(line["hsize"] or line["size"])
        body = data[position : position + size + 2]
        if len(body) < size + 2:
            return
        assert body.endswith(b"\r\n"), body[-100:]
        position += size + 2
        length = int(line["hlength"] or 0)
        subject, reply = line["hsubject"] or line["subject"], line["hreply"] or line["reply"] or b""
        headers = list(_headers(body[:length])) if length else []
        yield Sent(subject.decode("ascii"), reply.decode("ascii"), headers, body[length:-2])


def _headers(block: bytes) -> Iterator[tuple[str, bytes]]:
    version, *lines, empty, end = block.split(b"\r\n")
    assert (version, empty, end) == (b"NATS/1.0", b"", b""), block
    for line in lines:
        assert not re.search(rb"[\r\n\0]", line), block
        name, colon, value = line.partition(b": ")
        assert colon, block
        assert re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name), block
        yield name.decode(), value
