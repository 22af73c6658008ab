"""Event streams that a proxy cuts at random places, and the messages that their pages have got."""

import asyncio
import contextlib
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from urllib.parse import urlencode

from sanic_nats_bridge.protocol.subjects import overlaps
from sanic_nats_bridge.streams.positions import decode_position
from tools.harness.tcp_proxy import READ_BYTES, Proxy, Stream, reset

CUTS: Final = int(os.environ.get("EVENT_STREAM_CUTS", "200"))
"""The number of event streams that are cut, for each browser."""

FOLLOW = """
  window.follow = (queries) => {
    window.streams = queries.map((query) => {
      const got = [], wrong = [];
      const source = new EventSource(`/nats/events?${query}`);
      source.onopen = () => got.push(["open"]);
      source.onerror = () => source.readyState === EventSource.CLOSED && wrong.push("closed");
      source.onmessage = ({ data, lastEventId }) => {
        const { subject, pattern = subject, id, data: number } = JSON.parse(data);
        got.push(["message", pattern, number, id, lastEventId]);
      };
      source.addEventListener("caught_up", ({ data }) => {
        const { position, recovered } = JSON.parse(data);
        got.push(["caught_up", position]);
        if (!recovered) wrong.push(data);
      });
      source.addEventListener("reply", ({ data }) => JSON.parse(data).success || wrong.push(data));
      for (const type of ["gap", "unsubscribed", "close"]) {
        source.addEventListener(type, ({ data }) => wrong.push(data));
      }
      return { got, wrong };
    });
  };
  window.taken = () => streams.map(({ got, wrong }) => [got.splice(0), wrong]);
"""
"""A script with native event streams, and without the browser client."""

EventStart: TypeAlias = Literal["all", "new"]

Moment: TypeAlias = Literal["start", "replay", "live"]
"""Before the first event, before ``caught_up``, or after it."""

_CLIENT = re.compile(rb"GET \S*[?&]client=")
_HEADER_END = b"\r\n\r\n"
_EVENT_END = b"\n\n"
_CAUGHT_UP = b"event: caught_up\n"
_CHUNK_END = b"\r\n"
_HEAD_BYTES = 600
"""About the length of the header and the first event."""
_EVENTS = (1, 2, 3, 5, 20, 100, 300)
_EVENT_BYTES = 200
_START_SHARE = 0.1
_LIVE_SHARE = 0.5


class Place(NamedTuple):
    """The place at which a response is cut."""

    is_live: bool
    """True if the events are counted from ``caught_up`` on."""
    events: int
    more: int
    """The number of bytes after these events."""


class Response:
    """A response that goes through until its place."""

    def __init__(self, place: Place | None) -> None:
        self._place = place
        self._passed = bytearray()
        self._searched = 0
        self._marks = [] if place is None else [_CAUGHT_UP] * place.is_live + [_EVENT_END] * place.events

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """Return what goes through of the next bytes, and whether the response is cut after them."""
        if self._place is None:
            return data, False
        known = len(self._passed)
        self._passed += data
        while self._marks:
            mark = self._marks[0]
            found = self._passed.find(mark, self._searched)
            if found < 0:
                self._searched = max(self._searched, len(self._passed) - len(mark) + 1)
                return data, False
            self._searched = found + len(mark)
            del self._marks[0]
        end = self._searched + self._place.more
        if len(self._passed) < end:
            return data, False
        del self._passed[end:]
        return bytes(self._passed[known:]), True

    @property
    def in_header(self) -> bool:
        """True if it was cut in its header.

        Without a reset, a browser would take the header for complete, and never reconnect if that has no content type.
        """
        return _HEADER_END not in self._passed

    @property
    def kind(self) -> tuple[Moment, bool]:
        """The moment at which it was cut, and whether this was inside an event."""
        text = bytes(self._passed)
        if _EVENT_END not in text:
            return "start", True
        inside = not text.removesuffix(_CHUNK_END).endswith(_EVENT_END)
        return "live" if _CAUGHT_UP in text[: text.rindex(_EVENT_END)] else "replay", inside


class Cuts:
    """The cuts that are left for the proxies of a test, and the kinds of those that were made."""

    def __init__(self, choose: random.Random, count: int) -> None:
        self.kinds: Counter[tuple[Moment, bool]] = Counter()
        self.left = count
        self.choose = choose

    def place(self) -> Place | None:
        """Return a random place for one more response."""
        if not self.left:
            return None
        if self.choose.random() < _START_SHARE:
            return Place(is_live=False, events=0, more=self.choose.randrange(_HEAD_BYTES))
        more = self.choose.choice([0, self.choose.randrange(1, _EVENT_BYTES)])
        return Place(self.choose.random() < _LIVE_SHARE, self.choose.choice(_EVENTS), more)

    def count(self, kind: tuple[Moment, bool]) -> bool:
        """Count a cut, unless there are enough; return whether it was counted."""
        if not self.left:
            return False
        self.left -= 1
        self.kinds[kind] += 1
        return True


class CuttingProxy(Proxy):
    """A proxy before a bridge that cuts the event streams of pages."""

    def __init__(self, target: int, cuts: Cuts) -> None:
        super().__init__(target)
        self._cuts = cuts

    @property
    def url(self) -> str:
        """The address of the proxy."""
        return f"http://127.0.0.1:{self.port}"

    async def _forward(self, client: Stream, target: Stream) -> None:
        response = Response(None)

        async def up() -> None:
            nonlocal response
            with contextlib.suppress(OSError):
                while data := await client.reader.read(READ_BYTES):
                    if _CLIENT.match(data):
                        response = Response(self._cuts.place())
                    target.writer.write(data)
            target.writer.close()

        async def down() -> None:
            nonlocal response
            with contextlib.suppress(OSError):
                while data := await target.reader.read(READ_BYTES):
                    passed, is_cut = response.take(data)
                    client.writer.write(passed)
                    if is_cut and self._cuts.count(response.kind):
                        if response.in_header or self._cuts.choose.random() < 0.5:
                            reset(client.writer.transport)
                        break
                    if is_cut:
                        client.writer.write(data[len(passed) :])
                        response = Response(None)
            client.writer.close()

        await asyncio.gather(up(), down())


class Receiver:
    """The events that one event stream of a page has received. The published numbers are sequences of the stream."""

    def __init__(self, patterns: Sequence[str], start: EventStart) -> None:
        self.patterns = patterns
        self.repeats = 0
        """The number of messages that came again."""
        self.opened = 0
        """The number of connections that the browser has opened."""
        self._start = start
        self._overlap = any(overlaps(*pair) for pair in combinations(patterns, 2))
        self._first: int | None = 1 if start == "all" else None
        self._got: dict[str, list[int]] = {pattern: [] for pattern in patterns}
        self._ids: dict[int, str] = {}
        self._last = self._last_before = 0

    def query(self, client: int) -> str:
        """Return the query of the event stream."""
        start = "new" if self._start == "new" else f'"{self._start}"'
        subjects = [("subjects", pattern) for pattern in self.patterns]
        return urlencode([("client", str(client)), ("from", start), *subjects])

    def note(self, kind: str, *fields: Any) -> None:
        """Note an event of the page; fail if it is a message that came twice, or not in order."""
        if kind == "open":
            self.opened += 1
            self._last_before = self._last
        elif kind == "caught_up":
            if self._first is None:
                self._first = _sequence(fields[0]) + 1
        else:
            self._note_message(*fields)

    def _note_message(self, pattern: str, number: int, message_id: str, line: str) -> None:
        assert _sequence(message_id) == number
        assert self._ids.setdefault(number, message_id) == message_id
        assert (_sequence(line) < number) if self._overlap else (line == message_id), (line, message_id)
        assert number >= self._last, (number, self._last)
        self._last = number
        if self._first is None:
            self._first = number
        got = self._got[pattern]
        if got and number == got[-1]:
            # The last one before the cut may come again, with the same id.
            assert self._overlap
            assert number == self._last_before, number
            self.repeats += 1
        else:
            got.append(number)

    def is_complete(self, expected: Callable[[str], Sequence[int]]) -> bool:
        """Return whether it has the last number of each pattern."""
        return all(got[-1:] == list(expected(pattern)[-1:]) for pattern, got in self._got.items())

    def check(self, expected: Callable[[str], Sequence[int]]) -> None:
        """Fail if a number is missing that was published after it had its first position."""
        first = self._first
        assert first is not None
        for pattern, got in self._got.items():
            due = [number for number in expected(pattern) if number >= first]
            assert got == due, (pattern, first, sorted({*due} - {*got}))


def _sequence(position: str) -> int:
    if not position:
        return 0
    points = decode_position(position)
    assert points is not None
    (point,) = points.values()
    return point.seq
