import asyncio
import logging

import pytest

from sanic_nats_bridge.log_limits import LimitedLogger
from sanic_nats_bridge.nats.line_filter import LineFilter, printable
from tests.support.clock import leaping


async def test_each_line_is_allowed_once_per_minute() -> None:
    limit = LineFilter()
    assert [limit.allows("a"), limit.allows("b"), limit.allows("a")] == [True, True, False]
    leaping().block(59)
    assert not limit.allows("a")
    leaping().block(1)
    assert [limit.allows("a"), limit.allows("a")] == [True, False]


async def test_lines_beyond_twenty_per_minute_are_counted_by_logger(caplog: pytest.LogCaptureFixture) -> None:
    lines, log = LineFilter(), LimitedLogger(logging.getLogger("filtered"), asyncio.get_running_loop().time)

    def note(line: str) -> None:
        if lines.allows(line):
            log.warning("Error: %s", line)

    for number in range(1000):
        note(f"{number}")
        note(f"{number % 50}")
    assert [record.getMessage() for record in caplog.records] == [f"Error: {number}" for number in range(20)]
    leaping().block(60)
    note("0")
    suppressed, last = [record.getMessage() for record in caplog.records[20:]]
    assert suppressed.startswith("Suppressed 980 log lines within 60 s, like: Error: ")
    assert last == "Error: 0"


def test_string_of_server_is_short_and_printable() -> None:
    assert printable("Größe \"a\" 'b'") == "Größe \"a\" 'b'"
    assert printable("a\nb\r\x1b[2J\x00\u2028") == "a\ufffdb\ufffd\ufffd[2J\ufffd\ufffd"
    assert len(printable("x" * 1_000_000)) == 500
