"""Names that the attacked app and its attackers share. The attackers' processes don't import the bridge."""

__all__ = ["APP_NAME", "CONTROL_PREFIX", "LISTED"]

APP_NAME = "abuse"
CONTROL_PREFIX = f"_NATSBRIDGE.{APP_NAME}"
"""The first tokens of the control subjects, which depend on the name of the app."""

LISTED = 1000
"""The number of allowed patterns, and of denied ones, in the profile ``lists``."""
