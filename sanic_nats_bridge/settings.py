"""The options of the bridge: names, types, defaults and validators.

A keyword argument overrides ``app.config.NATS_BRIDGE_<NAME>`` (and so the environment's
``SANIC_NATS_BRIDGE_<NAME>``), which overrides the default. If ``servers`` isn't set, the environment's ``NATS_URL`` is
used, as by the tools of NATS. Durations are in seconds, names of sizes end in
``_bytes``, names of limits begin with ``max_``.
"""

import contextlib
import difflib
import os
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict
from urllib.parse import urlsplit

from . import validators
from .auth.permissions import CONTROL_TOKEN, Permissions, PermissionsFunction
from .auth.publish_policy import PublishPolicy
from .errors import SettingsError

__all__ = ["CONFIG_PREFIX", "ENVIRONMENT_PREFIX", "SettingKeywords", "Settings"]

CONFIG_PREFIX = "NATS_BRIDGE_"
ENVIRONMENT_PREFIX = "SANIC_NATS_BRIDGE_"

_RENAMED = {
    "linger": "unsubscribe_delay",
    "drain": "reconnect_spread",
    "headers": "expose_headers",
    "max_sub_rate": "max_subscribe_rate",
}


_SERVERS_VARIABLE = "NATS_URL"
_SECRET = {
    "servers", "user", "password", "token", "credentials", "nkeys_seed", "control_key", "tls_cert", "tls_key",
}  # fmt: skip
"""The settings whose value isn't shown in an error. A secret may be given in place of the path of its file."""
_MAX_SHOWN = 200
_FOR_EVERY_CLIENT = ("subscribe", "deny", "history", "publish", "request")


def _option(default: Any, validator: Callable[[Any], Any]) -> Any:
    return field(default=default, metadata={"validator": validator})


class SettingKeywords(TypedDict, total=False):
    """The keyword arguments of `NatsBridge`."""

    servers: str | Sequence[str]
    prefix: str
    public_prefix: str | None
    subscribe: str | Sequence[str]
    deny: str | Sequence[str]
    history: str | Sequence[str]
    publish: str | Sequence[str]
    request: str | Sequence[str]
    permissions: PermissionsFunction | None
    permissions_timeout: float
    allowed_origins: str | Sequence[str]
    allowed_hosts: str | Sequence[str] | None
    expose_headers: str | Sequence[str]
    heartbeat: float
    retry: float
    reconnect_spread: float
    unsubscribe_delay: float
    confirm_timeout: float
    relay_timeout: float
    max_relays: int
    max_relays_per_client: int
    max_subscriptions: int
    max_overlap: int
    max_patterns: int
    max_patterns_per_client: int
    max_subscribe_rate: float
    max_sessions: int
    max_sessions_per_identity: int
    max_sessions_per_address: int
    max_permissions_calls: int
    max_permissions_calls_per_client: int
    request_rate: float
    request_burst: int
    command_rate: float
    command_burst: int
    max_bad_commands: int
    max_command_bytes: int
    publish_rate: float
    publish_burst: int
    max_publish_bytes: int
    max_requests: int
    max_requests_per_worker: int
    request_timeout: float
    identity_header: str
    publish_headers: str | Sequence[str]
    max_body_parts: int
    read_timeout: float
    max_pending_bytes: int
    overflow: str
    write_timeout: float
    max_stream_age: float
    flush_interval: float
    ready_needs_nats: bool
    metrics: bool
    streams: str | Mapping[str, str | Sequence[str] | None]
    resume_window: float
    max_replays: int
    max_replay_messages: int
    max_replay_bytes: int
    max_snapshot_subjects: int
    history_buffer_bytes: int
    jetstream_domain: str | None
    ignore_discovered_servers: bool
    name: str
    user: str | None
    password: str | None
    token: str | None
    credentials: str | Path | None
    nkeys_seed: str | Path | None
    inbox_prefix: str
    control_prefix: str | None
    control_key: str | Sequence[str] | None
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
    """The validated options of one bridge. They have no ``repr``, because some are secrets."""

    servers: tuple[str, ...] = _option(("nats://127.0.0.1:4222",), validators.server_urls)
    """URLs of NATS servers: ``nats://``, ``tls://``, ``ws://`` or ``wss://``."""
    prefix: str = _option("/nats", validators.path_prefix)
    """The path below which the routes are registered; may be empty."""
    public_prefix: str | None = _option(None, validators.path_prefix)
    """The path that a proxy removes from requests, for `NatsBridge.client_url`. By default the header
    ``X-Forwarded-Prefix`` of a trusted proxy."""
    subscribe: tuple[str, ...] = _option((), validators.allowed_patterns)
    """Patterns that every client may subscribe to, as in `Permissions.subscribe`."""
    deny: tuple[str, ...] = _option((), validators.denied_patterns)
    """Patterns that no client may subscribe to, as in `Permissions.deny`."""
    history: tuple[str, ...] = _option((), validators.history_patterns)
    """Patterns whose past every client may read, as in `Permissions.history`."""
    publish: tuple[str, ...] = _option((), validators.publish_patterns)
    """Patterns of the subjects to which every client may publish, as in `Permissions.publish`."""
    request: tuple[str, ...] = _option((), validators.request_patterns)
    """Patterns of the subjects to which every client may send requests, as in `Permissions.request`."""
    permissions: PermissionsFunction | None = _option(None, validators.function)
    """A function that returns the `Permissions` of a client, instead of the five settings before."""
    permissions_timeout: float = _option(10.0, validators.seconds(0.1))
    """Seconds that the ``permissions`` function may take."""
    allowed_origins: tuple[str, ...] = _option((), validators.origins)
    """Other origins whose pages may use the bridge, such as ``https://app.example``."""
    allowed_hosts: tuple[str, ...] | None = _option(None, validators.hosts)
    """The hosts to which requests may be sent, such as ``app.example`` or ``*.app.example``. By default any, except in
    Sanic's debug mode or with its ``SERVER_NAME``."""
    expose_headers: tuple[str, ...] = _option((), validators.header_names)
    """The NATS headers that clients get, by exact name."""
    heartbeat: float = _option(15.0, validators.seconds(0.1))
    """Seconds after which a heartbeat is sent if nothing else was."""
    retry: float = _option(2.0, validators.seconds(0.1))
    """Seconds before a client reconnects, at least; twice as long at most."""
    reconnect_spread: float = _option(10.0, validators.seconds(0))
    """Seconds over which the clients of a worker that stops reconnect."""
    unsubscribe_delay: float = _option(1.0, validators.seconds(0))
    """Seconds before unsubscribing from NATS after the last subscriber leaves."""
    confirm_timeout: float = _option(5.0, validators.seconds(0))
    """Seconds that a subscribe waits for NATS before it is answered with ``"active": false``."""
    relay_timeout: float = _option(2.0, validators.seconds(0.1))
    """Seconds beyond ``confirm_timeout`` that a POST waits for the worker that holds its session."""
    max_relays: int = _option(256, validators.integer(1))
    """The largest number of POSTs at once that wait for other workers, and of commands from them that are executed."""
    max_relays_per_client: int = _option(32, validators.integer(1))
    """The largest number of POSTs of one client at once that wait for other workers."""
    max_subscriptions: int = _option(128, validators.integer(1))
    """The largest number of patterns per session."""
    max_overlap: int = _option(16, validators.integer(1))
    """The largest number of patterns of one session that match the same message."""
    max_patterns: int = _option(20_000, validators.integer(1))
    """The largest number of different patterns per worker."""
    max_patterns_per_client: int = _option(5_000, validators.integer(1))
    """The largest number of different patterns of one identity, or else of one address, per worker."""
    max_subscribe_rate: float = _option(1000.0, validators.rate)
    """The largest number of SUB and UNSUB per second that clients may cause; others wait."""
    max_sessions: int = _option(10_000, validators.integer(1))
    """The largest number of sessions per worker."""
    max_sessions_per_identity: int = _option(100, validators.integer(1))
    """The largest number of sessions of one identity per worker."""
    max_sessions_per_address: int = _option(5_000, validators.integer(1))
    """The largest number of sessions without an identity from one address (of IPv6 the /64), per worker."""
    max_permissions_calls: int = _option(1_000, validators.integer(1))
    """The largest number of calls of the ``permissions`` function in progress per worker."""
    max_permissions_calls_per_client: int = _option(100, validators.integer(1))
    """The largest number of these calls for clients at one address. Both limit the checks of publishes too."""
    request_rate: float = _option(50.0, validators.rate_or_zero)
    """Requests per second of one client that open a session or are a command; 0 for no limit."""
    request_burst: int = _option(500, validators.integer(1))
    """Such requests of one client at once."""
    command_rate: float = _option(20.0, validators.rate)
    """Commands per second of one session."""
    command_burst: int = _option(40, validators.integer(1))
    """Commands of one session at once. As many again close the session with 4429."""
    max_bad_commands: int = _option(20, validators.integer(1))
    """Invalid commands of one session per minute. One more closes it with 4429."""
    max_command_bytes: int = _option(65_536, validators.integer(64))
    """The largest size of one command."""
    publish_rate: float = _option(20.0, validators.rate)
    """Publishes and requests per second of one session."""
    publish_burst: int = _option(40, validators.integer(1))
    """Publishes and requests of one session at once, and publishes of one session that await the check of the app."""
    max_publish_bytes: int = _option(65_000, validators.integer(1))
    """The largest payload of a publish or a request; ``max_command_bytes`` and NATS's ``max_payload`` hold too."""
    max_requests: int = _option(16, validators.integer(1))
    """The largest number of requests of one session that wait for their answer."""
    max_requests_per_worker: int = _option(1_000, validators.integer(1))
    """The largest number of these requests per worker."""
    request_timeout: float = _option(5.0, validators.seconds(0.1))
    """Seconds that a request waits for its answer, at most."""
    identity_header: str = _option("Bridge-Identity", validators.publish_header_name)
    """The header of published messages that names the client's `Permissions.identity`, percent-encoded."""
    publish_headers: tuple[str, ...] = _option((), validators.publish_header_names)
    """The headers that clients may set in what they publish."""
    max_body_parts: int = _option(256, validators.integer(1))
    """The largest number of parts of less than 512 bytes in which the body of a request may arrive."""
    read_timeout: float = _option(20.0, validators.seconds(0.1))
    """Seconds within which a command that has begun must be complete."""
    max_pending_bytes: int = _option(1_048_576, validators.integer(1024))
    """The largest number of bytes buffered for one client before its messages are skipped."""
    overflow: str = _option("gap", validators.one_of("gap", "latest", "close"))
    """The treatment of a client over ``max_pending_bytes``: ``gap``, ``latest`` or ``close``."""
    write_timeout: float = _option(20.0, validators.seconds(0.1))
    """Seconds after which a client that accepts no data is disconnected."""
    max_stream_age: float = _option(3600.0, validators.seconds(1, or_zero=True))
    """Seconds after which an event stream is ended and its client reconnects; 0 for never."""
    flush_interval: float = _option(0.0, validators.seconds(0, 1))
    """Seconds for which messages are gathered into one write; 0 gathers those of one turn of the event loop."""
    ready_needs_nats: bool = _option(False, validators.boolean)
    """True if ``/health/ready`` returns 503 while NATS is disconnected."""
    metrics: bool = _option(False, validators.boolean)
    """True if ``/metrics`` is served."""

    streams: Mapping[str, tuple[str, ...] | None] = field(
        default_factory=lambda: MappingProxyType({}), hash=False, metadata={"validator": validators.streams}
    )
    """The JetStream streams from which clients resume and read the past: the patterns for each, or ``None`` for all
    subjects of the stream. A pattern in two of them is served by the first."""
    resume_window: float = _option(120.0, validators.seconds(0))
    """Seconds of the past that a client may read without `Permissions.history`, to resume; 0 for none."""
    max_replays: int = _option(8, validators.integer(1))
    """The largest number of requests of replays to one stream at once, per worker; others wait."""
    max_replay_messages: int = _option(10_000, validators.integer(1))
    """The largest number of messages in one replay."""
    max_replay_bytes: int = _option(16_777_216, validators.integer(1024))
    """The largest number of bytes that are read for one replay."""
    max_snapshot_subjects: int = _option(100_000, validators.integer(1))
    """The largest number of subjects whose last messages are sent in one replay."""
    history_buffer_bytes: int = _option(33_554_432, validators.integer(65_536))
    """The largest number of bytes of recent messages that a worker keeps to resume clients without NATS."""
    jetstream_domain: str | None = _option(None, validators.token)
    """The JetStream domain of the streams."""

    ignore_discovered_servers: bool = _option(False, validators.boolean)
    """True if only ``servers`` are used, and not the other servers of the cluster that NATS names."""
    name: str = _option("sanic-nats-bridge", validators.string)
    """The name of the connection in NATS's monitoring."""
    user: str | None = _option(None, validators.string)
    """The user name; it may be in the URL instead."""
    password: str | None = _option(None, validators.string)
    """The password; it may be in the URL instead."""
    token: str | None = _option(None, validators.string)
    """The authentication token."""
    credentials: str | None = _option(None, validators.file_path)
    """The path of a ``.creds`` file."""
    nkeys_seed: str | None = _option(None, validators.file_path)
    """The path of a file with an nkey seed."""
    inbox_prefix: str = _option("_INBOX", validators.reserved_prefix)
    """The prefix of the reply subjects of `NatsBridge.client`; begins with ``_``."""
    control_prefix: str | None = _option(None, validators.reserved_prefix)
    """The prefix of the subjects on which the workers of one app communicate; begins with ``_``. By default it is
    ``_NATSBRIDGE.`` and the app's name."""
    control_key: tuple[str, ...] | None = _option(None, validators.control_keys)
    """The key, or the new and the old one, with which the workers of one app sign what they send each other."""
    tls: ssl.SSLContext | None = _option(None, validators.tls_context)
    """The TLS context for NATS."""
    tls_ca: str | None = _option(None, validators.file_path)
    """The path of a PEM file with the certificates of the authorities that are trusted."""
    tls_cert: str | None = _option(None, validators.file_path)
    """The path of a PEM file with the client certificate."""
    tls_key: str | None = _option(None, validators.file_path)
    """The path of a PEM file with the key of ``tls_cert``."""
    tls_hostname: str | None = _option(None, validators.string)
    """The name expected in the server's certificate."""
    tls_handshake_first: bool = _option(False, validators.boolean)
    """True if TLS begins before the server's INFO."""
    connect_timeout: float = _option(2.0, validators.seconds(0.1))
    """Seconds that one attempt to connect may take."""
    ping_interval: float = _option(4.0, validators.seconds(0.1))
    """Seconds between PINGs to NATS. A connection without data for as long after a PING is closed."""

    @classmethod
    def resolve(cls, keywords: Mapping[str, Any], config: Mapping[str, Any]) -> "Settings":
        """Return the settings from the keyword arguments, then the app's configuration, then the defaults.

        Raises:
            SettingsError: A name is unknown, a value is invalid, or two values contradict each other.
        """
        validate = {option.name: option.metadata["validator"] for option in fields(cls)}
        values = _configured(config) | dict(keywords)
        for name in values:
            if name in _RENAMED:
                raise SettingsError(f"NatsBridge setting '{name}' was renamed; use '{_RENAMED[name]}'")
            if name not in validate:
                raise _unknown(name, validate)
        if values.get("servers") is None and os.environ.get(_SERVERS_VARIABLE):
            values["servers"] = _servers_of_environment(os.environ[_SERVERS_VARIABLE])
        valid = {name: _validated(name, value, validate[name]) for name, value in values.items() if value is not None}
        settings = cls(**valid)
        settings._check_combinations()
        return settings

    def _check_combinations(self) -> None:
        if self.tls_key and not self.tls_cert:
            raise SettingsError("NatsBridge setting 'tls_key' requires 'tls_cert'")
        if self.tls and (self.tls_ca or self.tls_cert):
            raise SettingsError("NatsBridge setting 'tls' excludes 'tls_ca', 'tls_cert' and 'tls_key'")
        if self.tls_only and any(urlsplit(url).scheme == "ws" for url in self.servers):
            raise SettingsError("NatsBridge setting 'servers' must be wss:// URLs, not ws://, if TLS is configured")
        if self.permissions and any(getattr(self, name) for name in _FOR_EVERY_CLIENT):
            # They would have no effect, and their author must not believe that they do.
            raise SettingsError(
                "NatsBridge setting 'permissions' excludes 'subscribe', 'deny', 'history', 'publish' and 'request': "
                "return them from the function"
            )
        for name in ("history", "jetstream_domain"):
            if getattr(self, name) and not self.streams:
                raise SettingsError(f"NatsBridge setting '{name}' requires 'streams'")
        self._check_publish()
        self._check_packages()
        self.tls_context()

    def _check_publish(self) -> None:
        if self.identity_header.lower() in map(str.lower, self.publish_headers):
            raise SettingsError(
                "NatsBridge setting 'publish_headers' must not have 'identity_header': no client may name another one"
            )
        try:
            self.publish_policy().check(Permissions(publish=self.publish, request=self.request))
        except ValueError as error:
            name, _, rule = str(error).partition(" ")
            raise SettingsError(f"NatsBridge setting '{name}' {rule}") from None

    def publish_policy(self, control_prefix: str = CONTROL_TOKEN) -> PublishPolicy:
        """Return the policy for what clients publish.

        Args:
            control_prefix: The prefix of the control subjects if the setting has none.
        """
        return PublishPolicy(
            max_bytes=self.max_publish_bytes,
            headers=self.publish_headers,
            identity_header=self.identity_header,
            reserved=(self.control_prefix or control_prefix, self.inbox_prefix),
        )

    def _check_packages(self) -> None:
        by_websocket = any(urlsplit(url).scheme in ("ws", "wss") for url in self.servers)
        for name, wanted, module, package in (
            ("metrics", self.metrics, "prometheus_client", "sanic-nats-bridge[metrics]"),
            ("credentials", self.credentials, "nkeys", "nats-py[nkeys]"),
            ("nkeys_seed", self.nkeys_seed, "nkeys", "nats-py[nkeys]"),
            ("servers", by_websocket, "aiohttp", "nats-py[aiohttp]"),
        ):
            if wanted and find_spec(module) is None:
                raise SettingsError(f"NatsBridge setting '{name}' requires a package: pip install '{package}'")

    @cached_property
    def default_permissions(self) -> Permissions:
        """The permissions of every client if there is no ``permissions`` function."""
        return Permissions(self.subscribe, self.deny, history=self.history, publish=self.publish, request=self.request)

    @property
    def high_water_bytes(self) -> int:
        """The number of buffered bytes above which a client is a slow consumer."""
        return self.max_pending_bytes - self.kept_bytes

    @property
    def low_water_bytes(self) -> int:
        """The number of buffered bytes below which a client stops being a slow consumer."""
        return self.high_water_bytes // 4

    @property
    def kept_bytes(self) -> int:
        """The number of bytes kept for a slow consumer with ``overflow="latest"``: half of ``max_pending_bytes``."""
        return self.max_pending_bytes // 2 if self.overflow == "latest" else 0

    @property
    def tls_only(self) -> bool:
        """True if every server must speak TLS, even if its URL doesn't request it."""
        return bool(self.tls or self.tls_ca or self.tls_cert or self.tls_hostname or self.tls_handshake_first)

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the TLS context for NATS, or ``None`` for the default of nats-py, which verifies certificates.

        Raises:
            SettingsError: A file cannot be loaded.
        """
        if self.tls or not (self.tls_ca or self.tls_cert):
            return self.tls
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"NatsBridge settings 'tls_ca', 'tls_cert', 'tls_key' cannot be loaded: {error.strerror}"
            ) from None
        return context


def _configured(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.removeprefix(CONFIG_PREFIX).lower(): _as_written(key, value)
        for key, value in config.items()
        if key.startswith(CONFIG_PREFIX)
    }


def _as_written(key: str, value: Any) -> Any:
    # Sanic converts values from the environment to numbers and Booleans, but a token "0042" must stay a string.
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


def _validated(name: str, value: Any, validator: Callable[[Any], Any]) -> Any:
    try:
        return validator(value)
    except ValueError as error:
        rule = str(error)
        if ", got " not in rule and ", not " not in rule:
            rule += f", got {_shown(name, value)}"
        raise SettingsError(f"NatsBridge setting '{name}' {rule}") from None


def _shown(name: str, value: Any) -> str:
    """Return a wrong value for an error message, without secrets."""
    text = f"a value of type {type(value).__name__}" if name in _SECRET and value else f"{value!a}"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _unknown(name: str, names: Iterable[str]) -> SettingsError:
    alike = difflib.get_close_matches(name, names, n=1)
    if alike:
        return SettingsError(f"NatsBridge has no setting '{name}'; did you mean '{alike[0]}'?")
    return SettingsError(f"NatsBridge has no setting '{name}'")


def _servers_of_environment(value: str) -> tuple[str, ...]:
    # The tools of NATS separate URLs by commas.
    try:
        return validators.server_urls(value.replace(",", " "))
    except ValueError as error:
        raise SettingsError(f"NATS_URL in the environment {error}") from None
