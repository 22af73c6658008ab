"""All faults under clients of streams, in the order in which they are injected."""

from .nats_drills import NATS_DRILLS
from .worker_drills import STREAMS_CONTROL, WORKER_DRILLS

__all__ = ["STREAM_FAULTS"]

STREAM_FAULTS = (*NATS_DRILLS, *WORKER_DRILLS, STREAMS_CONTROL)
"""The last one is a control run."""
