"""The rule: without limits an attack does harm, and with them it doesn't."""

import statistics
from collections.abc import Iterator, Sequence

from .attack import Attack
from .harm import DELAY, Harm
from .results import Observation, Run

__all__ = ["failures", "typical"]


def failures(attack: Attack, runs: Sequence[Run], *, small: bool = False) -> Iterator[str]:
    """Return the broken parts of the rule, over all rounds of an attack.

    Args:
        attack: The attack.
        runs: Its rounds.
        small: Whether the attacks were tiny. Then times don't count, and the control run needs to show no harm.
    """
    for run in runs:
        for limits, observation in (("with limits", run.bounded), ("without limits", run.control)):
            if observation is not None and observation.error:
                yield f"{limits}, round {run.round}: {observation.error}"
    bounded = [run.bounded for run in runs if not run.bounded.error]
    harms = dict.fromkeys((attack.harm, *attack.bounds))
    yield from _harm_with_limits([harm for harm in harms if not (small and harm is DELAY)], bounded)
    if small:
        return
    control = [run.control for run in runs if run.control is not None and not run.control.error]
    if control and not attack.harm.shows(value := typical(attack.harm, control)):
        yield f"without limits no harm is seen: {attack.harm.title}: {attack.harm.formatted(value)}"


def _harm_with_limits(harms: Sequence[Harm], bounded: Sequence[Observation]) -> Iterator[str]:
    for harm in harms:
        if bounded and harm.shows(value := typical(harm, bounded)):
            yield f"with limits: {harm.title}: {harm.formatted(value)}"
    for observation in bounded:
        for seen in (observation.onset, observation.attacked):
            if seen.lost:
                yield f"with limits: {seen.lost} of {seen.published} messages lost"
            if seen.disconnects:
                yield f"with limits: an honest client was disconnected {seen.disconnects} times"


def typical(harm: Harm, observations: Sequence[Observation]) -> float:
    """Return the median of a measure over all rounds."""
    return statistics.median(harm.of(observation) for observation in observations)
