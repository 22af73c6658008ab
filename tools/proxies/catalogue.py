"""All set-ups, in the order in which they are measured and reported."""

from collections.abc import Mapping

from .own_setups import OWN_SETUPS
from .packaged_setups import DEBIAN_SETUPS, NODE_SETUPS
from .setup import Setup

__all__ = ["CATALOGUE"]

CATALOGUE: Mapping[str, Setup] = {setup.name: setup for setup in (*OWN_SETUPS, *DEBIAN_SETUPS, *NODE_SETUPS)}
"""Set-ups by name."""
