"""Permissions: the patterns that one client may subscribe to, whose past it may read, and to which it may publish."""

import math
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from ..errors import ForbiddenSubject, InvalidSubject, PublishForbidden, RequestForbidden
from ..protocol import subjects
from ..protocol.publish import PublishAction
from .exclusions import NO_EXCLUSIONS, DeniedIndex, Exclusions
from .pattern_lists import CONTROL_TOKEN, LIST_NAMES, NO_PATTERNS, AllowedIndex, ClientList, ListName

__all__ = ["CONTROL_TOKEN", "Explanation", "Grant", "Permissions", "PermissionsFunction", "forbidden_publish"]

_END_OF_9999 = 253_402_387_200
"""The end of the year 9999 in every time zone, in Unix seconds; `datetime` goes no further."""

_SURROGATE = re.compile("[\ud800-\udfff]")


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

    publish: bool = False
    """True if the client may publish to the subject."""

    publish_rule: str = ""
    """The rule that decides about `publish`, for people; empty if `Permissions.publish` is."""

    request: bool = False
    """True if the client may send requests to the subject."""

    request_rule: str = ""
    """The rule that decides about `request`, for people; empty if `Permissions.request` is."""

    follow: bool = False
    """True if the client follows the pattern from its start."""

    follow_rule: str = ""
    """The rule that decides about `follow`, for people; empty if `Permissions.follow` is."""


@dataclass(frozen=True)
class Permissions:
    """The patterns that one client may subscribe to, publish to and send requests to; none by default.

    Attributes:
        subscribe: Allowed patterns. A requested pattern must lie wholly inside one of them: ``orders.*`` is not
            inside ``orders.eu.>``. A wildcard in first place doesn't match first tokens that begin with ``$`` or
            ``_``; these must be spelled out.
        deny: Denied patterns. A requested pattern inside one of them is rejected. If it only overlaps with one,
            messages on denied subjects are skipped. A client can't publish or send requests to denied subjects either.
        variables: Values for ``{name}`` in the lists of patterns, one token each.
        aliases: Names for real subjects, such as ``{"me.": "tenants.42.users.7."}``. Keys and values are literal
            tokens that end in a dot. All lists of patterns apply to the real subjects. A client can't use an aliased
            subject by its real name.
        allow_wildcards: Whether the client may request patterns with wildcards.
        identity: The user behind the client. It authorizes a POST to the client's session, selects sessions in
            `NatsBridge.revoke` and `NatsBridge.update_permissions`, and counts in ``max_sessions_per_identity``.
        expires: The time at which the session ends: an aware ``datetime`` or Unix seconds, up to the year 9999.
        history: Patterns whose past the client may read, as far back as the stream reaches. A requested pattern must
            lie wholly inside one of them, as for ``subscribe``. Without it a client may read the last
            ``resume_window`` seconds. What ``subscribe`` and ``deny`` don't allow stays forbidden.
        publish: Patterns of the subjects to which the client may publish. As in ``subscribe``, a wildcard in first
            place doesn't match first tokens that begin with ``$`` or ``_``.
        request: Patterns of the subjects to which the client may send requests.
        follow: Patterns that a session follows from its start, without a command. They needn't be in ``subscribe``, and
            the client can't unsubscribe from them. Those that ``deny`` includes aren't followed.

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
    publish: Sequence[str] = field(default=(), kw_only=True)
    request: Sequence[str] = field(default=(), kw_only=True)
    follow: Sequence[str] = field(default=(), kw_only=True)
    expires_at: float = field(init=False, repr=False, compare=False)
    """`expires` in Unix seconds; infinite if there is none."""
    _patterns: Mapping[ListName, ClientList] = field(init=False, repr=False, compare=False)
    _named: Sequence[tuple[str, str, str, str]] = field(init=False, repr=False, compare=False)
    """The patterns of `follow`: each as the client names it, as NATS knows it, its alias and the target of that."""

    def __post_init__(self) -> None:
        # Most lists are empty, and many permissions are made for their identity alone.
        given = {name: _checked_patterns(name, value) for name in LIST_NAMES if (value := getattr(self, name)) != ()}
        variables, aliases = _checked_variables(self.variables), _checked_aliases(self.aliases)
        if not isinstance(self.allow_wildcards, bool):
            raise ValueError(f"allow_wildcards must be True or False, got {self.allow_wildcards!r}")
        if self.identity is not None and not _is_identity(self.identity):
            raise ValueError("identity must be a non-empty string that UTF-8 can encode")
        expires_at = _unix_seconds(self.expires)
        patterns = {name: ClientList.of(name, each, variables) for name, each in given.items()}
        self._set(
            **{name: each.shared.patterns for name, each in patterns.items()},
            variables=MappingProxyType(variables),
            # The longest alias first, because it is the most specific one.
            aliases=MappingProxyType(dict(sorted(aliases.items(), key=lambda pair: -len(pair[0])))),
            expires_at=expires_at,
            _patterns=patterns,
            _named=(),
        )
        if "follow" in patterns:
            # After the aliases, on which the names depend.
            self._set(_named=[self._name_of(real) for real in dict.fromkeys(patterns["follow"].real_patterns())])

    def __reduce__(self) -> tuple[Any, ...]:
        # A MappingProxyType can be neither pickled nor copied.
        lists, mappings = (self.subscribe, self.deny), (dict(self.variables), dict(self.aliases))
        create = partial(type(self), publish=self.publish, request=self.request, follow=self.follow)
        return create, (*lists, *mappings, self.allow_wildcards, self.identity, self.expires, self.history)

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
        return self._first_covering("history", grant.real) is not None

    def authorize_publish(self, subject: str, action: PublishAction = "publish") -> str:
        """Return the real subject to which the client publishes, or sends a request.

        Args:
            subject: The subject as the client names it.
            action: The list that must allow it.

        Raises:
            InvalidSubject: It isn't a valid literal subject, or the real one is too long or has too many tokens.
            PublishForbidden: The permissions don't allow to publish to it.
            RequestForbidden: The permissions don't allow to send requests to it.
        """
        alias, target = self._alias_of(subjects.validate_literal(subject))
        real = target + subject[len(alias) :]
        if target and not subjects.is_valid(real):
            raise InvalidSubject(f"Not a valid subject: '{subject}'", [subject])
        if not self._decide_publish(action, real, by_alias=bool(target))[0]:
            raise forbidden_publish(subject, action)
        return real

    def reserved_patterns(self, name: ListName) -> list[str]:
        """Return the patterns of a list whose first token begins with ``$`` or ``_``, with the values of variables."""
        return self._patterns[name].reserved_patterns() if name in self._patterns else []

    @property
    def followed(self) -> list[Grant]:
        """The grants of the patterns that a session follows from its start, each pattern once."""
        grants = []
        for pattern, real, alias, target in self._named:
            if self._prohibitions.rule(real, by_alias=bool(target)) is None:
                excluded = self._prohibitions.exclusions(real, by_alias=bool(target))
                grants.append(Grant(pattern, real, alias, target, excluded))
        return grants

    def explain(self, pattern: str) -> Explanation:
        """Explain what the client may do with the pattern, and by which rules.

        The rules are for operators, not for clients.
        """
        alias, target = self._alias_of(pattern)
        real, by_alias = target + pattern[len(alias) :], bool(target)
        if not subjects.is_valid(pattern) or not subjects.is_valid(real):
            return Explanation(False, "not a valid subject", real)
        excluded, rule = self._decide(pattern, real, by_alias=by_alias)
        if excluded:
            rule += f"; except {', '.join(excluded)}"
        return Explanation(
            excluded is not None,
            rule,
            real,
            *(self._decide_history(real) if excluded is not None else (False, "")),
            *(self._decide_publish("publish", real, by_alias=by_alias) if self.publish else (False, "")),
            *(self._decide_publish("request", real, by_alias=by_alias) if self.request else (False, "")),
            *(self._decide_follow(real, by_alias=by_alias) if self.follow else (False, "")),
        )

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

    def _name_of(self, real: str) -> tuple[str, str, str, str]:
        """Return a real pattern with its name for the client, the alias and its target.

        Raises:
            ValueError: The client can't name it.
        """
        # The longest target first, because it is the most specific one.
        targets = sorted(
            (pair for pair in self.aliases.items() if real.startswith(pair[1])), key=lambda it: -len(it[1])
        )
        for alias, target in targets or [("", "")]:
            name = alias + real[len(target) :]
            if subjects.is_valid(name) and self._alias_of(name) == (alias, target):
                return name, real, alias, target
        raise ValueError(f"follow has {real!a}, which a client cannot name because of aliases")

    def _decide(self, pattern: str, real: str, *, by_alias: bool) -> tuple[Exclusions | None, str]:
        """Decide whether the pattern is allowed.

        Returns:
            The exclusions of its grant, or ``None`` if it is denied, and the rule that decides.
        """
        if not self.allow_wildcards and subjects.has_wildcard(pattern):
            return None, "allow_wildcards is False"
        if real.partition(".")[0] == CONTROL_TOKEN:
            return None, "the bridge's own subjects are never allowed"
        prohibited = self._prohibitions.rule(real, by_alias=by_alias)
        if prohibited is not None:
            return None, prohibited
        allowed, rule = self._decide_by("subscribe", real)
        return (self._prohibitions.exclusions(real, by_alias=by_alias) if allowed else None), rule

    def _decide_history(self, real: str) -> tuple[bool, str]:
        """Decide whether the past of a real pattern is allowed; also return the rule that decides."""
        return self._decide_by("history", real)

    def _decide_publish(self, action: PublishAction, real: str, *, by_alias: bool) -> tuple[bool, str]:
        """Decide whether the client may publish, or send requests, to a real subject; also return the rule."""
        if subjects.has_wildcard(real):
            return False, f"a {action} must have a subject without wildcards"
        if real.partition(".")[0] == CONTROL_TOKEN:
            return False, "the bridge's own subjects are never allowed"
        prohibited = self._prohibitions.rule(real, by_alias=by_alias)
        return self._decide_by(action, real) if prohibited is None else (False, prohibited)

    def _decide_follow(self, real: str, *, by_alias: bool) -> tuple[bool, str]:
        """Decide whether the client follows a real pattern from its start; also return the rule that decides."""
        prohibited = self._prohibitions.rule(real, by_alias=by_alias)
        return self._decide_by("follow", real) if prohibited is None else (False, prohibited)

    def _decide_by(self, name: ListName, real: str) -> tuple[bool, str]:
        pattern = self._first_covering(name, real)
        return pattern is not None, f"no pattern in {name} includes {real}" if pattern is None else f"{name} {pattern}"

    def _first_covering(self, name: ListName, real: str) -> str | None:
        """Return the first pattern of a list that covers a real pattern."""
        index = self._indexes.get(name)
        if index is None:
            index = self._indexes[name] = self._patterns.get(name, NO_PATTERNS).indexed()
        return index.first_covering(real)

    # Not for each instance: many are made for their identity alone.

    @cached_property
    def _prohibitions(self) -> "_Prohibitions":
        return _Prohibitions(self._patterns.get("deny", NO_PATTERNS), self.aliases.values())

    @cached_property
    def _indexes(self) -> dict[ListName, AllowedIndex]:
        return {}


class _Prohibitions:
    """The patterns that one `Permissions` forbids in every direction.

    Args:
        denied: The denied patterns.
        targets: The targets of the aliases.
    """

    __slots__ = ("_aliased", "_denied")

    def __init__(self, denied: ClientList, targets: Collection[str]) -> None:
        self._denied: list[DeniedIndex] = []
        if denied.shared.numbers:
            self._denied.append(denied.shared.denied)
        if denied.filled:
            self._denied.append(DeniedIndex({pattern for _, pattern in denied.filled}))
        self._aliased = DeniedIndex({f"{target}>" for target in targets}) if targets else None

    def rule(self, real: str, *, by_alias: bool) -> str | None:
        """Return the rule that forbids a real pattern, if there is one."""
        denied = [found for index in self._denied if (found := index.first_including(real)) is not None]
        if denied:
            return f"deny {min(denied)}"
        # Aliased subjects are excluded under their real names.
        if self._aliased is not None and not by_alias and (found := self._aliased.first_including(real)) is not None:
            return f"aliases: {found} has an alias"
        return None

    def exclusions(self, real: str, *, by_alias: bool) -> Exclusions:
        """Return the patterns whose subjects a grant of a real pattern excludes."""
        excluded = NO_EXCLUSIONS
        for index in self._denied:
            excluded = excluded.combined(index.overlapping(real), in_order=True)
        if self._aliased is not None and not by_alias:
            excluded = excluded.combined(self._aliased.overlapping(real), in_order=False)
        return excluded


def forbidden_publish(subject: str, action: PublishAction) -> PublishForbidden | RequestForbidden:
    """Return the error for a subject, as the client names it, to which it may not publish or send requests."""
    if action == "publish":
        return PublishForbidden(f"Not allowed to publish to: '{subject}'", [subject])
    return RequestForbidden(f"Not allowed to send requests to: '{subject}'", [subject])


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
