"""The import directions between the packages, and the places that may use private names of other libraries."""

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

import pytest
from nats.aio.client import Client

import sanic_nats_bridge
from sanic_nats_bridge.nats.compatibility import CLIENT_PARTS

PACKAGE = "sanic_nats_bridge"
ROOT = Path(sanic_nats_bridge.__file__).parent
TESTS = Path(__file__).parents[1]

LEVELS = (
    {"errors", "token_bucket", "concurrency", "compatibility", "log_limits"},
    {"protocol"},
    {"auth", "metrics"},
    {"validators", "hub"},
    {"settings"},
    {"nats", "transports"},
    {"streams", "publishing"},
    {"sessions"},
    {"cluster"},
    {"routes"},
    {"runtime"},
    {"extension"},
    {"__init__"},
)
"""Packages and top-level modules, from the bottom to the top. Each imports from the rows below its own only."""

FREE = {"testing", "__main__"}
"""Modules that may import anything public, and that no other module imports."""

NEVER = {"hub": {"nats", "transports", "sessions"}, "nats": {"hub", "sessions"}, "transports": {"hub", "sessions"},
         "metrics": {"sessions"}, "routes": {"hub", "nats"}}  # fmt: skip
"""Imports that stay forbidden in any order of the rows."""

SANS_IO = {"errors", "token_bucket", "concurrency", "protocol", "auth.permissions", "auth.pattern_lists",
           "auth.exclusions", "auth.policy", "auth.origins", "auth.hosts", "metrics.counters", "metrics.definitions",
           "metrics.stats", "validators", "settings", "nats.parser", "nats.subscription_index", "nats.server_errors",
           "nats.outgoing", "nats.server_info", "nats.server_pool", "publishing.headers", "publishing.payloads",
           "publishing.results", "routes.log_redaction", "streams.answers",
           "streams.last_messages", "streams.positions", "transports.input_limits"}  # fmt: skip
"""Modules, and packages as a whole, that know neither asyncio nor Sanic nor nats-py."""

IMPORTED_BY = {
    "nats": {"nats", "streams.inbox", "cluster.control_channel", "testing", "__main__"},
    "sanic": {"transports", "routes", "runtime", "extension"},
    "sanic_ext": {"routes", "runtime", "extension"},
    "sanic_routing": {"runtime"},
    "prometheus_client": {"routes.metrics"},
}
"""The libraries that only some packages or modules may import."""

FOREIGN_PRIVATE = {
    "transports.sanic": {"_callback_check_timeouts", "_can_write", "_data_received", "_time"},
    "transports.asgi": {"_send"},
    "nats.transport": {"_client"},
}
"""Private names of other libraries by the module that uses them; those of nats-py's client are listed there."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in ROOT.rglob("*.py")}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}
MODULES = [name for name in FILES if FILES[name].name != "__init__.py"]


def within(name: str, places: set[str]) -> bool:
    """Return True if a module is one of these, or in one of these packages."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def level(name: str) -> int:
    top = name.partition(".")[0]
    (found,) = (index for index, row in enumerate(LEVELS) if top in row)
    return found


def imported(name: str) -> Iterator[str]:
    """Yield the full names of the modules that a module imports, at any place in it."""
    parent = f"{PACKAGE}.{name}".removesuffix(".__init__")
    if FILES[name].name != "__init__.py":
        parent = parent.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), parent)
            inner = [f"{source}.{alias.name}" for alias in node.names]
            modules = [module for module in inner if module.removeprefix(f"{PACKAGE}.") in FILES]
            yield from modules or [source]


def own_imports(name: str) -> set[str]:
    found = {module for module in imported(name) if module.split(".")[0] == PACKAGE}
    return {module.removeprefix(PACKAGE).removeprefix(".") or "__init__" for module in found}


def foreign_imports(name: str) -> set[str]:
    return {module.split(".")[0] for module in imported(name)} - {PACKAGE}


def attributes(name: str) -> set[str]:
    """Return the attributes that a module reads, writes or calls on any object."""
    return {node.attr for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute)}


def own_names(name: str) -> set[str]:
    """Return what a module defines: functions, classes, variables, and attributes of ``self``."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found


def is_private(attribute: str) -> bool:
    # The documented methods of a named tuple begin with an underscore.
    return attribute.startswith("_") and not attribute.endswith("__") and attribute not in dir(NamedTuple("T", []))


def test_every_package_and_module_has_one_level() -> None:
    assert {name.partition(".")[0] for name in FILES} == set().union(*LEVELS) | FREE
    assert sum(map(len, LEVELS)) == len(set().union(*LEVELS))


@pytest.mark.parametrize("name", [name for name in FILES if name not in FREE])
def test_module_imports_only_lower_levels_or_own_package(name: str) -> None:
    package = name.partition(".")[0]
    others = {other for other in own_imports(name) if other.partition(".")[0] != package}
    assert not {other for other in others if within(other, FREE) or level(other) >= level(name)}
    assert not {other for other in others if within(other, NEVER.get(package, set()))}


def test_imports_have_no_cycle() -> None:
    TopologicalSorter({name: own_imports(name) for name in FILES}).prepare()


@pytest.mark.parametrize("library", IMPORTED_BY)
def test_library_is_imported_only_by_listed_packages(library: str) -> None:
    assert not {name for name in FILES if library in foreign_imports(name) and not within(name, IMPORTED_BY[library])}


@pytest.mark.parametrize("name", [name for name in FILES if within(name, SANS_IO)])
def test_sans_io_module_imports_neither_event_loop_nor_server(name: str) -> None:
    assert not foreign_imports(name) & {"asyncio", "nats", "sanic", "sanic_ext", "socket", "websockets"}


def test_testing_module_imports_nothing_from_package() -> None:
    assert not own_imports("testing")


@pytest.mark.parametrize("name", [name for name in FILES if name != "nats.connection"])
def test_foreign_private_names_are_used_only_by_listed_modules(name: str) -> None:
    foreign = {attribute for attribute in attributes(name) if is_private(attribute)} - own_names(name)
    assert foreign == FOREIGN_PRIVATE.get(name, set())


def test_websocket_internals_are_used_only_by_sanic_transport() -> None:
    assert {name for name in FILES if attributes(name) & {"io_proto", "ws_proto"}} == {"transports.sanic"}


def test_every_private_nats_py_name_is_checked_at_start() -> None:
    used = {name for name in attributes("nats.connection") | own_names("nats.connection") if is_private(name)}
    of_nats_py = vars(Client()).keys() | set(dir(Client))
    assert set(CLIENT_PARTS) == used & of_nats_py
    assert not used - own_names("nats.connection") - of_nats_py


@pytest.mark.parametrize("name", FOREIGN_PRIVATE)
def test_other_private_names_are_checked_at_start(name: str) -> None:
    package = name.partition(".")[0]
    checks = {node.value for node in ast.walk(TREES[f"{package}.compatibility"]) if isinstance(node, ast.Constant)}
    assert FOREIGN_PRIVATE[name] <= checks


@pytest.mark.parametrize("package", ["sanic", "sanic-ext", "sanic-routing", "nats-py", "websockets"])
def test_packages_with_private_parts_have_version_bounds(package: str) -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert any(re.fullmatch(rf"{package}>=\d+[.\d]*,<\d+", needed) for needed in project["dependencies"])


@pytest.mark.parametrize("name", FILES)
def test_no_module_has_more_than_500_lines(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= 500


def test_every_module_has_a_test_module() -> None:
    tests = {path.relative_to(TESTS).with_suffix("").as_posix() for path in TESTS.rglob("test_*.py")}
    missing = set()
    for name in MODULES:
        package, _, module = name.rpartition(".")
        unit = f"unit/{package}/test_{module}" if package else f"unit/test_{module}"
        joined = name.replace(".", "_")
        if not tests & {unit, f"integration/test_{joined}", f"system/test_{joined}"}:
            missing.add(name)
    assert not missing
