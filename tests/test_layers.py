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
from sanic_nats_bridge import nats_connection

PACKAGE = "sanic_nats_bridge"
ROOT = Path(sanic_nats_bridge.__file__).parent

FLOORS = {
    "errors": 0,
    "protocol": 0,
    "subjects": 0,
    "permissions": 0,
    "admission": 0,
    "token_bucket": 0,
    "origins": 0,
    "session_ids": 0,
    "log_redaction": 0,
    "checks": 0,
    "settings": 0,
    "wire": 0,
    "nats_parser": 0,
    "nats_refusals": 0,
    "nats_servers": 0,
    "tally": 0,
    "nats_connection": 1,
    "nats_health": 1,
    "nats_link": 1,
    "nats_transport": 1,
    "nats_control": 1,
    "tcp": 1,
    "loop_lag": 1,
    "neighbours": 1,
    "shared_files": 1,
    "intake": 1,
    "inbox": 1,
    "outlet": 1,
    "transport_outlets": 1,
    "queued_outlets": 1,
    "interest": 2,
    "fan_out": 2,
    "batch": 2,
    "pacing": 2,
    "hub": 2,
    "left_out": 2,
    "pulse": 2,
    "command_meter": 2,
    "subscriptions": 2,
    "expiries": 2,
    "arrivals": 2,
    "patience": 2,
    "session": 2,
    "sessions": 2,
    "stats": 2,
    "metrics": 2,
    "metrics_board": 2,
    "relay": 3,
    "decisions": 3,
    "routes": 3,
    "routes.replies": 3,
    "routes.health": 3,
    "routes.metrics": 3,
    "routes.outlets": 3,
    "routes.authorization": 3,
    "routes.handshake": 3,
    "routes.origin": 3,
    "routes.cors": 3,
    "routes.client": 3,
    "routes.commands": 3,
    "routes.events": 3,
    "routes.websocket": 3,
    "extension": 4,
    "__main__": 4,
    "": 5,  # the front: what the package itself exports
}
BESIDE = {"testing"}

ALLOWED_IN = {
    "asyncio": {name for name, floor in FLOORS.items() if floor > 0},
    "nats": {"nats_connection", "nats_control", "nats_transport"},
    "sanic": {
        "inbox",
        "transport_outlets",
        "queued_outlets",
        "neighbours",
        "extension",
        *(name for name in FLOORS if name.startswith("routes.")),
    },
}
ALLOWED_IN["prometheus_client"] = {"routes.metrics"}
ALLOWED_IN["sanic_ext"] = ALLOWED_IN["sanic_routing"] = ALLOWED_IN["sanic"]

FOREIGN_PRIVATE = {
    "transport_outlets": {"_callback_check_timeouts", "_can_write", "_time"},
    "queued_outlets": {"_send"},
    "nats_transport": {"_bare_io_writer", "_client"},
}
"""Private names of other libraries, or of other modules, by where they are used; those of nats-py's client apart."""

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in ROOT.rglob("*.py")
}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}


def imported(name: str) -> Iterator[str]:
    """Full names of the modules that a module imports, wherever in it."""
    parent = f"{PACKAGE}.{name}".removesuffix(".")
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
    return {module.removeprefix(PACKAGE).removeprefix(".") for module in found}


def foreign_imports(name: str) -> set[str]:
    return {module.split(".")[0] for module in imported(name)} - {PACKAGE}


def attributes(name: str) -> set[str]:
    """The attributes that a module reads, writes or calls, on whatever object."""
    return {node.attr for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute)}


def own_names(name: str) -> set[str]:
    """What a module defines: functions, classes, variables, and attributes of ``self``."""
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
    # What begins with an underscore in a named tuple is public, by its documentation.
    return attribute.startswith("_") and not attribute.endswith("__") and attribute not in dir(NamedTuple("T", []))


def test_every_module_has_its_floor() -> None:
    assert set(FILES) == FLOORS.keys() | BESIDE


@pytest.mark.parametrize("name", FLOORS)
def test_imports_run_downward_only(name: str) -> None:
    upward = {other for other in own_imports(name) if other in BESIDE or FLOORS[other] > FLOORS[name]}
    assert not upward


def test_imports_make_no_circle() -> None:
    TopologicalSorter({name: own_imports(name) for name in FILES}).prepare()


@pytest.mark.parametrize("library", ALLOWED_IN)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    assert {name for name in FLOORS if library in foreign_imports(name)} <= ALLOWED_IN[library]


@pytest.mark.parametrize("name", [name for name in FLOORS if name.startswith("routes")])
def test_the_doors_know_sessions_and_never_what_is_behind(name: str) -> None:
    assert not own_imports(name) & {"hub", "fan_out", "nats_link", "nats_connection"}


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_imports_nothing_of_the_package(name: str) -> None:
    assert not own_imports(name)
    assert not foreign_imports(name) & ALLOWED_IN.keys() - {"asyncio"}


@pytest.mark.parametrize("name", [name for name in FILES if name != "nats_connection"])
def test_private_parts_of_others_are_touched_only_where_it_is_said(name: str) -> None:
    foreign = {attribute for attribute in attributes(name) if is_private(attribute)} - own_names(name)
    assert foreign == FOREIGN_PRIVATE.get(name, set())


def test_the_inside_of_sanics_websocket_is_touched_in_the_outlet_only() -> None:
    assert {name for name in FILES if attributes(name) & {"io_proto", "ws_proto"}} == {"transport_outlets"}


def test_the_link_lists_every_private_name_of_nats_py_that_it_uses() -> None:
    used = {name for name in attributes("nats_connection") | own_names("nats_connection") if is_private(name)}
    listed = re.search(r"Private names of nats-py that are used: (.*?);", nats_connection.__doc__ or "", re.DOTALL)
    assert listed is not None
    of_nats_py = vars(Client()).keys() | set(dir(Client))
    assert set(re.findall(r"``(\w+)``", listed[1])) == used & of_nats_py
    assert not used - own_names("nats_connection") - of_nats_py


def test_nats_py_is_held_to_the_version_whose_private_names_are_used() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert any(re.fullmatch(r"nats-py>=2\.\d+\.\d+,<2\.\d+", needed) for needed in project["dependencies"])


def test_the_link_says_truly_where_the_bound_on_nats_py_stands() -> None:
    said = re.search(r"the bound on its version is in (\S+)\.\s", nats_connection.__doc__ or "")
    assert said is not None
    assert "nats-py>=" in (ROOT.parent / said[1]).read_text()


@pytest.mark.parametrize("name", FILES)
def test_no_module_is_over_300_lines(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= 300


def test_every_module_has_a_test_module() -> None:
    tested = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    modules = {name for name in FILES if name not in ("", "routes")}
    assert {f"test_{name.replace('.', '_')}" for name in modules} - tested == set()
