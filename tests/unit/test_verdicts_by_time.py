"""A check that no test passes or fails by elapsed time, which depends on the load of the machine.

The tests of this folder run in an event loop that never waits, so that sleeping there is exact and costs no time. Other
tests wait for a fact, or hold the clock.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import indent
from typing import NamedTuple, TypeAlias

import pytest

TESTS = Path(__file__).parents[1]
FILES = {path.relative_to(TESTS).as_posix(): path for path in TESTS.rglob("*.py") if "node_modules" not in path.parts}
LEAPING = "unit/"

GUARD = "It ends what hangs, after a minute or more."
FROZEN = "Time has to pass for a process that is stopped; more of it changes nothing."
ALLOWED = {
    ("support/bridge.py", "until"): GUARD,
    ("support/bridge.py", "wait_until"): GUARD,
    ("support/bridge.py", "_pause"): "A pause between two looks at a fact.",
    ("support/client.py", "true"): GUARD,
    ("support/clock.py", "forward_until"): GUARD,
    ("support/clock.py", "moment"): "A pause between two looks at a fact.",
    ("support/docs.py", "pause"): "A pause between two looks at a fact.",
    ("support/server_model.py", "_step"): "The event loop never waits.",
    ("support/page.py", "publish"): "A pace, of which only the number of messages matters.",
    ("browser/test_client.py", "test_frozen_page_loses_no_messages"): FROZEN,
    ("browser/test_client.py", "test_client_detects_connection_that_died_while_page_was_frozen"): FROZEN,
    ("unit/test_clock.py", "scene"): "The clock is held.",
}
"""Functions that may do it, each with the reason."""

CLOCKS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
SLEEPS = {"sleep", "wait_for_timeout"}
SHORTEST_LIMIT = 10
"""Seconds that a busy machine doesn't need for what takes a moment."""
SHORTEST_GUARD = 300

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)


class Finding(NamedTuple):
    function: str
    line: int
    kind: str


class Module:
    """The functions of a module, and what in them depends on elapsed time."""

    def __init__(self, source: str, *, leaping: bool) -> None:
        tree = ast.parse(source)
        self._leaping = leaping
        self._nodes = list(ast.walk(tree))
        self._parents: dict[ast.AST, ast.AST] = {}
        self._functions: dict[ast.AST, Function | None] = {tree: None}
        for node in self._nodes:
            for child in ast.iter_child_nodes(node):
                self._parents[child] = node
                self._functions[child] = child if isinstance(child, Function) else self._functions[node]
        self._timed: set[ast.AST] = set()
        """Expressions that contain a time of a clock."""
        self._known: set[tuple[Function | None, str]] = set()
        """Variables that hold a time, and functions that return one, by the function that they belong to."""
        while self._spread():
            pass

    def findings(self) -> Iterator[Finding]:
        for node in self._nodes:
            if kind := self._kind(node):
                function = self._functions[node]
                yield Finding("" if function is None else function.name, getattr(node, "lineno", 0), kind)

    def _kind(self, node: ast.AST) -> str | None:
        match node:
            case ast.Compare() if node in self._timed and self._measures(node):
                return "compares a time"
            case ast.Call() if self._sleeps(node):
                return "waits for time to pass"
            case ast.Call() if self._is_short_limit(node):
                return "has a short limit"
        return None

    def _measures(self, node: ast.Compare) -> bool:
        """Return True unless it only compares for equality, as with a time that was handed over."""
        ordered = any(isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops)
        return ordered or any(
            (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub) and part in self._timed)
            or (isinstance(part, ast.Attribute) and part.attr == "approx")
            for part in ast.walk(node)
        )

    def _spread(self) -> bool:
        """Follow the times from expressions to variables and back; return True if one got further."""
        before = len(self._timed)
        for node in self._nodes:
            if (isinstance(node, ast.Call) and self._is_clock(node)) or (
                isinstance(node, ast.Name) and self._is_known(node)
            ):
                self._mark(node)
        for node in self._nodes:
            targets: list[ast.expr] = []
            value: ast.expr | None = None
            match node:
                case ast.Assign(targets=targets, value=value):
                    pass
                case (
                    ast.AnnAssign(target=target, value=value)
                    | ast.AugAssign(target=target, value=value)
                    | ast.NamedExpr(target=target, value=value)
                    | ast.For(target=target, iter=value)
                    | ast.comprehension(target=target, iter=value)
                    | ast.Call(func=ast.Attribute(value=ast.Name() as target, attr="append"), args=[value])
                ):
                    targets = [target]
                case ast.Return(value=value) if value in self._timed:
                    function = self._functions[node]
                    assert function is not None
                    self._known.add((self._functions[self._parents[function]], function.name))
            if value in self._timed:
                names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
                self._known.update((self._functions[node], name) for name in names)
        return len(self._timed) > before

    def _is_clock(self, call: ast.Call) -> bool:
        match call.func:
            case ast.Attribute(value=ast.Name(id="time"), attr=name) | ast.Name(id=name):
                return name in CLOCKS
            case ast.Attribute(attr="time"):
                return not call.args and not self._leaping
        return False

    def _is_known(self, name: ast.Name) -> bool:
        """Return True if the name is a time, here or in an enclosing function."""
        function = self._functions[name]
        while function is not None:
            if (function, name.id) in self._known:
                return True
            function = self._functions[self._parents[function]]
        return (None, name.id) in self._known

    def _mark(self, node: ast.AST) -> None:
        while not isinstance(node, ast.stmt) and node not in self._timed:
            self._timed.add(node)
            node = self._parents[node]

    def _sleeps(self, call: ast.Call) -> bool:
        """Return True if the call sleeps, unless in a loop that waits for a fact."""
        match call.func:
            case ast.Attribute(value=value, attr=name) if name in SLEEPS:
                owner = ast.unparse(value)
            case _:
                return False
        if owner not in ("asyncio", "time") and name == "sleep":
            return False
        if (self._leaping and owner == "asyncio") or not call.args or ast.unparse(call.args[0]) == "0":
            return False
        node: ast.AST = call
        while not isinstance(node, SCOPES):
            if isinstance(node, ast.While) or (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("task")):
                return False
            node = self._parents[node]
        return True

    def _is_short_limit(self, call: ast.Call) -> bool:
        name = ast.unparse(call.func).rpartition(".")
        limits = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
        if name[2] in ("timeout", "limit"):
            limits += call.args[:1]
        elif name[2] == "wait_for":
            limits += call.args[1:2]
        elif name[2] in ("settings", "register_profile"):
            return any(keyword.arg == "deadline" and ast.unparse(keyword.value) != "None" for keyword in call.keywords)
        if name[0] == "pytest.mark":
            return any(0 <= number_of(limit) < SHORTEST_GUARD for limit in limits)
        if self._leaping or self._must_be_exceeded(call):
            return False
        return any(0 < number_of(limit) < SHORTEST_LIMIT for limit in limits)

    def _must_be_exceeded(self, node: ast.AST) -> bool:
        """Return True if the statement fails unless the limit is exceeded."""
        while not isinstance(node := self._parents[node], SCOPES):
            if isinstance(node, ast.With) and "pytest.raises(" in (text := ast.unparse(node.items[0])):
                return "Timeout" in text
        return False


def number_of(node: ast.expr) -> float:
    """Return the value of a number in the source, and -1 for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    return -1.0


FOUND = [
    "started = time.monotonic(); work(); assert time.monotonic() - started < 2",
    "assert time.perf_counter() - began < 2",
    "started = time.time(); took = time.time() - started; assert took == pytest.approx(3)",
    "loop = asyncio.get_running_loop(); at = loop.time(); assert loop.time() < at + 1",
    "times = []; times.append(time.monotonic()); assert all(b - a < 1 for a, b in pairwise(times))",
    "end = time.monotonic() + 1\nwhile time.monotonic() < end: count += 1",
    "def took(): return time.monotonic() - started\nassert took() < 5",
    "if time.monotonic() - started > 5: raise AssertionError",
    "time.sleep(1); assert not done",
    "await asyncio.sleep(0.5); assert not client.messages",
    "for _ in range(5): await asyncio.sleep(0.2)",
    "page.wait_for_timeout(1500)",
    "async with asyncio.timeout(2): await client.frame()",
    "await asyncio.wait_for(done.wait(), 0.5)",
    "with pytest.raises(ValueError): await asyncio.wait_for(fail(), 0.5)",
    "process.wait(timeout=5)",
    "@settings(deadline=200)\ndef property(): pass",
    "@pytest.mark.timeout(20)\ndef test(): pass",
]
PASSED = [
    "await until(lambda: client.messages)",
    "while not fact(): await asyncio.sleep(0.05)",
    "await asyncio.sleep(0); time.sleep(0)",
    "expires = time.time() + 60; assert session.expires_at == expires",
    "async with asyncio.timeout(WAIT_SECONDS): await client.frame()",
    "with pytest.raises(TimeoutError): await asyncio.wait_for(transport.wait_closed(), 0.05)",
    "waiting = asyncio.create_task(asyncio.sleep(60))",
    "connect(timeout=None); connect(timeout=60)",
    "@settings(deadline=None)\ndef property(): pass",
    "@pytest.mark.timeout(600)\ndef test(): pass",
]


@cache
def findings(name: str) -> set[Finding]:
    return set(Module(FILES[name].read_text(), leaping=name.startswith(LEAPING)).findings())


@pytest.mark.parametrize("name", FILES)
def test_no_test_depends_on_elapsed_time(name: str) -> None:
    assert {found for found in findings(name) if (name, found.function) not in ALLOWED} == set()


def test_every_exception_is_needed() -> None:
    assert {(name, found.function) for name in FILES for found in findings(name)} >= ALLOWED.keys()


def inspect(sample: str, *, leaping: bool = False) -> set[str]:
    source = "async def test():\n" + indent(sample, "    ")
    return {found.kind for found in Module(source, leaping=leaping).findings()}


@pytest.mark.parametrize("sample", FOUND)
def test_check_finds_time_dependence(sample: str) -> None:
    assert inspect(sample)


@pytest.mark.parametrize("sample", PASSED)
def test_check_accepts_time_independent_code(sample: str) -> None:
    assert not inspect(sample)


def test_check_allows_exact_times_in_leaping_event_loop() -> None:
    exact = "loop = asyncio.get_running_loop(); at = loop.time(); await asyncio.sleep(60); assert loop.time() - at < 61"
    assert not inspect(exact, leaping=True)
    assert inspect(exact) == {"compares a time", "waits for time to pass"}
    assert inspect("time.sleep(1)", leaping=True)
