"""The decisions of `Permissions` in their plainest form, which compares a request with one pattern after another."""

import re
from collections.abc import Mapping, Sequence

from sanic_nats_bridge.auth.permissions import CONTROL_TOKEN, Explanation
from sanic_nats_bridge.errors import ForbiddenSubject, InvalidSubject, PublishForbidden, RequestForbidden
from sanic_nats_bridge.protocol import subjects
from sanic_nats_bridge.protocol.publish import PublishAction


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
        publish: Sequence[str] = (),
        request: Sequence[str] = (),
        follow: Sequence[str] = (),
    ) -> None:
        values, names = variables or {}, aliases or {}
        self._aliases = dict(sorted(names.items(), key=lambda pair: -len(pair[0])))
        self._allow_wildcards = allow_wildcards
        self._allowed = [filled("subscribe", pattern, values) for pattern in subscribe]
        self._history = [filled("history", pattern, values) for pattern in history]
        self._publish = [filled("publish", pattern, values) for pattern in publish]
        self._request = [filled("request", pattern, values) for pattern in request]
        self._follow = [filled("follow", pattern, values) for pattern in follow]
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

    def authorize_publish(self, subject: str, action: PublishAction) -> str:
        """Return the real subject for a valid literal subject."""
        _, target, real = self._resolve(subject)
        if target and not subjects.is_valid(real):
            raise InvalidSubject(f"Not a valid subject: '{subject}'", [subject])
        if not self._explain_publish(action, real, target)[0]:
            if action == "publish":
                raise PublishForbidden(f"Not allowed to publish to: '{subject}'", [subject])
            raise RequestForbidden(f"Not allowed to send requests to: '{subject}'", [subject])
        return real

    def explain(self, pattern: str) -> Explanation:
        _, target, real = self._resolve(pattern)
        if not subjects.is_valid(pattern) or not subjects.is_valid(real):
            return Explanation(False, "not a valid subject", real)
        allowed, rule = self._decide(pattern, real, target)
        excluded = self._excluded(real, target)
        if allowed and excluded:
            rule += f"; except {', '.join(excluded)}"
        past = self._first("history", self._history, real) if allowed else (False, "")
        follow = self._prohibited(real, target) or self._first("follow", self._follow, real)
        return Explanation(
            allowed,
            rule,
            real,
            *past,
            *(self._explain_publish("publish", real, target) if self._publish else (False, "")),
            *(self._explain_publish("request", real, target) if self._request else (False, "")),
            *(follow if self._follow else (False, "")),
        )

    def _explain_publish(self, action: PublishAction, real: str, target: str) -> tuple[bool, str]:
        if subjects.has_wildcard(real):
            return False, f"a {action} must have a subject without wildcards"
        if real.partition(".")[0] == CONTROL_TOKEN:
            return False, "the bridge's own subjects are never allowed"
        patterns = self._publish if action == "publish" else self._request
        return self._prohibited(real, target) or self._first(action, patterns, real)

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
        return self._prohibited(real, target) or self._first("subscribe", self._allowed, real)

    def _prohibited(self, real: str, target: str) -> tuple[bool, str] | None:
        for denied in self._excluded(real, target):
            if subjects.includes(denied, real):
                return False, f"deny {denied}" if denied in self._denied else f"aliases: {denied} has an alias"
        return None

    def _first(self, name: str, patterns: Sequence[str], real: str) -> tuple[bool, str]:
        for pattern in patterns:
            if subjects.covers(pattern, real):
                return True, f"{name} {pattern}"
        return False, f"no pattern in {name} includes {real}"


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
