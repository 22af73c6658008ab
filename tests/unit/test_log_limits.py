import ast
import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import sanic_nats_bridge
from sanic_nats_bridge.log_limits import LINES, SECONDS, LimitedLogger, limited_logger

ROOT = Path(sanic_nats_bridge.__file__).parent

CAUSED_BY_OPERATOR = {
    ("extension", "NatsBridge setting 'subscribe' is empty: no subject may be followed"),
    (
        "runtime",
        (
            "The workers cannot share their metrics. /metrics of a server with several workers has those "
            "of one of them at a time: %s"
        ),
    ),
}
"""The lines without a limit. Each is logged once for each app of a process, while the app is built."""

METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limited(clock: Clock, caplog: pytest.LogCaptureFixture) -> LimitedLogger:
    caplog.set_level(logging.INFO, "test.limits")
    return LimitedLogger(logging.getLogger("test.limits"), clock)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


async def test_lines_beyond_the_limit_are_counted_and_reported_by_the_next_one(
    limited: LimitedLogger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(LINES + 7):
        limited.warning("Lost %d of %s", number, "x")
    assert lines(caplog) == [f"Lost {number} of x" for number in range(LINES)]
    caplog.clear()
    clock.now += SECONDS
    limited.warning("Lost %d of %s", 99, "x")
    assert lines(caplog) == ["Suppressed 7 log lines within 60 s, like: Lost … of …", "Lost 99 of x"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_suppressed_lines_are_reported_at_the_end_of_the_period_without_another_line(
    limited: LimitedLogger, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(LINES + 3):
        limited.error("Failed")
    caplog.clear()
    await asyncio.sleep(SECONDS + 1)
    assert lines(caplog) == ["Suppressed 3 log lines within 60 s, like: Failed"]
    await asyncio.sleep(10 * SECONDS)
    assert len(caplog.records) == 1


def test_lines_are_limited_without_event_loop(
    limited: LimitedLogger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(LINES + 3):
        limited.info("Failed")
    clock.now += SECONDS
    limited.info("Failed")
    assert lines(caplog)[LINES:] == ["Suppressed 3 log lines within 60 s, like: Failed", "Failed"]


async def test_kinds_of_lines_have_separate_limits(limited: LimitedLogger, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(1000):
        limited.warning("Lost %s", "x")
    limited.warning("Found %s", "x")
    assert lines(caplog)[-1] == "Found x"


async def test_number_of_kinds_in_memory_is_bounded(limited: LimitedLogger, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10_000):
        limited.warning(f"Lost {number}")
    assert len(limited._kinds) <= 201
    assert len(caplog.records) <= 200 + LINES
    caplog.clear()
    await asyncio.sleep(SECONDS + 1)
    assert lines(caplog) == [f"Suppressed {10_000 - 200 - LINES} log lines within 60 s, like: (lines of many kinds)"]


async def test_lines_below_the_level_use_up_no_limit(limited: LimitedLogger, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(1000):
        limited.debug("Failed")
    limited.warning("Failed")
    assert lines(caplog) == ["Failed"]


async def test_record_has_place_and_traceback_of_its_caller(
    limited: LimitedLogger, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        limited.exception("Failed")
        limited.error("Failed", exc_info=error)
        limited.warning("Failed", exc_info=True)
    limited.warning("Failed")
    assert {record.pathname for record in caplog.records} == {__file__}
    assert {record.funcName for record in caplog.records} == {"test_record_has_place_and_traceback_of_its_caller"}
    assert [bool(record.exc_info) for record in caplog.records] == [True, True, True, False]


def test_logger_of_bridge_is_below_that_of_sanic() -> None:
    assert limited_logger().unlimited.name == "sanic.root.nats_bridge"


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of a method of logging with the source of the object that it belongs to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            yield ast.unparse(node.func.value), node


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if name != "log_limits":
            yield name, ast.parse(path.read_text())


def test_every_log_line_is_limited_or_caused_by_operator_only() -> None:
    found = 0
    unlimited: set[tuple[str, object]] = set()
    for name, tree in modules():
        for owner, call in calls(tree):
            if owner not in ("logger", "logger.unlimited"):
                assert "log" not in owner, f"{name}: {ast.unparse(call)}"
                continue
            found += 1
            message = call.args[0]
            # A message that differs each time would be a kind of its own each time.
            choices = [message.body, message.orelse] if isinstance(message, ast.IfExp) else [message]
            assert all(isinstance(choice, ast.Constant) for choice in choices), f"{name}: {ast.unparse(call)}"
            if owner == "logger.unlimited":
                unlimited.update((name, choice.value) for choice in choices if isinstance(choice, ast.Constant))
    assert found > 30
    assert unlimited == CAUSED_BY_OPERATOR


def test_every_logger_is_the_limited_one() -> None:
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "logger":
                assert ast.unparse(node) == "logger = limited_logger()", name
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "warnings.warn",
                "traceback.print_exc",
            ):
                assert name in ("__main__", "testing"), name
    # The redaction of queries filters the loggers of others, the command line reads one, and both write nothing.
    named = {name for name, tree in modules() if "getLogger" in ast.unparse(tree)}
    assert named == {"__main__", "routes.log_redaction"}
