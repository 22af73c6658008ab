"""The decisions of `Permissions` in their plainest form, which compares a request with one pattern after another."""

import re
from collections.abc import Mapping, Sequence

from sanic_nats_bridge.auth.permissions import CONTROL_TOKEN, Explanation
from sanic_nats_bridge.errors import ForbiddenSubject, InvalidSubject
from sanic_nats_bridge.protocol import subjects


class LinearPermissions:
    """Permissions whose cost is proportional to their lists."""

    def __init__(
        self,
        subscribe: Sequence[str] = (),
        deny: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        allow_wildcards: bool = True,
        history: Sequence[str] = (),
    ) -> None:
        values, names = variables or {}, aliases or {}
        self._aliases = dict(sorted(names.items(), key=lambda pair: -len(pair[0])))
        self._allow_wildcards = allow_wildcards
        self._allowed = [filled("subscribe", pattern, values) for pattern in subscribe]
        self._history = [filled("history", pattern, values) for pattern in history]
        self._denied = sorted({filled("deny", pattern, values) for pattern in deny})
        self._aliased = sorted({f"{target}>" for target in names.values()})

    def grant(self, pattern: str) -> tuple[str, str, str, str, tuple[str, ...]]:
        """Return the fields of a grant for a valid pattern."""
        alias, target, real = self._resolve(pattern)
        if target and not subjects.is_valid(real):
            raise InvalidSubject(f"Not a valid subject: '{pattern}'", [pattern])
        if not self._decide(pattern, real, target)[0]:
            raise ForbiddenSubject(f"Not allowed: '{pattern}'", [pattern])
        return pattern, real, alias, target, self._excluded(real, target)

    def explain(self, pattern: str) -> Explanation:
        _, target, real = self._resolve(pattern)
        if not subjects.is_valid(pattern) or not subjects.is_valid(real):
            return Explanation(False, "not a valid subject", real)
        allowed, rule = self._decide(pattern, real, target)
        excluded = self._excluded(real, target)
        if allowed and excluded:
            rule += f"; except {', '.join(excluded)}"
        if not allowed:
            return Explanation(False, rule, real)
        for past in self._history:
            if subjects.covers(past, real):
                return Explanation(True, rule, real, True, f"history {past}")
        return Explanation(True, rule, real, False, f"no pattern in history includes {real}")

    def _resolve(self, pattern: str) -> tuple[str, str, str]:
        alias, target = next((names for names in self._aliases.items() if pattern.startswith(names[0])), ("", ""))
        return alias, target, target + pattern.removeprefix(alias)

    def _excluded(self, real: str, target: str) -> tuple[str, ...]:
        denied = self._denied if target else self._denied + self._aliased
        return tuple(pattern for pattern in denied if subjects.overlaps(pattern, real))

    def _decide(self, pattern: str, real: str, target: str) -> tuple[bool, str]:
        if not self._allow_wildcards and subjects.has_wildcard(pattern):
            return False, "allow_wildcards is False"
        if real.partition(".")[0] == CONTROL_TOKEN:
            return False, "the bridge's own subjects are never allowed"
        for denied in self._excluded(real, target):
            if subjects.includes(denied, real):
                return False, f"deny {denied}" if denied in self._denied else f"aliases: {denied} has an alias"
        for allowed in self._allowed:
            if subjects.covers(allowed, real):
                return True, f"subscribe {allowed}"
        return False, f"no pattern in subscribe includes {real}"


def filled(name: str, pattern: str, variables: Mapping[str, str]) -> str:
    """Return a pattern with its variables, or raise the error of `Permissions`."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in variables:
            raise ValueError(f"{name} has {pattern!a}, but variables has no '{found[1]}'")
        return variables[found[1]]

    text = re.sub(r"\{([^{}]*)\}", value, pattern)
    if not subjects.is_valid(text):
        raise ValueError(f"{name} must be a list of valid patterns, got {text!a}")
    if name != "deny" and subjects.is_reserved(text) and not subjects.is_reserved(pattern):
        raise ValueError(f"{name} has {pattern!a}: a variable must not make its first token reserved, got {text!a}")
    if name != "deny" and text.partition(".")[0] == CONTROL_TOKEN:
        raise ValueError(f"{name} must not allow the bridge's own subjects, got {text!a}")
    return text
