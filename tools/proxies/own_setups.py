"""Set-ups with a middlebox, each with one habit of those in networks."""

from typing import Any

from .rules import Answer, Flow, Kind, Rewrite, Rule, Rules
from .setup import Setup

__all__ = ["OWN_SETUPS"]

_LOGIN = Answer(200, "<!doctype html><title>Log in</title><form></form>")
_FORBIDDEN = Answer(403, "<!doctype html><title>Blocked</title>")
_NOT_FOUND = Answer(404, "<!doctype html><title>Not found</title>")
_NOT_ALLOWED = Answer(405)
_TO_LOGIN = Answer(302, location="/login")
_TO_OTHER_HOST = Answer(308, location="http://localhost:{port}{path}")

_QUICK = {"heartbeat": 3}
"""Settings for proxies that let streams fall silent, because a client notices that within two heartbeats."""

_REFUSED: Rules = {"websocket": Rule(_FORBIDDEN)}
_BRIDGE: tuple[Kind, ...] = ("websocket", "events", "post", "head")
_DEPLOY = Rule(_NOT_FOUND, answer_between=(3, 6))
_UNCHUNKED_HTTP10 = Rule(framing="close", rewrite=Rewrite(as_http10=True, remove=("upgrade",)))
_ACCEPT = ("accept", "accept-encoding", "cache-control", "pragma")
_ORIGIN = ("origin", "last-event-id", "sec-fetch-site")


def _websocket(name: str, title: str, rule: Rule, **settings: Any) -> Setup:
    return Setup(f"ws-{name}", f"WebSockets: {title}", {"websocket": rule}, settings=settings)


def _post(name: str, title: str, rule: Rule) -> Setup:
    """Return a set-up for clients that can have an event stream only, and so need POST."""
    return Setup(f"post-{name}", f"WebSockets refused; POSTs: {title}", {**_REFUSED, "post": rule})


def _events(name: str, title: str, rule: Rule, **settings: Any) -> Setup:
    return Setup(
        f"sse-{name}", f"WebSockets refused; event streams: {title}", {**_REFUSED, "events": rule}, settings=settings
    )


def _every(name: str, title: str, rule: Rule, **settings: Any) -> Setup:
    """Return a set-up with a rule for all requests to the bridge."""
    return Setup(name, f"all of the bridge's routes: {title}", dict.fromkeys(_BRIDGE, rule), settings=settings)


OWN_SETUPS = (
    Setup("pass", "passes everything", {}),
    _websocket("403", "403", Rule(_FORBIDDEN)),
    _websocket("login", "a login page", Rule(_LOGIN)),
    _websocket("swallowed", "never answered", Rule(swallow=True)),
    _websocket("plain", "passed as plain GET", Rule(rewrite=Rewrite(remove=("upgrade", "connection")))),
    _websocket("up-lost", "passed down, not up", Rule(up=Flow(lost_after=0))),
    _websocket("up-cut", "cut at the client's first frame", Rule(up=Flow(cut_after_bytes=0))),
    _websocket("silent", "silent after 6 s", Rule(down=Flow(lost_after=6)), **_QUICK),
    _websocket("cut-2s", "cut after 2 s", Rule(cut_after=2)),
    _websocket("cut-bytes", "cut after 2,000 bytes", Rule(down=Flow(cut_after_bytes=2000))),
    _websocket("held", "4 KiB collected", Rule(down=Flow(hold_bytes=4096))),
    _websocket("flushed", "forwarded every 2 s", Rule(down=Flow(flush_every=2))),
    _websocket("late", "delayed by 4 s", Rule(down=Flow(delay=4))),
    _post("403", "403", Rule(_FORBIDDEN)),
    _post("404", "404", Rule(_NOT_FOUND)),
    _post("login", "a login page", Rule(_LOGIN)),
    _post("redirect", "redirected to a login page", Rule(_TO_LOGIN)),
    _post("swallowed", "never answered", Rule(swallow=True)),
    _post("cut", "cut", Rule(cut_after=0)),
    _post("late", "answered after 10 s", Rule(down=Flow(delay=10))),
    Setup("head-405", "WebSockets refused; HEAD: 405", {**_REFUSED, "head": Rule(_NOT_ALLOWED)}),
    Setup(
        "head-403-login",
        "WebSockets refused; HEAD: 403; event streams: a login page from 3 s to 6 s, cut before",
        {**_REFUSED, "head": Rule(_FORBIDDEN), "events": Rule(_LOGIN, answer_between=(3, 6))},
    ),
    Setup("events-403", "event streams and HEAD: 403", dict.fromkeys(("events", "head"), Rule(_FORBIDDEN))),
    Setup("events-login", "event streams: a login page", {"events": Rule(_LOGIN)}),
    Setup("events-swallowed", "event streams: never answered", {"events": Rule(swallow=True)}),
    _events("403", "403", Rule(_FORBIDDEN)),
    _events("login", "a login page", Rule(_LOGIN)),
    _events("held", "held until their end", Rule(down=Flow(hold_bytes=2**30))),
    _events("held-4k", "4 KiB collected", Rule(down=Flow(hold_bytes=4096))),
    _events("flushed", "forwarded every 2 s", Rule(down=Flow(flush_every=2))),
    _events("gzip", "compressed without a flush, unless marked `no-transform`", Rule(compress="whole")),
    _events("gzip-always", "compressed without a flush", Rule(compress="always")),
    _events("gzip-flushed", "compressed with a flush for each event", Rule(compress="flushed")),
    _events("silent", "silent after 6 s", Rule(down=Flow(lost_after=6)), **_QUICK),
    _events("cut-14s", "cut after 14 s", Rule(cut_after=14)),
    _events("cut-idle", "cut after 8 s without an event", Rule(cut_idle=8)),
    _events("cut-bytes", "cut after 3,000 bytes", Rule(down=Flow(cut_after_bytes=3000))),
    _events("padded", "after a comment of 8 KiB", Rule(padding=8192)),
    _events("byte-chunks", "a chunk for each byte", Rule(framing="bytes")),
    _events("unchunked", "no chunks", Rule(framing="close")),
    _events("unread", "read on after the browser has closed them", Rule(keeps_upstream=True)),
    Setup(
        "cut-2s-6s",
        "WebSockets: cut after 2 s; event streams: cut after 6 s",
        {"websocket": Rule(cut_after=2), "events": Rule(cut_after=6)},
    ),
    _every("cut-14s", "cut after 14 s", Rule(cut_after=14)),
    _every("cut-idle", "cut after 8 s without a byte", Rule(cut_idle=8)),
    _every("silent", "silent after 6 s", Rule(down=Flow(lost_after=6)), **_QUICK),
    _every("deploy", "404 from 3 s to 6 s, cut before", _DEPLOY),
    Setup("deploy-sse", "the same, WebSockets refused", {**dict.fromkeys(_BRIDGE, _DEPLOY), **_REFUSED}),
    _every("late", "delayed by 1 s in each direction", Rule(up=Flow(delay=1), down=Flow(delay=1))),
    _every("slow", "3,000 bytes per second", Rule(down=Flow(bytes_per_second=3000))),
    _every("pieces", "a few bytes at a time", Rule(up=Flow(piece_bytes=3), down=Flow(piece_bytes=7))),
    _every("http10", "HTTP/1.0", _UNCHUNKED_HTTP10),
    _every("lower-case", "headers in lower case", Rule(rewrite=Rewrite(lower_case=True))),
    _every("head-limit", "431 for heads of more than 1 KiB", Rule(rewrite=Rewrite(max_bytes=1024))),
    _every("no-accept", "without Accept and Cache-Control", Rule(rewrite=Rewrite(remove=_ACCEPT))),
    _every("no-origin", "without Origin, Last-Event-ID, Sec-Fetch-Site", Rule(rewrite=Rewrite(remove=_ORIGIN))),
    _every("no-forwarded", "without X-Forwarded headers", Rule(rewrite=Rewrite(forwarded=False))),
    _every("host", "the server's own Host, X-Forwarded-Host", Rule(rewrite=Rewrite(own_host=True))),
    _every(
        "host-alone",
        "the server's own Host, no X-Forwarded headers",
        Rule(rewrite=Rewrite(own_host=True, forwarded=False)),
    ),
    _every("other-host", "redirected to another host name", Rule(_TO_OTHER_HOST)),
    _every("login", "redirected to a login page", Rule(_TO_LOGIN)),
    Setup("tabs", "WebSockets refused; eight tabs over HTTP/1.1", _REFUSED, tabs=8),
)
