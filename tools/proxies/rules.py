"""The rules of the middlebox: the treatment of each kind of request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["Answer", "Flow", "Framing", "Kind", "Rewrite", "Rule", "Rules"]

Kind: TypeAlias = Literal["websocket", "events", "post", "head", "other"]
"""A handshake of a WebSocket, a GET of the event stream, a POST or HEAD to the bridge, or any other request."""

Framing: TypeAlias = Literal["kept", "bytes", "close"]
"""The framing of an event stream: as it comes, one chunk for each byte, or no chunks, so that the end closes it."""


@dataclass(frozen=True)
class Answer:
    """A response of the proxy itself.

    Attributes:
        location: The address of a redirect. ``{port}`` and ``{path}`` are replaced by those of the request.
    """

    status: int
    body: str = ""
    location: str = ""


@dataclass(frozen=True)
class Flow:
    """The treatment of the bytes in one direction. The head of a request isn't included.

    Attributes:
        lost_after: Seconds after which bytes are lost while the connection stays open; 0 for all of them.
        cut_after_bytes: The number of bytes after which the connection is cut.
        delay: Seconds by which each byte is late.
        hold_bytes: The number of bytes that are collected before any is forwarded.
        flush_every: Seconds between two times at which the collected bytes are forwarded.
        bytes_per_second: The highest rate.
        piece_bytes: The size of the pieces in which bytes are forwarded.
    """

    lost_after: float | None = None
    cut_after_bytes: int | None = None
    delay: float = 0.0
    hold_bytes: int = 0
    flush_every: float = 0.0
    bytes_per_second: int = 0
    piece_bytes: int = 0


@dataclass(frozen=True)
class Rewrite:
    """The changes in the heads of requests and responses.

    Attributes:
        remove: Names of headers, in lower case, that are removed from requests.
        as_http10: Requests and responses become HTTP/1.0.
        lower_case: The names of all headers are written in lower case.
        own_host: The Host header names the server, as the proxy knows it.
        forwarded: The X-Forwarded headers are added.
        max_bytes: The size of the head above which the answer is 431; 0 for no limit.
    """

    remove: tuple[str, ...] = ()
    as_http10: bool = False
    lower_case: bool = False
    own_host: bool = False
    forwarded: bool = True
    max_bytes: int = 0


@dataclass(frozen=True)
class Rule:
    """The treatment of one kind of request.

    Attributes:
        answer: The proxy's own answer. The server gets no request.
        answer_between: Seconds since the proxy's first request for an event stream between which it answers by itself,
            and at whose beginning it cuts the connections. Always, if it is None.
        swallow: The request is read, and never answered.
        up: From the client to the server.
        down: From the server to the client.
        cut_after: Seconds after which the connection is cut.
        cut_idle: Seconds without a byte in either direction after which the connection is cut.
        keeps_upstream: The connection to the server stays open when the client closes its own.
        compress: Event streams are compressed: "whole" without a flush, "flushed" with one for each piece. Streams
            with ``no-transform`` aren't, unless it is "always" (which is without a flush).
        framing: The framing of event streams.
        padding: The size of a comment before the first piece of an event stream.
    """

    answer: Answer | None = None
    answer_between: tuple[float, float] | None = None
    swallow: bool = False
    up: Flow = Flow()
    down: Flow = Flow()
    cut_after: float | None = None
    cut_idle: float | None = None
    keeps_upstream: bool = False
    compress: Literal["", "whole", "flushed", "always"] = ""
    framing: Framing = "kept"
    padding: int = 0
    rewrite: Rewrite = field(default_factory=Rewrite)


Rules: TypeAlias = Mapping[Kind, Rule]
"""The rules of one proxy. Kinds without a rule pass."""
