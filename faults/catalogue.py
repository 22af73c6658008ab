"""All faults, in the order in which they are done."""

from typing import Final

from .bridge_faults import BRIDGE_FAULTS, CONTROL
from .limit_faults import LIMIT_FAULTS
from .nats_faults import NATS_FAULTS

__all__ = ["CATALOGUE"]

CATALOGUE: Final = {fault.name: fault for fault in (*NATS_FAULTS, *LIMIT_FAULTS, *BRIDGE_FAULTS, CONTROL)}
"""By their names; the last is the control run."""
