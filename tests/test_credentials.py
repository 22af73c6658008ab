"""Logins by nkey and by a .creds file, with keys and JWTs that are made here."""

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest

from sanic_nats_bridge.testing import NatsServer

from .test_nats_link import linked

UNLIMITED = {"subs": -1, "data": -1, "payload": -1}


class Key:
    def __init__(self, prefix: int) -> None:
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def issue(self, kind: str, subject: str, claims: dict[str, Any] | None = None) -> str:
        """A JWT about the subject, signed by this key."""
        header = {"typ": "JWT", "alg": "ed25519-nkey"}
        said = {"type": kind, "version": 2} | (claims or {})
        body = {"jti": "1", "iat": int(time.time()), "iss": self.public, "name": kind, "sub": subject, "nats": said}
        signed = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(body).encode())}"
        return f"{signed}.{encoded(self._pair.sign(signed.encode()))}"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture
def user() -> Key:
    return Key(nkeys.PREFIX_BYTE_USER)


async def test_an_nkey_seed_in_a_file_opens_the_server(user: Key, tmp_path: Path) -> None:
    seed = tmp_path / "user.nk"
    seed.write_bytes(user.seed)
    with NatsServer(config=f"authorization {{users: [{{nkey: {user.public}}}]}}") as server:
        async with linked(server, nkeys_seed=seed) as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}


async def test_a_credentials_file_opens_the_server(user: Key, tmp_path: Path) -> None:
    operator, account = Key(nkeys.PREFIX_BYTE_OPERATOR), Key(nkeys.PREFIX_BYTE_ACCOUNT)
    limits = UNLIMITED | {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    credentials = tmp_path / "user.creds"
    token = account.issue("user", user.public, UNLIMITED)
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    config = (
        f"operator: {operator.issue('operator', operator.public)}\nresolver: MEMORY\n"
        f"resolver_preload {{{account.public}: {operator.issue('account', account.public, {'limits': limits})}}}"
    )
    with NatsServer(config=config) as server:
        async with linked(server, credentials=credentials) as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}
