"""The reasons for which a connection to NATS cannot be made, in words for the log."""

import os
import re
import socket
import ssl
from collections.abc import Iterator

import nats.errors

__all__ = ["describe"]

_TLS_REASONS = {
    "CERTIFICATE_REQUIRED": "the server requires a client certificate; set 'tls_cert' and 'tls_key'",
    "UNKNOWN_CA": "the server does not trust the client certificate",
    "BAD_CERTIFICATE": "the server does not accept the client certificate",
    "CERTIFICATE_EXPIRED": "the client certificate has expired",
    "CERTIFICATE_REVOKED": "the client certificate is revoked",
    "WRONG_VERSION_NUMBER": "the server does not begin with TLS",
}
_NO_INFO = "empty response from server"


def describe(error: BaseException, seconds: float, *, encrypted: bool = False) -> str:
    """Return the reason for a failed attempt to connect.

    Args:
        error: The exception of the attempt.
        seconds: The time that the attempt had.
        encrypted: True if the TLS handshake was done.
    """
    for each in _chain(error):
        words = _known(each, seconds)
        if words:
            return words
    if any(isinstance(each, ConnectionResetError | BrokenPipeError) for each in _chain(error)):
        # With TLS 1.3 the server checks the client certificate after the handshake. Its alert is lost if it arrives
        # after data was written to the closed connection.
        if encrypted:
            return (
                "the server closed the connection after the TLS handshake; it may require a client certificate, or not "
                "trust this one"
            )
        return "the server closed the connection"
    text = str(error).removeprefix("nats: ").strip("'")
    if isinstance(error, nats.errors.AuthorizationError) or "authorization violation" in text.lower():
        return "authorization violation; check the credentials"
    if _NO_INFO in text:
        return "the server closed the connection, or is not a NATS server"
    return text or type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that have led to it."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop(0)
        if each is None or each in seen:
            continue
        seen.append(each)
        yield each
        # aiohttp keeps the exception of the socket as `os_error`.
        waiting += [getattr(each, "os_error", None), each.__cause__, each.__context__]


def _known(error: BaseException, seconds: float) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the certificate of the server is not valid: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {_tls_reason(error.reason or str(error))}"
    if isinstance(error, ssl.CertificateError):
        return f"TLS: {error}"
    if isinstance(error, socket.gaierror):
        return "host name not found" if error.errno in (socket.EAI_NONAME, -5) else f"host name: {error.strerror}"
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} s"
    status = getattr(error, "status", None)
    if status:
        return f"the server answered the WebSocket handshake with HTTP status {status}"
    if type(error) is ConnectionError and error.args:
        return str(error)
    lost = isinstance(error, ConnectionResetError | BrokenPipeError)
    if isinstance(error, OSError) and not lost and error.errno and error.errno > 0:
        # The text of the exception has the address once more, and differs between event loops.
        # Windows has error numbers that C doesn't know.
        return ((hasattr(error, "winerror") and error.strerror) or os.strerror(error.errno)).lower()
    return ""


def _tls_reason(reason: str) -> str:
    alert = re.sub(r"^(?:TLSV\d+|SSLV3)_ALERT_", "", reason)
    return _TLS_REASONS.get(alert, alert.replace("_", " ").lower())
