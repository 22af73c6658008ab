"""The check of the requested host, and the security headers of the responses.

The pages have a strict policy, and those of sanic-ext at ``/docs`` a wider one.
"""

import hashlib
import re
from base64 import b64encode

from sanic import HTTPResponse, Request, text
from sanic.response import BaseHTTPResponse

from sanic_nats_bridge import NatsBridge

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


def check_host(request: Request) -> HTTPResponse | None:
    """Reject a request to a name that isn't the app's. The bridge checks its own routes, and logs the host."""
    bridge: NatsBridge = request.app.ctx.nats_bridge
    is_own = request.route is None or not request.route.name.startswith(f"{request.app.name}.natsbridge")
    if is_own and not bridge.allows_host(request):
        return text("This host is not allowed. Start the app with --allow-host to allow it.\n", 403)
    return None


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
