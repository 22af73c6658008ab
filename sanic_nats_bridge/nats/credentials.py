"""Credentials for NATS, from URLs and from files, in the form that nats-py takes.

nats-py doesn't decode percent-encoded user info, and misreads files with the line ends or the byte order mark of other
systems. It never ends reading a ``.creds`` file without a JWT.
"""

import codecs
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nats.aio.client import RawCredentials

__all__ = ["read_credentials", "read_nkey_seed", "split_user_info"]

_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# The format of https://docs.nats.io/using-nats/developer/connecting/creds
_CREDENTIALS = re.compile(r"-BEGIN NATS USER JWT-+\n+[^-\s]\S+\n.*-BEGIN USER NKEY SEED-+\n+S\w+\n", re.DOTALL)


def split_user_info(url: str) -> tuple[str, str | None, str | None]:
    """Return a URL without its user info, then the user name and the password, decoded (RFC 3986, section 3.2.1)."""
    parts = urlsplit(url)
    info, _, host = parts.netloc.rpartition("@")
    user, colon, password = info.partition(":")
    return parts._replace(netloc=host).geturl(), unquote(user) or None, unquote(password) if colon else None


def read_credentials(path: str) -> RawCredentials:
    """Return the content of a ``.creds`` file.

    Raises:
        ValueError: The file cannot be read, or isn't a ``.creds`` file.
    """
    text = _text(path, "credentials")
    if not _CREDENTIALS.search(text):
        raise ValueError("the file of 'credentials' has no user JWT with an nkey seed")
    return RawCredentials(text)


def read_nkey_seed(path: str) -> str:
    """Return the nkey seed in a file.

    Raises:
        ValueError: The file cannot be read, is empty, or isn't text.
    """
    seed = _text(path, "nkeys_seed").strip()
    if not seed:
        raise ValueError("the file of 'nkeys_seed' is empty")
    return seed


def _text(path: str, setting: str) -> str:
    """Return the lines of a text file, without white space around them, each with a line feed at its end."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"the file of '{setting}' cannot be read: {error.strerror}") from None
    mark, encoding = next((each for each in _BYTE_ORDER_MARKS if content.startswith(each[0])), (b"", "utf-8"))
    try:
        lines = content.removeprefix(mark).decode(encoding).splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"the file of '{setting}' is not a text file") from None
    return "".join(f"{line.strip()}\n" for line in lines)
