"""Ids of sessions: secret to their clients, and telling only which worker holds them."""

import hashlib
import re
import secrets
from typing import Final

__all__ = ["WORKER_ID_GRAMMAR", "digest", "key_of", "new_session_id", "new_worker_id", "worker_of"]

WORKER_ID_GRAMMAR: Final = "[A-Za-z0-9_-]{16}"
"""A regular expression for the ids of workers, each one token of a subject."""

_WORKER_BYTES: Final = 12
_SECRET_BYTES: Final = 24
_SESSION_ID: Final = re.compile(f"({WORKER_ID_GRAMMAR})[A-Za-z0-9_-]{{32}}")
_KEY: Final = re.compile("[0-9a-f]{64}")


def new_worker_id() -> str:
    """An id for a worker, from its start to its end; it says nothing of the process or its host."""
    return secrets.token_urlsafe(_WORKER_BYTES)


def new_session_id(worker: str) -> str:
    """An id for a session that this worker holds; 192 bits of it are secret."""
    return worker + secrets.token_urlsafe(_SECRET_BYTES)


def worker_of(session_id: str) -> str | None:
    """The id of the worker that holds the session; ``None`` where no session can have such an id."""
    found = _SESSION_ID.fullmatch(session_id)
    return None if found is None else found[1]


def digest(session_id: str) -> str:
    """Under what a session is kept, so that its id is nowhere to be found but with its client."""
    return hashlib.sha256(session_id.encode(errors="replace")).hexdigest()


def key_of(session: str) -> str:
    """The key of a session that is named by its id, or by its key."""
    return session if _KEY.fullmatch(session) else digest(session)
