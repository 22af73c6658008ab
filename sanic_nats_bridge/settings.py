"""Every option of the bridge: its name, its default, its check.

A keyword argument comes first, then ``app.config.NATS_BRIDGE_<NAME>`` (so also the environment,
``SANIC_NATS_BRIDGE_<NAME>``), then the default. Durations are in seconds, names of sizes end in
``_bytes``, names of counts begin with ``max_``.
"""

import contextlib
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypedDict
from urllib.parse import urlsplit

from . import validators
from .auth.permissions import Permissions, PermissionsFunction
from .errors import SettingsError

__all__ = ["CONFIG_PREFIX", "ENVIRONMENT_PREFIX", "SettingKeywords", "Settings"]

CONFIG_PREFIX: Final = "NATS_BRIDGE_"
ENVIRONMENT_PREFIX: Final = "SANIC_NATS_BRIDGE_"


def _option(default: Any, check: Callable[[Any], Any]) -> Any:
    return field(default=default, metadata={"check": check})


class SettingKeywords(TypedDict, total=False):
    """The options as `NatsBridge` takes them."""

    servers: str | Sequence[str]
    prefix: str
    subscribe: str | Sequence[str]
    deny: str | Sequence[str]
    permissions: PermissionsFunction | None
    permissions_timeout: float
    allowed_origins: str | Sequence[str]
    headers: str | Sequence[str]
    heartbeat: float
    retry: float
    drain: float
    unsubscribe_delay: float
    confirm_timeout: float
    relay_timeout: float
    max_subscriptions: int
    max_patterns: int
    max_subscribe_rate: float
    max_sessions: int
    max_sessions_per_identity: int
    command_rate: float
    command_burst: int
    max_bad_commands: int
    max_command_bytes: int
    max_pending_bytes: int
    overflow: str
    write_timeout: float
    flush_interval: float
    ready_needs_nats: bool
    metrics: bool
    name: str
    user: str | None
    password: str | None
    token: str | None
    credentials: str | Path | None
    nkeys_seed: str | Path | None
    inbox_prefix: str
    control_prefix: str | None
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

    servers: tuple[str, ...] = _option(("nats://127.0.0.1:4222",), validators.server_urls)
    prefix: str = _option("/nats", validators.path_prefix)
    subscribe: tuple[str, ...] = _option((), validators.open_patterns)
    deny: tuple[str, ...] = _option((), validators.shut_patterns)
    permissions: PermissionsFunction | None = _option(None, validators.function)
    permissions_timeout: float = _option(10.0, validators.seconds(0.1))
    allowed_origins: tuple[str, ...] = _option((), validators.origins)
    headers: tuple[str, ...] = _option((), validators.header_names)
    heartbeat: float = _option(15.0, validators.seconds(0.1))
    retry: float = _option(2.0, validators.seconds(0.1))
    drain: float = _option(10.0, validators.seconds(0))
    unsubscribe_delay: float = _option(1.0, validators.seconds(0))
    confirm_timeout: float = _option(5.0, validators.seconds(0))
    relay_timeout: float = _option(2.0, validators.seconds(0.1))
    max_subscriptions: int = _option(128, validators.whole(1))
    max_patterns: int = _option(20_000, validators.whole(1))
    max_subscribe_rate: float = _option(1000.0, validators.rate)
    max_sessions: int = _option(10_000, validators.whole(1))
    max_sessions_per_identity: int = _option(100, validators.whole(1))
    command_rate: float = _option(20.0, validators.rate)
    command_burst: int = _option(40, validators.whole(1))
    max_bad_commands: int = _option(20, validators.whole(1))
    max_command_bytes: int = _option(65_536, validators.whole(64))
    max_pending_bytes: int = _option(1_048_576, validators.whole(1024))
    overflow: str = _option("gap", validators.one_of("gap", "latest", "close"))
    write_timeout: float = _option(20.0, validators.seconds(0.1))
    flush_interval: float = _option(0.0, validators.seconds(0, 1))
    ready_needs_nats: bool = _option(False, validators.flag)
    metrics: bool = _option(False, validators.flag)

    name: str = _option("sanic-nats-bridge", validators.text)
    user: str | None = _option(None, validators.text)
    password: str | None = _option(None, validators.text)
    token: str | None = _option(None, validators.text)
    credentials: str | None = _option(None, validators.readable_file)
    nkeys_seed: str | None = _option(None, validators.readable_file)
    inbox_prefix: str = _option("_INBOX", validators.reserved_prefix)
    control_prefix: str | None = _option(None, validators.reserved_prefix)
    tls: ssl.SSLContext | None = _option(None, validators.tls_context)
    tls_ca: str | None = _option(None, validators.readable_file)
    tls_cert: str | None = _option(None, validators.readable_file)
    tls_key: str | None = _option(None, validators.readable_file)
    tls_hostname: str | None = _option(None, validators.text)
    tls_handshake_first: bool = _option(False, validators.flag)
    connect_timeout: float = _option(2.0, validators.seconds(0.1))
    ping_interval: float = _option(4.0, validators.seconds(0.1))

    @classmethod
    def resolve(cls, keywords: Mapping[str, Any], config: Mapping[str, Any]) -> "Settings":
        """The settings from the keyword arguments, then the app's configuration, then the defaults.

        Raises:
            SettingsError: An unknown name, a value that its check refuses, or two that do not fit.
        """
        options = {option.name: option.metadata["check"] for option in fields(cls)}
        values = _configured(config) | dict(keywords)
        for name in values:
            if name not in options:
                raise SettingsError(f"NatsBridge has no setting '{name}'")
        checked = {name: _checked(name, value, options[name]) for name, value in values.items() if value is not None}
        settings = cls(**checked)
        settings._check_together()
        return settings

    def _check_together(self) -> None:
        if self.tls_key and not self.tls_cert:
            raise SettingsError("NatsBridge setting 'tls_key' needs 'tls_cert' beside it")
        if self.tls and (self.tls_ca or self.tls_cert):
            raise SettingsError("NatsBridge setting 'tls' excludes 'tls_ca', 'tls_cert' and 'tls_key'")
        if self.tls_only and any(urlsplit(url).scheme == "ws" for url in self.servers):
            raise SettingsError(
                "NatsBridge setting 'servers' must be wss:// URLs, not ws://, where TLS is set up beside it"
            )
        if self.permissions and (self.subscribe or self.deny):
            # They would hold for nobody, and whoever has set them must not believe that they do.
            raise SettingsError("NatsBridge setting 'permissions' excludes 'subscribe' and 'deny': let it return them")
        self._check_packages()
        self.tls_context()

    def _check_packages(self) -> None:
        by_websocket = any(urlsplit(url).scheme in ("ws", "wss") for url in self.servers)
        for name, wanted, module, package in (
            ("metrics", self.metrics, "prometheus_client", "sanic-nats-bridge[metrics]"),
            ("credentials", self.credentials, "nkeys", "nats-py[nkeys]"),
            ("nkeys_seed", self.nkeys_seed, "nkeys", "nats-py[nkeys]"),
            ("servers", by_websocket, "aiohttp", "nats-py[aiohttp]"),
        ):
            if wanted and find_spec(module) is None:
                raise SettingsError(f"NatsBridge setting '{name}' needs pip install '{package}'")

    @cached_property
    def default_permissions(self) -> Permissions:
        """What everybody may follow, where there is no ``permissions`` function."""
        return Permissions(self.subscribe, self.deny)

    @property
    def high_water_bytes(self) -> int:
        """How much may wait in a client's buffer before its messages are left out."""
        return self.max_pending_bytes - self.kept_bytes

    @property
    def low_water_bytes(self) -> int:
        """How little must wait for a client until it counts as having caught up."""
        return self.high_water_bytes // 4

    @property
    def kept_bytes(self) -> int:
        """How much is kept of what a client cannot be given yet: the other half of what may wait for it."""
        return self.max_pending_bytes // 2 if self.overflow == "latest" else 0

    @property
    def tls_only(self) -> bool:
        """Whether no server may be spoken to without TLS, even where its URL does not ask for it."""
        return bool(self.tls or self.tls_ca or self.tls_cert or self.tls_hostname or self.tls_handshake_first)

    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS context for NATS; ``None`` leaves it to nats-py, which verifies by what the system trusts.

        Raises:
            SettingsError: The files that it is made from do not load.
        """
        if self.tls or not (self.tls_ca or self.tls_cert):
            return self.tls
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"NatsBridge settings 'tls_ca', 'tls_cert', 'tls_key' do not load: {error.strerror}"
            ) from None
        return context


def _configured(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.removeprefix(CONFIG_PREFIX).lower(): _as_written(key, value)
        for key, value in config.items()
        if key.startswith(CONFIG_PREFIX)
    }


def _as_written(key: str, value: Any) -> Any:
    # Sanic reads numbers and truth values into what comes from the environment; a token "0042" is none.
    name = key.removeprefix(CONFIG_PREFIX)
    if not isinstance(value, bool | int | float) or isinstance(getattr(Settings, name.lower(), None), int | float):
        return value
    text = os.environ.get(ENVIRONMENT_PREFIX + name)
    return text if text is not None and (isinstance(value, bool) or _number(text) == value) else value


def _number(text: str) -> float | None:
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return None


def _checked(name: str, value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise SettingsError(f"NatsBridge setting '{name}' {error}") from None
