"""Which clients may follow what, as the bridge is told, and as the checker judges it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from .checker import View

__all__ = ["OPEN", "VIEWS", "Access"]

OPEN: Final = ("orders.>", "news.*", "flood.>", "noise.>", "deep.>")


class Access(NamedTuple):
    """What a client may follow.

    Attributes:
        permissions: Keywords of the bridge's ``Permissions``.
        view: The same for the checker.
        closed: Patterns that the bridge must refuse to the client.
    """

    permissions: Mapping[str, Any]
    view: View
    closed: Sequence[str]


_SECRET: Final = ("secret.plans", "secret.*", "*.plans", ">")

VIEWS: Final = {
    "open": Access({"subscribe": OPEN}, View(OPEN), _SECRET),
    "eu": Access({"subscribe": ["orders.eu.*"]}, View(("orders.eu.*",)), (*_SECRET, "orders.us.1", "orders.>")),
    "not-us": Access(
        {"subscribe": OPEN, "deny": ["orders.us.>"]},
        View(OPEN, denied=("orders.us.>",)),
        (*_SECRET, "orders.us.1", "orders.us.*"),
    ),
    "own": Access(
        {"subscribe": ["orders.eu.>"], "aliases": {"mine.": "orders.eu."}},
        View(("mine.>",), renamed=(("orders.eu.", "mine."),)),
        (*_SECRET, "orders.eu.1", "orders.eu.>", "orders.us.1"),
    ),
}
"""By the name that the client says when it connects."""
