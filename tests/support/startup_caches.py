"""Caches of what Sanic and sanic-ext compute again for each app, though the result is the same for most apps.

Without them, the start of an app takes longer than most tests.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from sanic.mixins.routes import RouteMixin
from sanic.touchup.schemes.base import BaseScheme
from sanic_ext.extensions.openapi import types as openapi_types
from sanic_routing import router

_build: Any = BaseScheme.build
_built: dict[Any, Any] = {}
_determine_error_format: Any = RouteMixin._determine_error_format
_error_formats: dict[Any, str] = {}


def install() -> None:
    """Make the apps of this process share what was computed for the first one."""
    module: Any = router
    # The source itself serves as the tree that the router parses, and unparses for debugging.
    module.ast = SimpleNamespace(parse=str, unparse=str, fix_missing_locations=str)
    module.compile = functools.cache(compile)
    scheme: Any = BaseScheme
    scheme.build = _cached_build
    mixin: Any = RouteMixin
    mixin._determine_error_format = _cached_error_format
    module = openapi_types
    module.get_type_hints = _get_type_hints
    module.getmembers = _own_members


def _cached_build(method: Any, module_globals: dict[str, Any], app: Any) -> Any:
    """Compile a function for an app. It depends on the app's signals, the versions of HTTP, and the verbosity."""
    signals = frozenset(signal.name for signal in app.signal_router.routes)
    versions = frozenset(info.settings["version"] for info in app.state.server_info)
    key = (method, signals, versions, app.state.verbosity)
    if key not in _built:
        _built[key] = _build(method, module_globals, app)
    return _built[key]


_cached_type_hints = functools.cache(typing.get_type_hints)


def _get_type_hints(item: Any) -> dict[str, Any]:
    return dict(_cached_type_hints(item))  # a copy, because the caller changes it


def _cached_error_format(mixin: Any, handler: Any) -> str:
    """Return the format that Sanic finds in the source of a handler."""
    key = getattr(inspect.unwrap(handler), "__code__", handler)
    if key not in _error_formats:
        _error_formats[key] = _determine_error_format(mixin, handler)
    return _error_formats[key]


def _own_members(value: Any, predicate: Callable[[Any], bool]) -> list[tuple[str, Any]]:
    """Return the members of a value, without those of its class, which sanic-ext would drop."""
    members = ((name, getattr(value, name)) for name in sorted(value.__dict__))
    return [(name, member) for name, member in members if predicate(member)]
