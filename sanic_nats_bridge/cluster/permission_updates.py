"""Revocations and new permissions for the sessions of all workers of the app.

An update applies to this worker at once, and is sent to all connected workers, each of which receives it once at most.
While NATS is disconnected, the last update of each identity or session waits for the reconnect.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from ..auth.permissions import Permissions
from ..log_limits import limited_logger
from ..protocol.session_ids import key_of
from ..sessions.registry import SessionRegistry

__all__ = ["PermissionUpdates", "UpdateResult"]

logger = limited_logger()

_OTHERS_RECONNECT_SECONDS = 2.0
_MAX_RECORDED = 10_000

_Target: TypeAlias = tuple[str | None, str | None]
"""An identity and the key of a session, one of which is ``None``."""


class UpdateResult(NamedTuple):
    """The effect of `NatsBridge.revoke` and `NatsBridge.update_permissions`."""

    sessions: int
    """The number of sessions ended or changed on this worker."""
    announced: bool
    """True if the NATS server of this worker has delivered the update; otherwise it is sent as soon as NATS can.

    Workers behind a link between NATS servers that is cut miss it."""


class _Permissions(Struct, frozen=True, kw_only=True):
    subscribe: tuple[str, ...]
    deny: tuple[str, ...]
    variables: dict[str, str]
    aliases: dict[str, str]
    allow_wildcards: bool
    identity: str | None
    expires_at: float | None
    history: tuple[str, ...] = ()
    """Absent from an update of a worker whose version has no history."""
    publish: tuple[str, ...] = ()
    request: tuple[str, ...] = ()
    follow: tuple[str, ...] = ()


class _Update(Struct, frozen=True, kw_only=True):
    """An update for the sessions of an identity or for one session; without `permissions` a revocation."""

    worker: str
    identity: str | None
    session: str | None
    permissions: _Permissions | None
    delayed_since: float | None = None
    """Unix seconds of the first failed attempt to send it."""


@dataclass
class _Unsent:
    update: _Update
    made_at: float
    """Unix seconds at which the update was made."""
    in_flight: bool = False
    """True while the update is being sent, or is sent and not delivered yet."""


# The hook encodes instances of a subclass of `str`.
_encode = msgspec.json.Encoder(enc_hook=str.__str__).encode
_decode = msgspec.json.Decoder(_Update).decode


class PermissionUpdates:
    """The revocations and new permissions that this worker sends, receives and applies.

    Args:
        sessions: The sessions of this worker.
        announce: Sends a payload to all workers, as `ControlChannel.announce`.
    """

    def __init__(self, sessions: SessionRegistry, announce: Callable[[bytes], Awaitable[Awaitable[None]]]) -> None:
        self._sessions = sessions
        self._announce = announce
        self._unsent: OrderedDict[_Target, _Unsent] = OrderedDict()
        self._updated_at: OrderedDict[_Target, float] = OrderedDict()
        """Unix seconds at which the last update of each target was made or received."""
        self._awaiting_others = False
        self._delay_logged = False
        self._overflow_logged = False
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[bool]] = set()

    async def revoke(self, identity: str | None, session: str | None) -> UpdateResult:
        """End sessions as `NatsBridge.revoke` does."""
        count = self._sessions.revoke(identity, session)
        return UpdateResult(count, await self._distribute(identity, session, None))

    async def update_permissions(
        self, permissions: Permissions, identity: str | None, session: str | None
    ) -> UpdateResult:
        """Replace permissions as `NatsBridge.update_permissions` does."""
        count = self._sessions.update_permissions(permissions, identity, session)
        return UpdateResult(count, await self._distribute(identity, session, permissions))

    async def nats_connected(self) -> None:
        """Send the waiting updates after a delay in which the other workers are likely to reconnect too."""
        waiting = any(not unsent.in_flight for unsent in self._unsent.values())
        if waiting and not self._awaiting_others:
            self._awaiting_others = True
            try:
                await asyncio.sleep(_OTHERS_RECONNECT_SECONDS)
            finally:
                self._awaiting_others = False
            await asyncio.gather(*(self._send(target, unsent) for target, unsent in list(self._unsent.items())))

    async def _distribute(self, identity: str | None, session: str | None, permissions: Permissions | None) -> bool:
        """Send an update to the other workers; return whether NATS has delivered it."""
        key = None if session is None else key_of(session)
        update = _Update(
            worker=self._sessions.worker,
            identity=identity,
            session=key,
            permissions=None if permissions is None else _to_wire(permissions),
        )
        target = (identity, key)
        self._record(target)
        self._unsent.pop(target, None)
        unsent = self._unsent[target] = _Unsent(update, time.time())
        if len(self._unsent) > _MAX_RECORDED:
            self._drop_oldest()
        if self._awaiting_others:
            return False
        # In a task, because the handler that called may be cancelled: the update must be sent once, and not later.
        task = asyncio.create_task(self._send(target, unsent))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _send(self, target: _Target, unsent: _Unsent) -> bool:
        """Send an update, unless a later one has replaced it; return whether NATS has delivered it."""
        if unsent.in_flight:
            return False
        unsent.in_flight = True
        try:
            async with self._lock:  # keeps the order of updates while a stalled NATS server accepts no data
                if self._unsent.get(target) is not unsent:
                    return False
                delivered = await self._announce(_encode(unsent.update))
            await delivered
        except ConnectionError as error:
            unsent.update = msgspec.structs.replace(unsent.update, delayed_since=unsent.made_at)
            if not self._delay_logged:
                self._delay_logged = True
                logger.warning("A revoke or update_permissions has not reached the other workers: %s", error)
            return False
        except ValueError as error:
            logger.error("Cannot send a revoke or update_permissions to the other workers: %s", error)
            self._forget(target, unsent)
            return False
        finally:
            unsent.in_flight = False
        self._delay_logged = self._overflow_logged = False
        self._forget(target, unsent)
        return True

    def _forget(self, target: _Target, unsent: _Unsent) -> None:
        if self._unsent.get(target) is unsent:
            del self._unsent[target]

    def _drop_oldest(self) -> None:
        self._unsent.popitem(last=False)
        if not self._overflow_logged:
            self._overflow_logged = True
            logger.error(
                "More than %d revoke and update_permissions wait for the other workers; the oldest are dropped",
                _MAX_RECORDED,
            )

    def _record(self, target: _Target) -> None:
        self._updated_at[target] = time.time()
        self._updated_at.move_to_end(target)
        if len(self._updated_at) > _MAX_RECORDED:
            self._updated_at.popitem(last=False)

    def receive(self, data: bytes) -> None:
        """Apply an update of another worker. Logs an invalid update and skips it. Never raises."""
        try:
            update = _decode(data)
            target = (update.identity, update.session)
            if update.worker == self._sessions.worker or self._is_outdated(target, update):
                return
            self._record(target)
            waiting = self._unsent.get(target)
            if waiting is not None and waiting.update.permissions is not None and update.delayed_since is None:
                del self._unsent[target]  # it is older than this update, which every worker has
            if update.permissions is None:
                self._sessions.revoke(update.identity, update.session)
            else:
                self._sessions.update_permissions(_from_wire(update.permissions), update.identity, update.session)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            logger.warning(
                "Cannot apply a revoke or update_permissions of another worker; do all workers run the same version?",
                exc_info=True,
            )
        except Exception:
            logger.exception("Applying a revoke or update_permissions of another worker has failed")

    def _is_outdated(self, target: _Target, update: _Update) -> bool:
        """Return whether a delayed update is older than the last one of its target.

        A revocation is never outdated, because the clocks of two machines may differ.
        """
        delayed_since = update.delayed_since
        return None not in (delayed_since, update.permissions) and self._updated_at.get(target, 0) > (
            delayed_since or 0
        )


def _to_wire(permissions: Permissions) -> _Permissions:
    return _Permissions(
        subscribe=tuple(permissions.subscribe),
        deny=tuple(permissions.deny),
        variables=dict(permissions.variables),
        aliases=dict(permissions.aliases),
        allow_wildcards=permissions.allow_wildcards,
        identity=permissions.identity,
        expires_at=None if permissions.expires is None else permissions.expires_at,
        history=tuple(permissions.history),
        publish=tuple(permissions.publish),
        request=tuple(permissions.request),
        follow=tuple(permissions.follow),
    )


def _from_wire(permissions: _Permissions) -> Permissions:
    return Permissions(
        subscribe=permissions.subscribe,
        deny=permissions.deny,
        variables=permissions.variables,
        aliases=permissions.aliases,
        allow_wildcards=permissions.allow_wildcards,
        identity=permissions.identity,
        expires=permissions.expires_at,
        history=permissions.history,
        publish=permissions.publish,
        request=permissions.request,
        follow=permissions.follow,
    )
