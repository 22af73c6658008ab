"""All faults, in the order in which they are injected."""

from collections.abc import Mapping

from .bridge_faults import BRIDGE_FAULTS, CONTROL
from .cluster_scenario import ClusterScenario
from .deploy import DEPLOY
from .fault import Fault
from .fleet import FLEET
from .limit_faults import LIMIT_FAULTS
from .nats_faults import NATS_FAULTS
from .peer_faults import PEER_FAULTS
from .publishes.catalogue import PUBLISH_FAULTS
from .publishes.fault import PublishFault
from .rolling import ROLLING
from .streams.catalogue import STREAM_FAULTS
from .streams.fault import StreamFault

__all__ = ["CATALOGUE", "Entry"]

Entry = Fault | ClusterScenario | StreamFault | PublishFault

CATALOGUE: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (
        *NATS_FAULTS,
        *LIMIT_FAULTS,
        *PEER_FAULTS,
        *BRIDGE_FAULTS,
        FLEET,
        ROLLING,
        DEPLOY,
        *STREAM_FAULTS,
        *PUBLISH_FAULTS,
        CONTROL,
    )
}
"""Faults by name. The last one is the control run."""
