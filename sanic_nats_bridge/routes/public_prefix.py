"""The path that a proxy has removed from the path of a request, for URLs that the app writes into pages."""

from sanic import Request
from sanic.exceptions import ServerError

from ..settings import Settings
from ..validators import path_prefix

__all__ = ["public_prefix"]

_HEADER = "x-forwarded-prefix"


def public_prefix(settings: Settings) -> str:
    """Return the setting, or else what a trusted proxy has reported with the current request; often empty."""
    if settings.public_prefix is not None:
        return settings.public_prefix
    try:
        request = Request.get_current()
    except ServerError:  # outside of a request
        return ""
    return _forwarded_prefix(request)


def _forwarded_prefix(request: Request) -> str:
    if not request.forwarded:  # Sanic trusts no proxy, or this request came through none
        return ""
    values = ",".join(request.headers.getall(_HEADER, [])).split(",")
    # Each proxy adds at most one value to those that a client may have made up.
    trusted = values[-(request.app.config.PROXIES_COUNT or 1) :]
    try:
        return "".join(path_prefix(value.strip()) for value in trusted)
    except ValueError:  # a page must not contain it
        return ""
