"""What the app decides about sessions that live, on whichever worker and machine they are.

It holds here at once. Every other worker that is connected to NATS hears of it, at most once; while
NATS is away from here what was decided last of each identity, or session, waits until it is back.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from ..auth.permissions import Permissions
from ..protocol.session_ids import key_of
from ..sessions.registry import SessionRegistry

__all__ = ["PermissionUpdates"]

logger = logging.getLogger("sanic.root.nats_bridge")

_OTHERS_RETURN_SECONDS: Final = 2.0
_MAX_NOTED: Final = 10_000

_Target: TypeAlias = tuple[str | None, str | None]
"""An identity, or else the key of a session."""


class _Permissions(Struct, frozen=True, kw_only=True):
    subscribe: tuple[str, ...]
    deny: tuple[str, ...]
    variables: dict[str, str]
    aliases: dict[str, str]
    allow_wildcards: bool
    identity: str | None
    expires_at: float | None


class _Update(Struct, frozen=True, kw_only=True):
    """About the sessions of an identity, or one session by its key; without permissions they are revoked."""

    worker: str
    identity: str | None
    session: str | None
    permissions: _Permissions | None
    late_since: float | None = None
    """When it was made, in Unix seconds, where it could not be told then."""


# What is of a subclass of `str` goes out as text too.
_encode = msgspec.json.Encoder(enc_hook=str.__str__).encode
_decode = msgspec.json.Decoder(_Update).decode


class PermissionUpdates:
    """Applies revocations and new permissions on every worker.

    Args:
        sessions: The sessions of this worker.
        announce: Sends a payload to all other workers, as `ControlChannel.announce`.
    """

    def __init__(self, sessions: SessionRegistry, announce: Callable[[bytes], Awaitable[None]]) -> None:
        self._sessions = sessions
        self._announce = announce
        self._untold: dict[_Target, _Update] = {}
        self._newest: dict[_Target, float] = {}
        """When the last decision about each was made, or heard of."""
        self._others_return = False
        self._lock = asyncio.Lock()

    async def revoke(self, identity: str | None, session: str | None) -> int:
        """End sessions, as `NatsBridge.revoke` says; returns how many of this worker."""
        count = self._sessions.revoke(identity, session)
        await self._tell(identity, session, None)
        return count

    async def update_permissions(self, permissions: Permissions, identity: str | None, session: str | None) -> int:
        """Replace permissions as `NatsBridge.update_permissions` does; return the number of sessions on this worker."""
        count = self._sessions.update_permissions(permissions, identity, session)
        await self._tell(identity, session, permissions)
        return count

    async def nats_connected(self) -> None:
        """Tell the others what they could not be told while NATS was away, once they too are likely to be back."""
        if self._untold and not self._others_return:
            self._others_return = True
            try:
                await asyncio.sleep(_OTHERS_RETURN_SECONDS)
            finally:
                self._others_return = False
            await self._tell_untold()

    async def _tell_untold(self) -> None:
        # In turn: where NATS takes nothing for a while, what was decided first could be told last.
        async with self._lock:
            while self._untold:
                target, update = next(iter(self._untold.items()))
                try:
                    await self._announce(_encode(update))
                except ConnectionError:
                    for each, untold in self._untold.items():
                        late_since = untold.late_since or time.time()
                        self._untold[each] = msgspec.structs.replace(untold, late_since=late_since)
                    logger.warning("NATS is away: other workers hear of a revoke or update_permissions when it is back")
                    return
                except ValueError as error:
                    logger.error("Other workers cannot be told of a update_permissions: it is %s", error)
                if self._untold.get(target) is update:
                    del self._untold[target]

    async def _tell(self, identity: str | None, session: str | None, permissions: Permissions | None) -> None:
        key = None if session is None else key_of(session)
        update = _Update(
            worker=self._sessions.worker,
            identity=identity,
            session=key,
            permissions=None if permissions is None else _written(permissions),
        )
        self._note((identity, key))
        self._untold.pop((identity, key), None)
        self._untold[identity, key] = update
        if not self._others_return:
            await self._tell_untold()

    def _note(self, target: _Target) -> None:
        self._newest.pop(target, None)
        self._newest[target] = time.time()
        if len(self._newest) > _MAX_NOTED:
            del self._newest[next(iter(self._newest))]

    def receive(self, data: bytes) -> None:
        """Do here what was decided on another worker. Never raises; what cannot be read is left out, and logged."""
        try:
            update = _decode(data)
            target = (update.identity, update.session)
            if update.worker == self._sessions.worker or self._is_outdated(target, update):
                return
            self._note(target)
            if update.permissions is None:
                self._sessions.revoke(update.identity, update.session)
            else:
                self._sessions.update_permissions(_read(update.permissions), update.identity, update.session)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            logger.warning("A revoke or update_permissions of another worker cannot be carried out", exc_info=True)
        except Exception:
            logger.exception("Fault in a revoke or update_permissions of another worker")

    def _is_outdated(self, target: _Target, update: _Update) -> bool:
        """Whether there was a newer one meanwhile; a revoke holds all the same, for clocks differ."""
        late_since = update.late_since
        return None not in (late_since, update.permissions) and self._newest.get(target, 0) > (late_since or 0)


def _written(permissions: Permissions) -> _Permissions:
    return _Permissions(
        subscribe=tuple(permissions.subscribe),
        deny=tuple(permissions.deny),
        variables=dict(permissions.variables),
        aliases=dict(permissions.aliases),
        allow_wildcards=permissions.allow_wildcards,
        identity=permissions.identity,
        expires_at=None if permissions.expires is None else permissions.expires_at,
    )


def _read(written: _Permissions) -> Permissions:
    return Permissions(
        subscribe=written.subscribe,
        deny=written.deny,
        variables=written.variables,
        aliases=written.aliases,
        allow_wildcards=written.allow_wildcards,
        identity=written.identity,
        expires=written.expires_at,
    )
