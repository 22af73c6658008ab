"""All faults, in the order in which they are done."""

from collections.abc import Mapping
from typing import Final

from .bridge_faults import BRIDGE_FAULTS, CONTROL
from .cluster_scenario import Drill
from .fault import Fault
from .fleet import FLEET
from .limit_faults import LIMIT_FAULTS
from .nats_faults import NATS_FAULTS
from .rolling import ROLLING

__all__ = ["CATALOGUE"]

CATALOGUE: Final[Mapping[str, Fault | Drill]] = {
    entry.name: entry for entry in (*NATS_FAULTS, *LIMIT_FAULTS, *BRIDGE_FAULTS, FLEET, ROLLING, CONTROL)
}
"""By their names; the last is the control run."""
