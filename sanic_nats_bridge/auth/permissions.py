"""Permissions: the patterns to which one client may subscribe, and whose past it may read."""

import math
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from ..errors import ForbiddenSubject, InvalidSubject
from ..protocol import subjects
from ..protocol.pattern_index import PatternIndex, lowest
from .exclusions import NO_EXCLUSIONS, DeniedIndex, Exclusions
from .pattern_lists import CONTROL_TOKEN, PatternList, PatternListCache

__all__ = ["CONTROL_TOKEN", "Explanation", "Grant", "Permissions", "PermissionsFunction"]

_END_OF_9999 = 253_402_387_200
"""The end of the year 9999 in every time zone, in Unix seconds; `datetime` goes no further."""

_SURROGATE = re.compile("[\ud800-\udfff]")

_Filled: TypeAlias = Sequence[tuple[int, str]]
"""Patterns whose placeholders are replaced, with their numbers in the list of the app."""

_Indexed: TypeAlias = Sequence[tuple[PatternIndex, Sequence[int]]]
"""The patterns of one list, in indexes, with their numbers in that list."""

_lists = PatternListCache()


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

    excluded: Exclusions
    """The patterns of the real subjects that the client must not see."""


@dataclass(frozen=True)
class Explanation:
    """The result of `Permissions.explain`."""

    allowed: bool

    rule: str
    """The rule that decides, for people."""

    real_pattern: str
    """The pattern after `Permissions.aliases` was applied. It must not be shown to clients."""

    history: bool = False
    """True if the client may also read the past of the pattern, beyond ``resume_window``."""

    history_rule: str = ""
    """The rule that decides about `history`, for people; empty if the pattern isn't allowed."""


@dataclass(frozen=True)
class Permissions:
    """The patterns to which one client may subscribe; none by default.

    Attributes:
        subscribe: Allowed patterns. A requested pattern must lie wholly inside one of them: ``orders.*`` is not
            inside ``orders.eu.>``. A wildcard in first place doesn't match first tokens that begin with ``$`` or
            ``_``; these must be spelled out.
        deny: Denied patterns. A requested pattern inside one of them is rejected. If it only overlaps with one,
            messages on denied subjects are skipped.
        variables: Values for ``{name}`` in ``subscribe``, ``deny`` and ``history``, one token each.
        aliases: Names for real subjects, such as ``{"me.": "tenants.42.users.7."}``. Keys and values are literal
            tokens that end in a dot. ``subscribe``, ``deny`` and ``history`` apply to the real subjects. A client
            can't subscribe to an aliased subject by its real name.
        allow_wildcards: Whether the client may request patterns with wildcards.
        identity: The user behind the client. It authorizes a POST to the client's session, selects sessions in
            `NatsBridge.revoke` and `NatsBridge.update_permissions`, and counts in ``max_sessions_per_identity``.
        expires: The time at which the session ends: an aware ``datetime`` or Unix seconds, up to the year 9999.
        history: Patterns whose past the client may read, as far back as the stream reaches. A requested pattern must
            lie wholly inside one of them, as for ``subscribe``. Without it a client may read the last
            ``resume_window`` seconds. What ``subscribe`` and ``deny`` don't allow stays forbidden.

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
    history: Sequence[str] = ()
    expires_at: float = field(init=False, repr=False, compare=False)
    """`expires` in Unix seconds; infinite if there is none."""
    _allowed: PatternList = field(init=False, repr=False, compare=False)
    _denied: PatternList = field(init=False, repr=False, compare=False)
    _past: PatternList = field(init=False, repr=False, compare=False)
    _filled: tuple[_Filled, _Filled, _Filled] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        subscribe, deny = _checked_patterns("subscribe", self.subscribe), _checked_patterns("deny", self.deny)
        history = _checked_patterns("history", self.history)
        variables, aliases = _checked_variables(self.variables), _checked_aliases(self.aliases)
        if not isinstance(self.allow_wildcards, bool):
            raise ValueError(f"allow_wildcards must be True or False, got {self.allow_wildcards!r}")
        if self.identity is not None and not _is_identity(self.identity):
            raise ValueError("identity must be a non-empty string that UTF-8 can encode")
        expires_at = _unix_seconds(self.expires)
        allowed = _lists.get("subscribe", subscribe, variables)
        filled = allowed.fill(variables)
        denied = _lists.get("deny", deny, variables)
        past = _lists.get("history", history, variables)
        self._set(
            subscribe=allowed.patterns,
            deny=denied.patterns,
            history=past.patterns,
            variables=MappingProxyType(variables),
            # The longest alias first, because it is the most specific one.
            aliases=MappingProxyType(dict(sorted(aliases.items(), key=lambda pair: -len(pair[0])))),
            expires_at=expires_at,
            _allowed=allowed,
            _denied=denied,
            _past=past,
            _filled=(filled, denied.fill(variables), past.fill(variables)),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A MappingProxyType can be neither pickled nor copied.
        lists, mappings = (self.subscribe, self.deny), (dict(self.variables), dict(self.aliases))
        return type(self), (*lists, *mappings, self.allow_wildcards, self.identity, self.expires, self.history)

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
        alias, target = self._alias_of(pattern)
        real = target + pattern[len(alias) :]
        if target and not subjects.is_valid(real):
            raise InvalidSubject(f"Not a valid subject: '{pattern}'", [pattern])
        excluded, _ = self._decide(pattern, real, by_alias=bool(target))
        if excluded is None:
            raise ForbiddenSubject(f"Not allowed: '{pattern}'", [pattern])
        return Grant(pattern, real, alias, target, excluded)

    def allows_history(self, grant: Grant) -> bool:
        """Return whether the client may read the whole past of what these permissions have granted.

        Messages that the grant excludes are excluded from the past too.
        """
        return _first_of(self._history, grant.real) is not None

    def explain(self, pattern: str) -> Explanation:
        """Explain whether the pattern is allowed, whether its past is, and by which rules.

        The rules are for operators, not for clients.
        """
        alias, target = self._alias_of(pattern)
        real = target + pattern[len(alias) :]
        if not subjects.is_valid(pattern) or not subjects.is_valid(real):
            return Explanation(False, "not a valid subject", real)
        excluded, rule = self._decide(pattern, real, by_alias=bool(target))
        if excluded is None:
            return Explanation(False, rule, real)
        if excluded:
            rule += f"; except {', '.join(excluded)}"
        return Explanation(True, rule, real, *self._decide_history(real))

    def _alias_of(self, pattern: str) -> tuple[str, str]:
        """Return the longest alias at the start of the pattern, and its target; both are empty if there is none."""
        if not self.aliases:
            return "", ""
        # An alias is literal, so it can only match the literal tokens at the start of the pattern.
        dot = pattern.rfind(".", 0, len(next(iter(self.aliases))))
        while dot >= 0:
            alias = pattern[: dot + 1]
            if alias in self.aliases:
                return alias, self.aliases[alias]
            dot = pattern.rfind(".", 0, dot)
        return "", ""

    def _decide(self, pattern: str, real: str, *, by_alias: bool) -> tuple[Exclusions | None, str]:
        """Decide whether the pattern is allowed.

        Returns:
            The exclusions of its grant, or ``None`` if it is denied, and the rule that decides.
        """
        if not self.allow_wildcards and subjects.has_wildcard(pattern):
            return None, "allow_wildcards is False"
        if real.partition(".")[0] == CONTROL_TOKEN:
            return None, "the bridge's own subjects are never allowed"
        return self._rules.decide(real, by_alias=by_alias)

    def _decide_history(self, real: str) -> tuple[bool, str]:
        """Decide whether the past of a real pattern is allowed; also return the rule that decides."""
        pattern = _first_of(self._history, real)
        if pattern is None:
            return False, f"no pattern in history includes {real}"
        return True, f"history {pattern}"

    @cached_property
    def _rules(self) -> "_Rules":
        # Not for each instance: many are made for their identity alone.
        return _Rules(self._allowed, self._denied, self._filled[:2], self.aliases.values())

    @cached_property
    def _history(self) -> _Indexed:
        return _indexed(self._past, self._filled[2])


class _Rules:
    """The indexes of the patterns of one `Permissions`.

    Args:
        allowed: The allowed patterns.
        denied: The denied patterns.
        filled: The patterns of both lists that have placeholders, replaced, with their numbers.
        targets: The targets of the aliases.
    """

    __slots__ = ("_aliased", "_allowed", "_denied")

    def __init__(
        self, allowed: PatternList, denied: PatternList, filled: tuple[_Filled, _Filled], targets: Collection[str]
    ) -> None:
        own_allowed, own_denied = filled
        self._allowed = _indexed(allowed, own_allowed)
        self._denied: list[DeniedIndex] = []
        if denied.numbers:
            self._denied.append(denied.denied)
        if own_denied:
            self._denied.append(DeniedIndex({pattern for _, pattern in own_denied}))
        self._aliased = DeniedIndex({f"{target}>" for target in targets}) if targets else None

    def decide(self, real: str, *, by_alias: bool) -> tuple[Exclusions | None, str]:
        """Decide whether a real pattern is allowed, as `Permissions` does."""
        denied = [found for index in self._denied if (found := index.first_including(real)) is not None]
        if denied:
            return None, f"deny {min(denied)}"
        # Aliased subjects are excluded under their real names.
        aliased = None if by_alias else self._aliased
        if aliased is not None and (found := aliased.first_including(real)) is not None:
            return None, f"aliases: {found} has an alias"
        allowed = _first_of(self._allowed, real)
        if allowed is None:
            return None, f"no pattern in subscribe includes {real}"
        excluded = NO_EXCLUSIONS
        for index in self._denied:
            excluded = excluded.combined(index.overlapping(real), in_order=True)
        if aliased is not None:
            excluded = excluded.combined(aliased.overlapping(real), in_order=False)
        return excluded, f"subscribe {allowed}"


def _indexed(patterns: PatternList, filled: _Filled) -> _Indexed:
    """Return the indexes of a list: the one for all clients, and that of a client's own patterns."""
    indexes: list[tuple[PatternIndex, Sequence[int]]] = []
    if patterns.numbers:
        indexes.append((patterns.allowed, patterns.numbers))
    if filled:
        numbers, own = zip(*filled, strict=True)
        indexes.append((PatternIndex(own), numbers))
    return indexes


def _first_of(indexed: _Indexed, real: str) -> str | None:
    """Return the first pattern of a list that covers a real pattern."""
    covering = [first for each in indexed if (first := _first_covering(*each, real)) is not None]
    return min(covering)[1] if covering else None


def _first_covering(index: PatternIndex, numbers: Sequence[int], real: str) -> tuple[int, str] | None:
    found = index.covering(real)
    if not found:
        return None
    first = lowest(found)
    return numbers[first], index.patterns[first]


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
