import pytest

from sanic_nats_bridge.nats.log_limit import LogLimit, printable
from tests.support.clock import leaping


async def test_each_line_is_allowed_once_per_minute() -> None:
    limit = LogLimit()
    assert [limit.allows("a"), limit.allows("b"), limit.allows("a")] == [True, True, False]
    leaping().block(59)
    assert not limit.allows("a")
    leaping().block(1)
    assert [limit.allows("a"), limit.allows("a")] == [True, False]


async def test_lines_beyond_twenty_per_minute_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    limit = LogLimit()
    assert sum(limit.allows(f"{number}") for number in range(1000)) == 20
    assert not caplog.records
    leaping().block(60)
    assert limit.allows("next")
    assert [record.getMessage() for record in caplog.records] == ["980 log lines like the next one were suppressed"]
    assert limit.allows("last")
    assert len(caplog.records) == 1


def test_string_of_server_is_short_and_printable() -> None:
    assert printable("Größe \"a\" 'b'") == "Größe \"a\" 'b'"
    assert printable("a\nb\r\x1b[2J\x00\u2028") == "a\ufffdb\ufffd\ufffd[2J\ufffd\ufffd"
    assert len(printable("x" * 1_000_000)) == 500
