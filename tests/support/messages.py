"""Every message of the bridge that an operator or a client may read, by the code that writes it."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import sanic_nats_bridge

ROOT = Path(sanic_nats_bridge.__file__).parent

UNSEEN = {
    "not an origin": "the check of the setting gives its own message",
    "not a host": "the same",
    "not a port": "the same",
    "… is not JSON": "the payload is sent as text",
    "NATS is disconnected": "becomes nats.unavailable, or a part of a log line",
    "payload must fit max_payload of the NATS server, got … bytes": "becomes limit.size, or a part of a log line",
    "NATS does not deliver announcements to the workers": "a part of a log line",
    "NATS does not let the workers reach each other": "becomes nats.unavailable, or a part of a log line",
    "this system has no POSIX file locks": "a part of a log line",
    "(of an unknown version)": "a part of another message",
    "NATS delivers no messages below … that this worker publishes": "a part of a log line",
    "this worker is stopping": "a part of a log line",
    "the peer has closed the connection": "becomes the reason of a failed attempt",
    "Not a valid subject: 'orders..new'": "an example in the OpenAPI document",
    "Not subscribed to: '…'": "the same",
    "This session is on another server, but NATS is disconnected": "the same",
    "no reply before this worker stopped": "becomes session.unreachable",
    "attempts() never ends": "never raised",
    "The client has closed the connection": "ends the handler",
    "Successfully … events: …": "no error",
    "Successfully published to: …": "no error",
    "The text must not be empty": "an example in the OpenAPI document",
    "The service has reported an error: no such product": "the same",
}
"""Messages that a reader handles without problems, with the reason."""

_LEVELS = ("debug", "info", "warning", "error", "exception")
_PLACEHOLDER = re.compile(r"%[%asdr]")
_REASONS = re.compile(r"message$|reason|excess|_(?:TOO_SLOW|TOO_OLD|REVOKED|INTERNAL)")
_CLOSERS = ("close", "close_all", "farewell", "give_up")


@cache
def messages() -> dict[str, str]:
    """Return each message, with ``…`` for what differs, and the class of the error or ``log`` or ``reason``."""
    found: dict[str, str] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for text, kind in _messages(ast.parse(path.read_text())):
            found.setdefault(text, kind)
    return found


def _messages(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            yield from _of_call(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(_REASONS.search(ast.unparse(target)) for target in targets):
                yield from _texts(node.value, "reason")
        elif isinstance(node, ast.Return) and node.value is not None:
            for part in node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]:
                yield from _texts(part, "reason")


def _of_call(node: ast.Call) -> Iterator[tuple[str, str]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in _LEVELS and ast.unparse(node.func).startswith("logger."):
        yield from _texts(node.args[0], "log")
    elif name[:1].isupper():
        yield from _texts(node.args[0], name)
    elif name in _CLOSERS:
        for argument in node.args:
            yield from _texts(argument, "reason")


def _texts(node: ast.expr, kind: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.IfExp):
        yield from _texts(node.body, kind)
        yield from _texts(node.orelse, kind)
        return
    text = _text(node)
    # One word is an identifier, and what differs everywhere is another's message.
    if text is not None and " " in text and text.strip("… "):
        yield text, kind


def _text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _PLACEHOLDER.sub("…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "…" for part in node.values)
    return None
