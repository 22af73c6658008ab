"""The security headers of the responses: a strict policy, and a wider one for the pages of sanic-ext at ``/docs``."""

import hashlib
import re
from base64 import b64encode

from sanic import Request
from sanic.response import BaseHTTPResponse

_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_POLICY = "default-src 'self'; frame-ancestors 'none'"
_DOCS_ROUTES = "openapi."
_REDOC = "https://cdn.redoc.ly/redoc/"
_SWAGGER_UI = "https://cdnjs.cloudflare.com/ajax/libs/swagger-ui/"
_DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; frame-ancestors 'none'; "
    f"script-src {_REDOC} {_SWAGGER_UI} {{scripts}}; worker-src blob:; "
    # Redoc writes its styles into the page.
    f"style-src 'unsafe-inline' {_SWAGGER_UI} https://fonts.googleapis.com; font-src https://fonts.gstatic.com; "
    f"img-src 'self' data: {_REDOC}"
)
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def add_security_headers(request: Request, response: BaseHTTPResponse) -> None:
    """Restrict each page to the resources that it needs, and let no other page frame it."""
    response.headers.update(_HEADERS)
    name = request.route.name if request.route is not None else ""
    is_docs = name.removeprefix(f"{request.app.name}.").startswith(_DOCS_ROUTES)
    response.headers["Content-Security-Policy"] = _docs_policy(response.body or b"") if is_docs else _POLICY


def _docs_policy(page: bytes) -> str:
    """Return the policy of a page of sanic-ext, which allows its inline scripts by their hashes."""
    digests = (b64encode(hashlib.sha256(script).digest()).decode() for script in _INLINE_SCRIPT.findall(page))
    return _DOCS_POLICY.format(scripts=" ".join(f"'sha256-{digest}'" for digest in digests))
