"""All attacks, in the order in which they are run and reported."""

from collections.abc import Mapping

from .attack import Attack
from .input_attacks import INPUT_ATTACKS
from .nats_attacks import NATS_ATTACKS
from .pattern_attacks import PATTERN_ATTACKS
from .publish_attacks import PUBLISH_ATTACKS
from .request_attacks import REQUEST_ATTACKS

__all__ = ["CATALOGUE"]

CATALOGUE: Mapping[str, Attack] = {
    attack.name: attack
    for attack in (*PATTERN_ATTACKS, *REQUEST_ATTACKS, *PUBLISH_ATTACKS, *INPUT_ATTACKS, *NATS_ATTACKS)
}
"""Attacks by name."""
