"""Permissions: the patterns to which one client may subscribe."""

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from ..errors import ForbiddenSubject, InvalidSubject
from ..protocol import subjects

__all__ = ["CONTROL_TOKEN", "Explanation", "Grant", "Permissions", "PermissionsFunction"]

CONTROL_TOKEN = "_NATSBRIDGE"
"""The first token of the subjects on which workers communicate. No client may subscribe to them."""

_END_OF_9999 = 253_402_387_200
"""The end of the year 9999 in every time zone, in Unix seconds; `datetime` goes no further."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class Grant(NamedTuple):
    """A pattern to which a client may subscribe. Clients with equal grants see the same messages."""

    pattern: str
    """The pattern as the client names it."""

    real: str
    """The pattern as NATS knows it."""

    alias: str
    """The first tokens of the client's name, which replace `target`; both are empty without an alias."""

    target: str
    """The first tokens of the real pattern, and of the subject of each of its messages."""

    excluded: tuple[str, ...]
    """The patterns of the real subjects that the client must not see."""


@dataclass(frozen=True)
class Explanation:
    """The result of `Permissions.explain`."""

    allowed: bool

    rule: str
    """The rule that decides, for people."""

    real_pattern: str
    """The pattern after `Permissions.aliases` was applied. It must not be shown to clients."""


@dataclass(frozen=True)
class Permissions:
    """The patterns to which one client may subscribe; none by default.

    Attributes:
        subscribe: Allowed patterns. A requested pattern must lie wholly inside one of them: ``orders.*`` is not
            inside ``orders.eu.>``. A wildcard in first place doesn't match first tokens that begin with ``$`` or
            ``_``; these must be spelled out.
        deny: Denied patterns. A requested pattern inside one of them is rejected. If it only overlaps with one,
            messages on denied subjects are skipped.
        variables: Values for ``{name}`` in ``subscribe`` and ``deny``, one token each.
        aliases: Names for real subjects, such as ``{"me.": "tenants.42.users.7."}``. Keys and values are literal
            tokens that end in a dot. ``subscribe`` and ``deny`` apply to the real subjects. A client can't
            subscribe to an aliased subject by its real name.
        allow_wildcards: Whether the client may request patterns with wildcards.
        identity: The user behind the client. It authorizes a POST to the client's session, selects sessions in
            `NatsBridge.revoke` and `NatsBridge.update_permissions`, and counts in ``max_sessions_per_identity``.
        expires: The time at which the session ends: an aware ``datetime`` or Unix seconds, up to the year 9999.

    Raises:
        ValueError: A pattern, a value or a time is invalid.
    """

    subscribe: Sequence[str] = ()
    deny: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict, hash=False)
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    allow_wildcards: bool = True
    identity: str | None = None
    expires: datetime | float | None = None
    expires_at: float = field(init=False, repr=False, compare=False)
    """`expires` in Unix seconds; infinite if there is none."""
    _allowed: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _denied: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _aliased: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        subscribe, deny = _checked_patterns("subscribe", self.subscribe), _checked_patterns("deny", self.deny)
        variables, aliases = _checked_variables(self.variables), _checked_aliases(self.aliases)
        if not isinstance(self.allow_wildcards, bool):
            raise ValueError(f"allow_wildcards must be True or False, got {self.allow_wildcards!r}")
        if self.identity is not None and not _is_identity(self.identity):
            raise ValueError("identity must be a non-empty string that UTF-8 can encode")
        self._set(
            subscribe=subscribe,
            deny=deny,
            variables=MappingProxyType(variables),
            # The longest alias first, because it is the most specific one.
            aliases=MappingProxyType(dict(sorted(aliases.items(), key=lambda pair: -len(pair[0])))),
            expires_at=_unix_seconds(self.expires),
            _allowed=tuple(_expanded("subscribe", pattern, variables) for pattern in subscribe),
            _denied=tuple(sorted({_expanded("deny", pattern, variables) for pattern in deny})),
            _aliased=tuple(sorted({f"{target}>" for target in aliases.values()})),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A MappingProxyType can be neither pickled nor copied.
        mappings = dict(self.variables), dict(self.aliases)
        return type(self), (self.subscribe, self.deny, *mappings, self.allow_wildcards, self.identity, self.expires)

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def grant(self, pattern: str) -> Grant:
        """Return the grant for a pattern as a client names it.

        Raises:
            InvalidSubject: The pattern is outside the grammar of `subjects`.
            ForbiddenSubject: The permissions don't allow it.
        """
        return self.authorize(subjects.validate(pattern))

    def authorize(self, pattern: str) -> Grant:
        """Return the grant for a pattern that is known to be inside the grammar of `subjects`.

        Raises:
            InvalidSubject: The real pattern behind an alias is too long or has too many tokens.
            ForbiddenSubject: The permissions don't allow it.
        """
        grant = self._resolve(pattern)
        if grant.target and not subjects.is_valid(grant.real):
            raise InvalidSubject(f"Not a valid subject: '{pattern}'", [pattern])
        if not self._decide(grant)[0]:
            raise ForbiddenSubject(f"Not allowed: '{pattern}'", [pattern])
        return grant

    def explain(self, pattern: str) -> Explanation:
        """Explain whether the pattern is allowed, and by which rule; for operators, not for clients."""
        grant = self._resolve(pattern)
        if not subjects.is_valid(pattern) or not subjects.is_valid(grant.real):
            return Explanation(False, "not a valid subject", grant.real)
        allowed, rule = self._decide(grant)
        if allowed and grant.excluded:
            rule += f"; except {', '.join(grant.excluded)}"
        return Explanation(allowed, rule, grant.real)

    def _resolve(self, pattern: str) -> Grant:
        # An alias is literal, so it can only match the literal tokens at the start of the pattern.
        alias, target = next((names for names in self.aliases.items() if pattern.startswith(names[0])), ("", ""))
        real = target + pattern.removeprefix(alias)
        # Aliased subjects are excluded under their real names.
        denied = self._denied if target else self._denied + self._aliased
        excluded = tuple(pattern for pattern in denied if subjects.overlaps(pattern, real))
        return Grant(pattern, real, alias, target, excluded)

    def _decide(self, grant: Grant) -> tuple[bool, str]:
        """Decide whether the pattern is allowed, and name the rule."""
        if not self.allow_wildcards and subjects.has_wildcard(grant.pattern):
            return False, "allow_wildcards is False"
        if grant.real.partition(".")[0] == CONTROL_TOKEN:
            return False, "the bridge's own subjects are never allowed"
        for denied in grant.excluded:
            if subjects.includes(denied, grant.real):
                return False, f"deny {denied}" if denied in self._denied else f"aliases: {denied} has an alias"
        for allowed in self._allowed:
            if subjects.covers(allowed, grant.real):
                return True, f"subscribe {allowed}"
        return False, f"no pattern in subscribe includes {grant.real}"


PermissionsFunction: TypeAlias = Callable[[Any], Awaitable[Permissions | None] | Permissions | None]
"""An app's function that authorizes a client. It takes Sanic's request, and returns ``None`` for an unknown client."""


def _checked_patterns(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of patterns, got {value!r}")
    patterns = tuple(value)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"{name} must be a list of patterns, got {value!r}")
    return patterns


def _checked_mapping(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise ValueError(f"{name} must be a dict[str, str], got {value!r}")
    return dict(value)


def _is_identity(value: Any) -> bool:
    # Other workers get it as JSON. Sanic decodes bytes that aren't UTF-8 in a header to lone surrogates.
    return isinstance(value, str) and value != "" and not _SURROGATE.search(value)


def _checked_variables(value: Any) -> dict[str, str]:
    variables = _checked_mapping("variables", value)
    for name, token in variables.items():
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"variables must have names of letters, digits and underscores, got {name!a}")
        if "." in token or subjects.has_wildcard(token) or not subjects.is_valid(token):
            raise ValueError(f"variables['{name}'] must be one token without wildcards, got {token!a}")
    return variables


def _checked_aliases(value: Any) -> dict[str, str]:
    aliases = _checked_mapping("aliases", value)
    for prefix in (*aliases, *aliases.values()):
        literal = subjects.is_valid(prefix[:-1]) and not subjects.has_wildcard(prefix)
        if not literal or not prefix.endswith(".") or prefix.partition(".")[0] == CONTROL_TOKEN:
            raise ValueError(f"aliases must have keys and values of literal tokens that end in a dot, got {prefix!a}")
    return aliases


def _expanded(name: str, pattern: str, variables: Mapping[str, str]) -> str:
    """Return the pattern with its variables replaced."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in variables:
            raise ValueError(f"{name} has {pattern!a}, but variables has no '{found[1]}'")
        return variables[found[1]]

    expanded = _PLACEHOLDER.sub(value, pattern)
    if not subjects.is_valid(expanded):
        raise ValueError(f"{name} must be a list of valid patterns, got {expanded!a}")
    if name == "subscribe" and subjects.is_reserved(expanded) and not subjects.is_reserved(pattern):
        raise ValueError(f"{name} has {pattern!a}: a variable must not make its first token reserved, got {expanded!a}")
    if name == "subscribe" and expanded.partition(".")[0] == CONTROL_TOKEN:
        raise ValueError(f"{name} must not allow the bridge's own subjects, got {expanded!a}")
    return expanded


def _unix_seconds(expires: Any) -> float:
    if expires is None:
        return math.inf
    if isinstance(expires, datetime) and expires.utcoffset() is not None:
        return expires.timestamp()
    if isinstance(expires, bool) or not isinstance(expires, int | float) or not -math.inf < expires < math.inf:
        raise ValueError(f"expires must be an aware datetime or Unix seconds, got {expires!r}")
    if abs(expires) > _END_OF_9999:
        raise ValueError(f"expires must be before the year 10000, in Unix seconds, not milliseconds, got {expires!r}")
    return float(expires)
