"""The definition of an attack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .attacker import Attacker, Target
from .harm import DELAY, Harm

__all__ = ["Attack", "Stream"]

_SUBJECT = "honest.1"


@dataclass(frozen=True)
class Stream:
    """The messages that the honest client follows.

    Attributes:
        subject: The subject of each message.
        rate: Messages per second.
        size: Bytes of each payload.
    """

    subject: str = _SUBJECT
    rate: float = 100.0
    size: int = 200


@dataclass(frozen=True)
class Attack:
    """An attack, run with the limits of the bridge and, as a control, without them.

    Attributes:
        means: The means of the attacker, for the report.
        attacker: Creates the attacking clients, in a process of their own.
        harm: The measure of the harm.
        bounds: Further measures that must not show harm in the run with limits.
        settings: Settings of the bridge in both runs that differ from the defaults.
        limited: Settings of the run with limits only.
        unlimited: Settings of the control run only.
        lifted: The limits without a setting that the control run removes, by their names in `limits_off`.
        control_attacker: Creates the attacking clients of the control run, if they aren't the same.
        built_in: The reason for which there is no control run.
        stream: The messages that the honest client follows.
        config: The configuration of NATS.
        onset: Seconds for which the attack goes on before its harm is measured. The limits on rates allow a burst.
    """

    name: str
    means: str
    attacker: Callable[[Target], Attacker]
    harm: Harm = DELAY
    bounds: tuple[Harm, ...] = (DELAY,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    limited: Mapping[str, Any] = field(default_factory=dict)
    unlimited: Mapping[str, Any] = field(default_factory=dict)
    lifted: tuple[str, ...] = ()
    control_attacker: Callable[[Target], Attacker] | None = None
    built_in: str = ""
    stream: Stream = Stream()
    config: str = ""
    onset: float = 0.0

    @property
    def has_control(self) -> bool:
        """True if the limits can be removed."""
        return not self.built_in
