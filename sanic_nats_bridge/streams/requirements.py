"""The properties that a stream must have, and the NATS permissions that it needs, so that clients get its history."""

from collections.abc import Sequence
from typing import NamedTuple

from ..protocol import subjects
from .answers import JetStreamError, StreamInfo

__all__ = ["Permission", "StreamUnusable", "advice_for", "denied_permissions", "denied_subscription", "holds",
           "may_hold", "missing_stream", "permissions_for", "problem_of"]  # fmt: skip

_PROBE = "natsbridge-probe"


class StreamUnusable(JetStreamError):
    """A stream that doesn't serve clients before the operator has changed something."""


class Permission(NamedTuple):
    """A permission of the NATS user."""

    probe: str
    """A subject that needs it, on which an empty message changes nothing."""
    allow: str
    """The subject to allow for publishing."""
    is_essential: bool = True
    """True if the stream can't be served without it."""


def may_hold(configured: Sequence[str] | None, pattern: str) -> bool:
    """Return whether the operator's patterns for a stream include a pattern; ``None`` includes all."""
    return configured is None or any(subjects.covers(each, pattern) for each in configured)


def holds(configured: Sequence[str] | None, info: StreamInfo, pattern: str) -> bool:
    """Return whether a stream holds every message of a pattern, and may serve it."""
    if not may_hold(configured, pattern):
        return False
    # A mirror, or a stream of sources, doesn't name the subjects of its messages.
    sourced = configured is not None and not info.subjects
    return sourced or any(subjects.includes(each, pattern) for each in info.subjects)


def permissions_for(api: str, stream: str, *, allow_direct: bool) -> tuple[Permission, ...]:
    """Return the permissions that a stream needs.

    Args:
        api: The first tokens of the subjects of the JetStream API, with the last dot.
        stream: The name of the stream.
        allow_direct: Whether the stream answers Direct Get.
    """
    info, create, delete, get = (
        f"{api}{operation}.{stream}"
        for operation in ("STREAM.INFO", "CONSUMER.CREATE", "CONSUMER.DELETE", "STREAM.MSG.GET")
    )
    direct, flow_control = f"{api}DIRECT.GET.{stream}", f"$JS.FC.{stream}"
    return (
        Permission(info, info),
        Permission(f"{create}.{_PROBE}", f"{create}.>"),
        # Without it, NATS removes consumers that aren't used any more after 30 s.
        Permission(f"{delete}.{_PROBE}", f"{delete}.*", is_essential=False),
        Permission(get, get),
        *([Permission(direct, direct)] if allow_direct else []),
        # NATS needs the answer after 2 MB, and then waits indefinitely.
        Permission(f"{flow_control}.{_PROBE}.0", f"{flow_control}.>"),
    )


def problem_of(info: StreamInfo, denied: tuple[Permission, ...]) -> StreamUnusable | None:
    """Return the reason for which a stream that exists can't serve clients, if there is one."""
    if info.retention != "limits":
        return StreamUnusable(
            f"its retention is '{info.retention}', so NATS removes messages once they were read. Only a stream with "
            "the retention 'limits' has history; a stream of that kind may have this one as its source"
        )
    return denied_permissions(denied)


def denied_permissions(denied: tuple[Permission, ...]) -> StreamUnusable | None:
    """Return the error for permissions that the NATS user doesn't have, if one of them is essential."""
    if not any(each.is_essential for each in denied):
        return None
    return StreamUnusable(f"the NATS user may not publish to {_names(denied)}. Allow these subjects in NATS")


def denied_subscription(prefix: str) -> StreamUnusable:
    """Return the error for a NATS user that may not receive what the bridge asks for.

    Args:
        prefix: The prefix of the subjects on which messages and replies arrive.
    """
    return StreamUnusable(f"the NATS user may not subscribe to {prefix}.>. Allow this subject in NATS")


def missing_stream() -> StreamUnusable:
    """Return the error for a stream that doesn't exist."""
    return StreamUnusable("it does not exist in JetStream. Create it, or remove it from the setting 'streams'")


def advice_for(info: StreamInfo, denied: tuple[Permission, ...]) -> list[str]:
    """Return what the operator can improve about a stream that serves clients."""
    advice = []
    if not info.allow_direct:
        reason = "it has no allow_direct, so its messages are read one by one. Set allow_direct for fast replays"
        advice.append(reason)
    if denied:
        reason = f"the NATS user may not publish to {_names(denied)}. Allow it, or consumers remain in NATS for 30 s"
        advice.append(reason)
    return advice


def _names(permissions: tuple[Permission, ...]) -> str:
    return ", ".join(each.allow for each in permissions)
