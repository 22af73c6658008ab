"""Command line: ``python -m sanic_nats_bridge explain PERMISSIONS PATTERN ...``.

It prints whether a client may subscribe to each pattern and read its history, whether it may publish or send requests
to it, whether it follows it from its start, and by which rule. ``PERMISSIONS`` are the arguments of `Permissions` as a
JSON object, the path of a file with it, or ``-`` for standard input. With ``--streams``, the setting of this name as
JSON, it asks NATS too: it prints the stream that has the history of each allowed pattern, or why none has.
"""

import argparse
import asyncio
import json
import logging
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from .auth.permissions import Explanation, Permissions
from .errors import SettingsError
from .settings import Settings
from .streams.explanation import ServedPattern, explain_streams

__all__ = ["main"]


def main() -> int:
    """Run the command; return its exit status.

    The status is 0 if the client may subscribe to every pattern, and with ``--streams`` each has a stream; 1 if it may
    not, one hasn't, or the permissions have expired; and 2 if the permissions cannot be read or NATS cannot be reached.
    """
    options = _options()
    try:
        permissions = read_permissions(options.permissions)
        explanations = {pattern: permissions.explain(pattern) for pattern in options.pattern}
        allowed = [explained.real_pattern for explained in explanations.values() if explained.allowed]
        streams = _ask_nats(options, allowed) if options.streams else {}
    except (OSError, ValueError, TypeError, SettingsError) as error:
        print(f"explain: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 2
    for pattern, explained in explanations.items():
        real = f" (in NATS: {explained.real_pattern})" if explained.real_pattern != pattern else ""
        rules = f"{explained.rule}; {_history_of(explained)}" if explained.allowed else explained.rule
        print(f"{'allowed' if explained.allowed else 'denied'}  {pattern}{real}: {rules}")  # noqa: T201
        if explained.allowed and explained.real_pattern in streams:
            print(_stream_of(streams[explained.real_pattern]))  # noqa: T201
        for line in _directions_of(explained):
            print(line)  # noqa: T201
    expired = permissions.expires_at <= time.time()
    if expired:
        print("expired  the permissions: every command is answered with auth.expired")  # noqa: T201
    complete = all(explained.allowed for explained in explanations.values()) and all(
        served.stream is not None for served in streams.values()
    )
    return 0 if complete and not expired else 1


def _stream_of(served: ServedPattern) -> str:
    reasons = "; ".join(served.reasons)
    if served.stream is None:
        return f"  no stream has its history: {reasons}"
    return f"  stream {served.stream}" + (f", but {reasons}" if reasons else "")


def _directions_of(explained: Explanation) -> list[str]:
    """Return a line for each direction for which the permissions have a list of patterns."""
    directions = (
        (explained.publish, "may publish", "may not publish", explained.publish_rule),
        (explained.request, "may send requests", "may not send requests", explained.request_rule),
        (explained.follow, "followed from the start", "not followed from the start", explained.follow_rule),
    )
    return [f"  {positive if holds else negative}: {rule}" for holds, positive, negative, rule in directions if rule]


def _ask_nats(options: argparse.Namespace, patterns: list[str]) -> dict[str, ServedPattern]:
    """Ask NATS for the streams of real patterns.

    Raises:
        SettingsError: An option is invalid.
        ConnectionError: NATS cannot be reached.
    """
    keywords = {"streams": options.streams, "servers": options.nats, "credentials": options.credentials,
                "jetstream_domain": options.jetstream_domain, "control_prefix": options.control_prefix}  # fmt: skip
    settings = Settings.resolve(keywords, {})
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    lines_of_bridge = logging.getLogger("sanic.root.nats_bridge")
    lines_of_bridge.addHandler(handler)
    lines_of_bridge.propagate = False
    try:
        return asyncio.run(explain_streams(settings, patterns))
    except ConnectionError as error:
        # The last line has the reason.
        raise ConnectionError(lines[-1] if lines else str(error)) from error
    finally:
        lines_of_bridge.removeHandler(handler)
        lines_of_bridge.propagate = True


def _history_of(explained: Explanation) -> str:
    if explained.history:
        return explained.history_rule
    # The command doesn't know the settings of the app.
    return f"history: resume_window only (default: {Settings.resume_window:g} s)"


def read_permissions(source: str) -> Permissions:
    """Read permissions from a JSON object, a file or standard input.

    Raises:
        OSError: The file cannot be read.
        ValueError: It isn't a JSON object, or a value is invalid.
        TypeError: `Permissions` has no argument of that name.
    """
    if source == "-":
        text = sys.stdin.read()
    else:
        text = source if source.lstrip().startswith(("{", "[")) else Path(source).read_text()
    try:
        arguments: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"permissions must be JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"permissions must be a JSON object, got {type(arguments).__name__}")
    if isinstance(arguments.get("expires"), str):
        arguments["expires"] = datetime.fromisoformat(arguments["expires"])
    return Permissions(**arguments)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sanic_nats_bridge", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="explain")
    explain = commands.add_parser("explain", help="print what a client may do with patterns, and by which rule")
    explain.add_argument("permissions", help="the arguments of Permissions: a JSON object, a file with it, or -")
    explain.add_argument("--streams", help='the setting: {"ORDERS": null, "KV_prefs": ["$KV.prefs.>"]}')
    explain.add_argument("--nats", metavar="URL", help="the NATS server, with user and password if it needs them")
    explain.add_argument("--credentials", metavar="FILE", help="the credentials for NATS")
    explain.add_argument("--jetstream-domain", metavar="NAME", help="the JetStream domain")
    explain.add_argument(
        "--control-prefix",
        metavar="PREFIX",
        help="the setting, or _NATSBRIDGE.APP with the app's name: print whether the NATS user may subscribe there",
    )
    explain.add_argument("pattern", nargs="+", help="a pattern as a client would request it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
