import configparser
import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sanic_nats_bridge

MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(sanic_nats_bridge.__path__, "sanic_nats_bridge.")
    if not found.ispkg
]

EXPORTS = [
    pytest.param(getattr(module, name), id=f"{module.__name__.partition('.')[2]}.{name}")
    for module in MODULES
    for name in module.__all__
    if getattr(getattr(module, name), "__module__", None) == module.__name__  # neither a constant nor an alias
]


def functions(exported: Any) -> Iterator[Callable[..., Any]]:
    """Yield the function, or the public ones of the class itself, with ``__init__``."""
    if inspect.isfunction(exported):
        yield exported
        return
    for name, member in vars(exported).items():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        in_source = inspect.isfunction(function) and function.__module__ == exported.__module__
        if in_source and (name == "__init__" or not name.startswith("_")):
            yield function


def test_package_exports_are_sorted_and_documented() -> None:
    names = sanic_nats_bridge.__all__
    assert names == sorted(set(names))
    for name in names:
        assert inspect.getdoc(getattr(sanic_nats_bridge, name)), name


def test_star_import_provides_exactly_the_exports() -> None:
    namespace: dict[str, Any] = {}
    exec("from sanic_nats_bridge import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(sanic_nats_bridge.__all__)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_module_is_documented_and_its_exports_exist(module: ModuleType) -> None:
    assert module.__doc__
    assert module.__all__
    assert len(module.__all__) == len(set(module.__all__))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert [name for name in module.__all__ if name.startswith("_")] == []


@pytest.mark.parametrize("exported", EXPORTS)
def test_export_is_documented(exported: Any) -> None:
    # An inherited docstring is none of its own.
    assert (exported.__doc__ or "").strip()


@pytest.mark.parametrize("exported", EXPORTS)
def test_export_is_fully_annotated(exported: Any) -> None:
    for function in functions(exported):
        signature = inspect.signature(function)
        parameters = [parameter for name, parameter in signature.parameters.items() if name not in ("self", "cls")]
        assert all(parameter.annotation is not parameter.empty for parameter in parameters), function
        assert signature.return_annotation is not signature.empty, function


def test_version_matches_installed_distribution() -> None:
    assert sanic_nats_bridge.__version__ == importlib.metadata.version("sanic-nats-bridge")


def test_py_typed_is_shipped() -> None:
    root = Path(sanic_nats_bridge.__file__).parent
    assert (root / "py.typed").is_file()
    setup = configparser.ConfigParser()
    setup.read(root.parent / "setup.cfg")
    assert "py.typed" in setup["options.package_data"]["sanic_nats_bridge"].split()
