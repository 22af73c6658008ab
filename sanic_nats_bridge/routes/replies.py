"""The HTTP responses to commands and to rejected requests."""

import math

from sanic import HTTPResponse

from ..errors import BridgeError, PublishRateExceeded, RateLimitExceeded, RequestLimitExceeded, UnsupportedCommand
from ..protocol.messages import Action, Outcome, encode
from .responses import json_response

__all__ = ["misdirected", "outcome_response", "rejection_response"]

_MISDIRECTED = 421
_REPEATABLE = (RateLimitExceeded, PublishRateExceeded, RequestLimitExceeded)


def outcome_response(outcome: Outcome) -> HTTPResponse:
    """Return the HTTP response to a command: its reply, with the status of its error."""
    reply, error = outcome
    headers = {"retry-after": str(math.ceil(error.retry_after))} if isinstance(error, _REPEATABLE) else {}
    return json_response(encode(reply), 200 if error is None else error.http_status, headers)


def rejection_response(error: BridgeError, action: str) -> HTTPResponse:
    """Return the HTTP response to a request that was rejected before it was read as a command."""
    return outcome_response(Outcome.rejected(error, action))


def misdirected(action: Action) -> HTTPResponse:
    """Return the response to a request over a version of HTTP that the bridge doesn't serve.

    A browser repeats such a request over another version (RFC 9110, section 15.5.20).
    """
    response = rejection_response(UnsupportedCommand("Not supported here: HTTP/3"), action)
    response.status = _MISDIRECTED
    return response
