"""Logins by nkey and by a .creds file, with keys and JWTs that are made here."""

import base64
import codecs
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest

from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_nats_supervisor import supervising
from tests.support.bridge import until

UNLIMITED = {"subs": -1, "data": -1, "payload": -1}


class Key:
    def __init__(self, prefix: int) -> None:
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def issue(self, kind: str, subject: str, claims: dict[str, Any] | None = None, **registered: int | str) -> str:
        """Return a JWT about the subject, signed by this key; ``registered`` are claims of RFC 7519."""
        header = {"typ": "JWT", "alg": "ed25519-nkey"}
        said = {"type": kind, "version": 2} | (claims or {})
        body = {"jti": "1", "iat": int(time.time()), "iss": self.public, "name": kind, "sub": subject, "nats": said}
        body.update(registered)
        signed = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(body).encode())}"
        return f"{signed}.{encoded(self._pair.sign(signed.encode()))}"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture
def user() -> Key:
    return Key(nkeys.PREFIX_BYTE_USER)


def rewritten(content: bytes, form: str) -> bytes:
    """Return a text file as other systems or editors write it."""
    text = content.decode()
    return {
        "Unix": content,
        "CRLF": content.replace(b"\n", b"\r\n"),
        "CR": content.replace(b"\n", b"\r"),
        "byte order mark": codecs.BOM_UTF8 + content,
        "UTF-16": codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
        "UTF-16, big-endian": codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        "white space": content.replace(b"\n", b" \t\n") + b" \n\n",
        "no line end": content.rstrip(b"\n"),
    }[form]


forms = pytest.mark.parametrize(
    "form",
    ["Unix", "CRLF", "CR", "byte order mark", "UTF-16", "UTF-16, big-endian", "white space", "no line end"],
)


@forms
async def test_nkey_seed_file_authenticates_with_nats(user: Key, tmp_path: Path, form: str) -> None:
    seed = tmp_path / "user.nk"
    seed.write_bytes(rewritten(user.seed + b"\n", form))
    with NatsServer(config=f"authorization {{users: [{{nkey: {user.public}}}]}}") as server:
        async with supervising(server, nkeys_seed=seed) as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}


@dataclass
class Account:
    """An account of an operator of its own, and a file for one user's credentials."""

    file: Path

    def __post_init__(self) -> None:
        operator, self._account = Key(nkeys.PREFIX_BYTE_OPERATOR), Key(nkeys.PREFIX_BYTE_ACCOUNT)
        limits = UNLIMITED | {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
        account = operator.issue("account", self._account.public, {"limits": limits})
        self.config = (
            f"operator: {operator.issue('operator', operator.public)}\nresolver: MEMORY\n"
            f"resolver_preload {{{self._account.public}: {account}}}"
        )

    def issue(self, user: Key, **registered: int) -> None:
        token = self._account.issue("user", user.public, UNLIMITED, **registered)
        self.file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )


@forms
async def test_credentials_file_authenticates_with_nats(user: Key, tmp_path: Path, form: str) -> None:
    account = Account(tmp_path / "user.creds")
    account.issue(user)
    account.file.write_bytes(rewritten(account.file.read_bytes(), form))
    with NatsServer(config=account.config) as server:
        async with supervising(server, credentials=account.file) as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}


async def test_credentials_file_is_reread_after_expiration(
    user: Key, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    account = Account(tmp_path / "user.creds")

    def connected() -> bool:
        if not bridge.listener.changes:
            # They are read at each attempt: one that comes too late finds others.
            account.issue(user, exp=int(time.time()) + 2)
        return bool(bridge.listener.changes)

    account.issue(user, exp=int(time.time()) + 2)
    with NatsServer(config=account.config) as server:
        async with supervising(server, connected=False, credentials=account.file) as bridge:
            await until(connected)
            await until(lambda: "down" in bridge.listener.changes)
            assert "authentication expired" in caplog.text
            await until(lambda: "Cannot connect to NATS" in caplog.text)
            before = len(bridge.listener.changes)
            account.issue(user)
            await until(lambda: bridge.listener.changes[before:] == ["up"])
            assert await bridge.ask("a") == {"a": "confirmed"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("credentials", b"", "the file of 'credentials' has no user JWT with an nkey seed"),
        ("credentials", b"-----BEGIN USER NKEY SEED-----\nSUA\n", "has no user JWT with an nkey seed"),
        ("credentials", b"-----BEGIN NATS USER JWT-----\n\n", "has no user JWT with an nkey seed"),
        ("credentials", b"\xff\xfe\x00", "is not a text file"),
        ("nkeys_seed", b"\n", "the file of 'nkeys_seed' is empty"),
        ("nkeys_seed", b"hush", "invalid seed"),
    ],
)
async def test_unusable_key_file_is_logged_and_read_again(
    user: Key, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes, reason: str
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with NatsServer(config=f"authorization {{users: [{{nkey: {user.public}}}]}}") as server:
        async with supervising(server, connected=False, **{name: file}) as bridge:
            await until(lambda: reason in caplog.text)
            assert "hush" not in caplog.text
            assert bridge.listener.changes == []
            if name == "nkeys_seed":
                file.write_bytes(user.seed)
                await until(lambda: bridge.listener.changes == ["up"])
