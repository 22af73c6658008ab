"""Command line: ``python -m sanic_nats_bridge explain PERMISSIONS PATTERN ...``.

It prints whether each pattern and its history are allowed, and by which rule. ``PERMISSIONS`` are the arguments of
`Permissions` as a JSON object, the path of a file with it, or ``-`` for standard input.
"""

import argparse
import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from .auth.permissions import Explanation, Permissions
from .settings import Settings

__all__ = ["main"]


def main() -> int:
    """Run the command; return its exit status.

    The status is 0 if every pattern is allowed, 1 if one is denied or the permissions have expired, and 2 if the
    permissions cannot be read.
    """
    options = _options()
    try:
        permissions = read_permissions(options.permissions)
    except (OSError, ValueError, TypeError) as error:
        print(f"explain: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 2
    explanations = {pattern: permissions.explain(pattern) for pattern in options.pattern}
    for pattern, explained in explanations.items():
        real = f" (in NATS: {explained.real_pattern})" if explained.real_pattern != pattern else ""
        rules = f"{explained.rule}; {_history_of(explained)}" if explained.allowed else explained.rule
        print(f"{'allowed' if explained.allowed else 'denied'}  {pattern}{real}: {rules}")  # noqa: T201
    expired = permissions.expires_at <= time.time()
    if expired:
        print("expired  the permissions: every command is answered with auth.expired")  # noqa: T201
    return 0 if not expired and all(explained.allowed for explained in explanations.values()) else 1


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
    explain = commands.add_parser(
        "explain", help="print whether patterns and their history are allowed, and by which rule"
    )
    explain.add_argument("permissions", help="the arguments of Permissions: a JSON object, a file with it, or -")
    explain.add_argument("pattern", nargs="+", help="a pattern as a client would request it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
