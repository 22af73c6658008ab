import errno
import socket
import ssl
from typing import Any

import nats.errors
import pytest

from sanic_nats_bridge.nats.connect_errors import describe


def of_tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] words of OpenSSL (_ssl.c:1006)")
    error.reason = reason
    return error


def unverified(message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = message
    return error


class OfAiohttp(Exception):
    """An error of aiohttp's client."""

    def __init__(self, os_error: OSError) -> None:
        super().__init__("Cannot connect to host h:1 ssl:default [Connect call failed ('h', 1)]")
        self.os_error = os_error


class Status(Exception):
    status = 404


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)"), "connection refused"),
        (OfAiohttp(ConnectionRefusedError(errno.ECONNREFUSED, "x")), "connection refused"),
        (caused(RuntimeError("x"), ConnectionRefusedError(errno.ECONNREFUSED, "x")), "connection refused"),
        (OSError(errno.ENETUNREACH, "x"), "network is unreachable"),
        (OSError(errno.EHOSTUNREACH, "x"), "no route to host"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "host name not found"),
        (OfAiohttp(socket.gaierror(socket.EAI_NONAME, "x")), "host name not found"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
         "host name: Temporary failure in name resolution"),
        (TimeoutError(), "no answer within 2 s"),
        (ConnectionResetError("Connection lost"), "the server closed the connection"),
        (BrokenPipeError(errno.EPIPE, "x"), "the server closed the connection"),
        (unverified("Hostname mismatch, certificate is not valid for 'h'."),
         "TLS: the certificate of the server is not valid: Hostname mismatch, certificate is not valid for 'h'"),
        (of_tls("TLSV13_ALERT_CERTIFICATE_REQUIRED"),
         "TLS: the server requires a client certificate; set 'tls_cert' and 'tls_key'"),
        (of_tls("TLSV1_ALERT_UNKNOWN_CA"), "TLS: the server does not trust the client certificate"),
        (of_tls("SSLV3_ALERT_CERTIFICATE_EXPIRED"), "TLS: the client certificate has expired"),
        (of_tls("WRONG_VERSION_NUMBER"), "TLS: the server does not begin with TLS"),
        (of_tls("TLSV1_ALERT_PROTOCOL_VERSION"), "TLS: protocol version"),
        (ConnectionError("the settings require TLS, but the server does not offer it"),
         "the settings require TLS, but the server does not offer it"),
        (nats.errors.Error("nats: 'Authorization Violation'"), "authorization violation; check the credentials"),
        (nats.errors.AuthorizationError(), "authorization violation; check the credentials"),
        (nats.errors.Error("nats: 'maximum connections exceeded'"), "maximum connections exceeded"),
        (nats.errors.Error("nats: empty response from server when expecting INFO message"),
         "the server closed the connection, or is not a NATS server"),
        (Status(), "the server answered the WebSocket handshake with HTTP status 404"),
        (ValueError("the file of 'nkeys_seed' is empty"), "the file of 'nkeys_seed' is empty"),
        (KeyError(), "KeyError"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_reason_is_in_plain_words(error: Any, words: str) -> None:
    assert describe(error, 2) == words


def test_loss_after_tls_handshake_hints_at_client_certificate() -> None:
    words = describe(ConnectionResetError("Connection lost"), 2, encrypted=True)
    assert words.startswith("the server closed the connection after the TLS handshake; it may require a client cert")


def test_exceptions_that_cause_each_other_end() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert describe(one, 2) == "one"
