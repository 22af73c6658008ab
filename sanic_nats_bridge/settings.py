"""Every option of the bridge: its name, its default, its check.

A keyword argument comes first, then ``app.config.NATS_BRIDGE_<NAME>`` (so also the environment,
``SANIC_NATS_BRIDGE_<NAME>``), then the default. Durations are in seconds, names of sizes end in
``_bytes``, names of counts begin with ``max_``.
"""

import json
import math
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypedDict
from urllib.parse import urlsplit

from .errors import SettingsError, SubjectInvalid
from .permissions import CONTROL_TOKEN
from .subjects import validate

__all__ = ["SettingKeywords", "Settings"]

CONFIG_PREFIX: Final = "NATS_BRIDGE_"
ENVIRONMENT_PREFIX: Final = "SANIC_NATS_BRIDGE_"

_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_HEADER_NAME: Final = re.compile(r"[!-9;-~]+")  # ADR-4: printable ASCII without the colon
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")


def _option(default: Any, check: Callable[[Any], Any]) -> Any:
    return field(default=default, metadata={"check": check})


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text that is not empty")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else value.split()
        except ValueError:
            raise ValueError("is not a JSON list") from None
    if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(word, str) for word in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def _servers(value: Any) -> tuple[str, ...]:
    servers = _words(value)
    for server in servers:
        parts = urlsplit(server if "://" in server else f"nats://{server}")
        try:
            sound = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise ValueError("must be NATS URLs such as nats://127.0.0.1:4222")
    if not servers:
        raise ValueError("must name at least one NATS server")
    if len({server.partition("://")[0] in ("ws", "wss") for server in servers}) > 1:
        raise ValueError("must not mix WebSocket URLs with others")
    return servers


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = _words(value)
    for pattern in patterns:
        try:
            validate(pattern)
        except SubjectInvalid:
            raise ValueError(f"holds what is not a valid subject: {pattern!a}") from None
        if pattern.partition(".")[0] == CONTROL_TOKEN:
            raise ValueError(f"must not open the bridge's own subjects: {pattern!a}")
    return patterns


def _header_names(value: Any) -> tuple[str, ...]:
    names = _words(value)
    if not all(_HEADER_NAME.fullmatch(name) for name in names):
        raise ValueError("must be names of NATS headers")
    return names


def _prefix(value: Any) -> str:
    if not isinstance(value, str) or not _PREFIX.fullmatch(value):
        raise ValueError("must be empty or a path such as /nats, without a slash at its end")
    return value


def _seconds(least: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if not number or not math.isfinite(value) or value < least:
            raise ValueError(f"must be a number of seconds, at least {least}")
        return float(value)

    return check


def _whole(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"must be a whole number, at least {least}")
        return value

    return check


def _file(value: Any) -> str:
    path = os.fspath(value) if isinstance(value, Path) else _text(value)
    if not Path(path).is_file():
        raise ValueError(f"names a file that is not there: {path}")
    return path


def _tls(value: Any) -> ssl.SSLContext:
    if not isinstance(value, ssl.SSLContext):
        raise ValueError("must be an ssl.SSLContext; in the configuration use tls_ca, tls_cert and tls_key")
    return value


class SettingKeywords(TypedDict, total=False):
    """The options as `NatsBridge` takes them."""

    servers: str | Sequence[str]
    prefix: str
    subscribe: str | Sequence[str]
    headers: str | Sequence[str]
    heartbeat: float
    retry: float
    linger: float
    confirm_timeout: float
    max_subscriptions: int
    max_sessions: int
    max_command_bytes: int
    name: str
    user: str | None
    password: str | None
    token: str | None
    credentials: str | Path | None
    nkeys_seed: str | Path | None
    inbox_prefix: str
    tls: ssl.SSLContext | None
    tls_ca: str | Path | None
    tls_cert: str | Path | None
    tls_key: str | Path | None
    tls_hostname: str | None
    tls_handshake_first: bool
    connect_timeout: float
    ping_interval: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """The options of one bridge, checked. It has no ``repr``: some are secrets."""

    servers: tuple[str, ...] = _option(("nats://127.0.0.1:4222",), _servers)
    prefix: str = _option("/nats", _prefix)
    subscribe: tuple[str, ...] = _option((), _patterns)
    headers: tuple[str, ...] = _option((), _header_names)
    heartbeat: float = _option(15.0, _seconds(0.1))
    retry: float = _option(2.0, _seconds(0.1))
    linger: float = _option(1.0, _seconds(0))
    confirm_timeout: float = _option(5.0, _seconds(0))
    max_subscriptions: int = _option(128, _whole(1))
    max_sessions: int = _option(10_000, _whole(1))
    max_command_bytes: int = _option(65_536, _whole(64))

    name: str = _option("sanic-nats-bridge", _text)
    user: str | None = _option(None, _text)
    password: str | None = _option(None, _text)
    token: str | None = _option(None, _text)
    credentials: str | None = _option(None, _file)
    nkeys_seed: str | None = _option(None, _file)
    inbox_prefix: str = _option("_INBOX", _text)
    tls: ssl.SSLContext | None = _option(None, _tls)
    tls_ca: str | None = _option(None, _file)
    tls_cert: str | None = _option(None, _file)
    tls_key: str | None = _option(None, _file)
    tls_hostname: str | None = _option(None, _text)
    tls_handshake_first: bool = _option(False, _flag)
    connect_timeout: float = _option(2.0, _seconds(0.1))
    ping_interval: float = _option(5.0, _seconds(0.1))

    @classmethod
    def resolve(cls, keywords: Mapping[str, Any], config: Mapping[str, Any]) -> "Settings":
        """The settings from the keyword arguments, then the app's configuration, then the defaults.

        Raises:
            SettingsError: An unknown name, a value that its check refuses, or two that do not fit.
        """
        options = {option.name: option.metadata["check"] for option in fields(cls)}
        for name in (*keywords, *_configured(config)):
            if name not in options:
                raise SettingsError(f"NatsBridge has no setting '{name}'")
        values = _configured(config) | dict(keywords)
        checked = {name: _checked(name, value, options[name]) for name, value in values.items() if value is not None}
        settings = cls(**checked)
        settings._check_together()
        return settings

    def _check_together(self) -> None:
        if self.tls_key and not self.tls_cert:
            raise SettingsError("NatsBridge setting 'tls_key' needs 'tls_cert' beside it")
        if self.tls and (self.tls_ca or self.tls_cert):
            raise SettingsError("NatsBridge setting 'tls' excludes 'tls_ca', 'tls_cert' and 'tls_key'")

    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS context for NATS; ``None`` leaves it to the URL and to what the server asks for."""
        if self.tls or not (self.tls_ca or self.tls_cert):
            return self.tls
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"NatsBridge settings 'tls_ca', 'tls_cert', 'tls_key' do not load: {error}") from None
        return context


def _configured(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.removeprefix(CONFIG_PREFIX).lower(): _as_written(key, value)
        for key, value in config.items()
        if key.startswith(CONFIG_PREFIX)
    }


def _as_written(key: str, value: Any) -> Any:
    # Sanic reads numbers and truth values into what comes from the environment; a token "0042" is none.
    name = key.removeprefix(CONFIG_PREFIX).lower()
    default = getattr(Settings, name, None)
    if isinstance(value, str) or isinstance(default, int | float):
        return value
    return os.environ.get(ENVIRONMENT_PREFIX + key.removeprefix(CONFIG_PREFIX), value)


def _checked(name: str, value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise SettingsError(f"NatsBridge setting '{name}' {error}") from None
