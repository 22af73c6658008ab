"""All faults under clients that publish, in the order in which they are injected."""

from .drills import PUBLISH_DRILLS, PUBLISHES_CONTROL

__all__ = ["PUBLISH_FAULTS"]

PUBLISH_FAULTS = (*PUBLISH_DRILLS, PUBLISHES_CONTROL)
"""The last one is a control run."""
