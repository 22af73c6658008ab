"""Who may follow what: the rules that hold for one session."""

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

from ..errors import SubjectForbidden, SubjectInvalid
from ..protocol import subjects

__all__ = ["CONTROL_TOKEN", "Explanation", "Grant", "Permissions", "PermissionsFunction"]

CONTROL_TOKEN: Final = "_NATSBRIDGE"
"""First token of the subjects on which bridges talk to each other; never open to a client."""

_END_OF_9999: Final = 253_402_387_200
"""When the year 9999 has ended in every time zone, in Unix seconds; what `datetime` can say is before it."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")


class Grant(NamedTuple):
    """A pattern that a client may follow. Clients with equal grants see the same."""

    pattern: str
    """As the client names it."""

    real: str
    """As NATS knows it."""

    shown: str
    """What stands in the place of `hidden` for the client; both are empty where nothing is renamed."""

    hidden: str
    """How every real subject of it begins."""

    left_out: tuple[str, ...]
    """Patterns of the real subjects that the client is not shown."""


@dataclass(frozen=True)
class Explanation:
    """What `Permissions.explain` finds."""

    allowed: bool

    rule: str
    """The rule that has decided, for people."""

    real_pattern: str
    """What NATS would be asked for: the pattern once `Permissions.map` was applied. Not for clients."""


@dataclass(frozen=True)
class Permissions:
    """What one client may follow; nothing by default.

    Attributes:
        subscribe: Patterns that are open. One that is asked for must lie wholly inside one of them:
            ``orders.*`` is not inside ``orders.eu.>``. A wildcard in first place does not reach first
            tokens that begin with ``$`` or ``_``: those are open only where spelled out.
        deny: Patterns that are shut. One that is asked for inside one of them is refused; where it
            only overlaps with one, the messages on denied subjects are left out.
        values: What stands in the place of ``{name}`` in ``subscribe`` and ``deny``, each one token.
        map: Names of the app's own for real subjects, such as ``{"me.": "tenants.42.users.7."}``: keys
            and values are literal tokens that end in a dot. ``subscribe`` and ``deny`` are about the real
            subjects. By their real names these cannot be followed.
        literal_only: No wildcards may be asked for.
        identity: Who the client is, for a POST to its session, `NatsBridge.revoke`, `NatsBridge.repermit`
            and ``max_sessions_per_identity``.
        expires: When its session ends, as an aware ``datetime`` or in Unix seconds, up to the year 9999.

    Raises:
        ValueError: A pattern, a value or a time is not what it must be.
    """

    subscribe: Sequence[str] = ()
    deny: Sequence[str] = ()
    values: Mapping[str, str] = field(default_factory=dict, hash=False)
    map: Mapping[str, str] = field(default_factory=dict, hash=False)
    literal_only: bool = False
    identity: str | None = None
    expires: datetime | float | None = None
    expires_at: float = field(init=False, repr=False, compare=False)
    """`expires` in Unix seconds; infinite where there is no end."""
    _open: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _shut: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _hidden: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        subscribe, deny = _texts("subscribe", self.subscribe), _texts("deny", self.deny)
        values, names = _checked_values(self.values), _checked_names(self.map)
        if not isinstance(self.literal_only, bool):
            raise ValueError("literal_only must be true or false")
        if self.identity is not None and not _is_identity(self.identity):
            raise ValueError("identity must be a text that is not empty, and that UTF-8 can hold")
        self._set(
            subscribe=subscribe,
            deny=deny,
            values=MappingProxyType(values),
            # The longest first, for it is the nearest.
            map=MappingProxyType(dict(sorted(names.items(), key=lambda pair: -len(pair[0])))),
            expires_at=_unix_seconds(self.expires),
            _open=tuple(_filled("subscribe", pattern, values) for pattern in subscribe),
            _shut=tuple(sorted({_filled("deny", pattern, values) for pattern in deny})),
            _hidden=tuple(sorted({f"{target}>" for target in names.values()})),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Mappings that nobody can change can be neither pickled nor copied.
        mappings = dict(self.values), dict(self.map)
        return type(self), (self.subscribe, self.deny, *mappings, self.literal_only, self.identity, self.expires)

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def grant(self, pattern: str) -> Grant:
        """Return the grant for a pattern as a client names it.

        Raises:
            SubjectInvalid: The pattern is outside the grammar of `subjects`.
            SubjectForbidden: The permissions don't allow it.
        """
        return self.grant_valid(subjects.validate(pattern))

    def grant_valid(self, pattern: str) -> Grant:
        """Return the grant for a pattern that is known to be inside the grammar of `subjects`.

        Raises:
            SubjectInvalid: The real pattern behind an alias is too long or has too many tokens.
            SubjectForbidden: The permissions don't allow it.
        """
        grant = self._renamed(pattern)
        if grant.hidden and not subjects.is_valid(grant.real):
            raise SubjectInvalid(f"Not a valid subject: '{pattern}'", [pattern])
        if not self._judge(grant)[0]:
            raise SubjectForbidden(f"Not allowed: '{pattern}'", [pattern])
        return grant

    def explain(self, pattern: str) -> Explanation:
        """Whether the pattern may be followed, and by which rule; for operators, never for clients."""
        grant = self._renamed(pattern)
        if not subjects.is_valid(pattern) or not subjects.is_valid(grant.real):
            return Explanation(False, "not a valid subject", grant.real)
        allowed, rule = self._judge(grant)
        if allowed and grant.left_out:
            rule += f"; left out: {', '.join(grant.left_out)}"
        return Explanation(allowed, rule, grant.real)

    def _renamed(self, pattern: str) -> Grant:
        # Keys are literal, so only the literal tokens that lead the pattern can be meant.
        shown, hidden = next((names for names in self.map.items() if pattern.startswith(names[0])), ("", ""))
        real = hidden + pattern.removeprefix(shown)
        left_out = tuple(denied for denied in self._shut_for(hidden) if subjects.overlaps(denied, real))
        return Grant(pattern, real, shown, hidden, left_out)

    def _shut_for(self, hidden: str) -> tuple[str, ...]:
        # What has a name of the app's own cannot be reached by its real one.
        return self._shut if hidden else self._shut + self._hidden

    def _judge(self, grant: Grant) -> tuple[bool, str]:
        """Whether it holds, and the rule that says so."""
        if self.literal_only and subjects.has_wildcard(grant.pattern):
            return False, "literal_only: no wildcards"
        if grant.real.partition(".")[0] == CONTROL_TOKEN:
            return False, "the bridge's own subjects cannot be opened"
        for denied in grant.left_out:
            if subjects.includes(denied, grant.real):
                return False, f"deny {denied}" if denied in self._shut else f"map: {denied} has a name of its own"
        for allowed in self._open:
            if subjects.covers(allowed, grant.real):
                return True, f"subscribe {allowed}"
        return False, f"no pattern of subscribe covers {grant.real}"


PermissionsFunction: TypeAlias = Callable[[Any], Awaitable[Permissions | None] | Permissions | None]
"""What an app decides by: gets Sanic's request, and returns ``None`` where it knows no such client."""


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of patterns")
    texts = tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a list of patterns")
    return texts


def _pairs(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping")
    if not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise ValueError(f"{name} must map texts to texts")
    return dict(value)


def _is_identity(value: Any) -> bool:
    # It goes to other workers as JSON. Sanic makes lone surrogates of what is not UTF-8 in a header.
    return isinstance(value, str) and value != "" and not _SURROGATE.search(value)


def _checked_values(value: Any) -> dict[str, str]:
    values = _pairs("values", value)
    for name, token in values.items():
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"values has {name!a}, which is no name")
        if "." in token or subjects.has_wildcard(token) or not subjects.is_valid(token):
            raise ValueError(f"values has for '{name}' what is not one token: {token!a}")
    return values


def _checked_names(value: Any) -> dict[str, str]:
    names = _pairs("map", value)
    for prefix in (*names, *names.values()):
        literal = subjects.is_valid(prefix[:-1]) and not subjects.has_wildcard(prefix)
        if not literal or not prefix.endswith(".") or prefix.partition(".")[0] == CONTROL_TOKEN:
            raise ValueError(f"map has what is not whole tokens that end in a dot: {prefix!a}")
    return names


def _filled(name: str, pattern: str, values: Mapping[str, str]) -> str:
    """The pattern with the app's values in it."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise ValueError(f"{name} has {pattern!a}, but values has nothing for '{found[1]}'")
        return values[found[1]]

    filled = _PLACEHOLDER.sub(value, pattern)
    if not subjects.is_valid(filled):
        raise ValueError(f"{name} holds what is not a valid subject: {filled!a}")
    if name == "subscribe" and subjects.is_reserved(filled) and not subjects.is_reserved(pattern):
        raise ValueError(f"{name} has {pattern!a}, into which a value must not put a reserved first token")
    if name == "subscribe" and filled.partition(".")[0] == CONTROL_TOKEN:
        raise ValueError(f"{name} must not open the bridge's own subjects: {filled!a}")
    return filled


def _unix_seconds(expires: Any) -> float:
    if expires is None:
        return math.inf
    if isinstance(expires, datetime):
        if expires.tzinfo is None or expires.utcoffset() is None:
            raise ValueError("expires must be an aware datetime, or Unix seconds")
        return expires.timestamp()
    if isinstance(expires, bool) or not isinstance(expires, int | float) or not -math.inf < expires < math.inf:
        raise ValueError("expires must be an aware datetime, or Unix seconds")
    if abs(expires) > _END_OF_9999:
        raise ValueError("expires is beyond the year 9999; it must be in Unix seconds, not milliseconds")
    return float(expires)
