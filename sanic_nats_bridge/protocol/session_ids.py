"""Session ids: secrets of their clients that name the worker which holds the session."""

import hashlib
import re
import secrets

__all__ = ["WORKER_ID_GRAMMAR", "digest", "key_of", "new_session_id", "new_worker_id", "worker_of"]

WORKER_ID_GRAMMAR = "[A-Za-z0-9_-]{16}"
"""A regular expression for worker ids; each is one token of a subject."""

_WORKER_BYTES = 12
_SECRET_BYTES = 24
_SESSION_ID = re.compile(f"({WORKER_ID_GRAMMAR})[A-Za-z0-9_-]{{32}}")
_KEY = re.compile("[0-9a-f]{64}")


def new_worker_id() -> str:
    """Return a random id for a worker, valid until it stops. It reveals neither the process nor the host."""
    return secrets.token_urlsafe(_WORKER_BYTES)


def new_session_id(worker: str) -> str:
    """Return an id for a session of this worker; 192 bits of it are secret."""
    return worker + secrets.token_urlsafe(_SECRET_BYTES)


def worker_of(session_id: str) -> str | None:
    """Return the id of the worker that holds the session; ``None`` if the session id is malformed."""
    found = _SESSION_ID.fullmatch(session_id)
    return None if found is None else found[1]


def digest(session_id: str) -> str:
    """Return the key of a session: the SHA-256 of its id, so that only the client holds the id."""
    return hashlib.sha256(session_id.encode(errors="replace")).hexdigest()


def key_of(session: str) -> str:
    """Return the key of a session, given its id or its key."""
    return session if _KEY.fullmatch(session) else digest(session)
