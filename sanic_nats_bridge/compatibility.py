"""A check that the installed version of another package has the private parts that the bridge uses."""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias

__all__ = ["Expectation", "IncompatiblePackageError", "coroutine", "function", "require", "slot", "uses"]

Expectation: TypeAlias = Callable[[Any], bool]
"""A function that returns whether a private part is of the expected kind."""

_MISSING = object()


class IncompatiblePackageError(RuntimeError):
    """An installed version of another package that lacks a private part which the bridge uses."""


def require(package: str, owner: object, expected: Mapping[str, Expectation]) -> None:
    """Check the attributes of a class, a module or an object of another package.

    Args:
        package: The name of the distribution.
        owner: The object that must have the attributes.
        expected: The names of the attributes, and what they must be.

    Raises:
        IncompatiblePackageError: An attribute is missing, or of another kind.
    """
    for name, is_expected in expected.items():
        found = getattr(owner, name, _MISSING)
        if found is _MISSING or not is_expected(found):
            what = owner.__name__ if isinstance(owner, type) else type(owner).__name__
            raise IncompatiblePackageError(
                f"sanic-nats-bridge does not work with {package} {_version(package)}, whose {what} has no such "
                f"'{name}' as earlier versions; 'pip check' shows the versions that work"
            )


def slot(value: Any) -> bool:
    """Return whether the attribute of a class is a slot, which an object of the class can't have under another name."""
    return inspect.ismemberdescriptor(value)


def function(*parameters: str) -> Expectation:
    """Expect a function with exactly these parameters."""
    return lambda value: inspect.isfunction(value) and tuple(inspect.signature(value).parameters) == parameters


def coroutine(*parameters: str) -> Expectation:
    """Expect a coroutine function with exactly these parameters."""
    return lambda value: inspect.iscoroutinefunction(value) and tuple(inspect.signature(value).parameters) == parameters


def uses(*names: str) -> Expectation:
    """Expect a function that reads or sets attributes of these names."""
    return lambda value: inspect.isfunction(value) and set(names) <= set(value.__code__.co_names)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(of an unknown version)"
