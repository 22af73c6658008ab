"""Permissions by user, from a login with a cookie; a logout ends the live connections that belong to it.

Run: PASSWORDS='{"ada": "...", "bob": "..."}' sanic examples.login.server:app --single-process
Try: open http://127.0.0.1:8000, log in as ada; python examples/publish.py users.ada.inbox Hi
"""

import asyncio
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sanic import HTTPResponse, Request, Sanic, file, html, redirect
from sanic.exceptions import Forbidden
from sanic.request import RequestParameters
from sanic.response import BaseHTTPResponse

from sanic_nats_bridge import NatsBridge, Permissions

FOLDER = Path(__file__).parent
COOKIE = "login"
LOGIN_SECONDS = 8 * 3600
TEAMS = {"ada": "red", "bob": "blue"}


@dataclass(frozen=True)
class Login:
    """A browser in which a user has logged in."""

    id: str
    user: str
    expires: float


class Logins:
    """The logins of one process. An app with several workers keeps them in its database."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._salt = secrets.token_bytes(16)
        self._hashes = {user: self._hash(passwords[user]) for user in TEAMS}
        self._logins: dict[str, Login] = {}

    async def create(self, user: str, password: str) -> str | None:
        """Return the cookie of a new login, or None if the password is wrong."""
        given = await asyncio.to_thread(self._hash, password)
        expected = self._hashes.get(user, secrets.token_bytes(16))
        if not hmac.compare_digest(given, expected):
            return None
        now = time.time()
        cookie = secrets.token_urlsafe(32)
        self._logins = {key: login for key, login in self._logins.items() if login.expires > now}
        self._logins[_digest(cookie)] = Login(secrets.token_hex(8), user, now + LOGIN_SECONDS)
        return cookie

    def find(self, request: Request) -> Login | None:
        """Return the login of the browser that sent the request."""
        login = self._logins.get(_digest(request.cookies.get(COOKIE) or ""))
        return login if login is not None and login.expires > time.time() else None

    def remove(self, request: Request) -> Login | None:
        """Remove the login of the browser that sent the request, and return it."""
        return self._logins.pop(_digest(request.cookies.get(COOKIE) or ""), None)

    def _hash(self, password: str) -> bytes:
        return hashlib.scrypt(password.encode(), salt=self._salt, n=2**14, r=8, p=1)


def _digest(cookie: str) -> str:
    # A copy of the stored logins must not be enough to log in.
    return hashlib.sha256(cookie.encode()).hexdigest()


# An app reads salted hashes from its database instead.
logins = Logins(json.loads(os.environ["PASSWORDS"]))


def permissions(request: Request) -> Permissions | None:
    """Return what a new session may subscribe to. The browser sends the cookie with each request to the bridge."""
    login = logins.find(request)
    if login is None:
        return None  # HTTP 401, or close code 4401
    team = TEAMS[login.user]
    return Permissions(
        subscribe=["users.{user}.>", "teams.{team}.>", "news.>"],
        deny=["teams.*.drafts.>"],
        variables={"user": login.user, "team": team},
        # The page subscribes to "me.inbox", and NATS knows it as "users.ada.inbox".
        aliases={"me.": f"users.{login.user}.", "team.": f"teams.{team}."},
        identity=login.id,
        expires=login.expires,
    )


app = Sanic("login")
NatsBridge(app, permissions=permissions)
app.static("/page.js", FOLDER / "page.js")


@app.middleware("request")
async def reject_foreign_forms(request: Request) -> None:
    """Reject what pages of other sites send, such as a form that logs a visitor in as another user."""
    if request.method == "POST" and request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise Forbidden("This form belongs to another site")


@app.get("/")
async def index(request: Request) -> HTTPResponse:
    """Serve the page, or the form to log in."""
    return await file(FOLDER / ("index.html" if logins.find(request) else "login.html"))


@app.post("/login")
async def log_in(request: Request) -> HTTPResponse:
    """Check the password and set the cookie."""
    form = request.form or RequestParameters()
    cookie = await logins.create(form.get("user") or "", form.get("password") or "")
    if cookie is None:
        page = (FOLDER / "login.html").read_text()
        return html(page.replace("<output></output>", "<output>Wrong user or password</output>"), 401)
    response = redirect("/", status=303)
    # Scripts can't read the cookie, and forms of other sites can't send it. Only a test goes without HTTPS.
    secure = request.scheme == "https"
    response.add_cookie(COOKIE, cookie, httponly=True, samesite="Lax", secure=secure, max_age=LOGIN_SECONDS)
    return response


@app.post("/logout")
async def log_out(request: Request, bridge: NatsBridge) -> HTTPResponse:
    """Remove the login, and close the live connections that belong to it (close code 4403)."""
    login = logins.remove(request)
    if login is not None:
        await bridge.revoke(identity=login.id)
    response = redirect("/", status=303)
    response.delete_cookie(COOKIE)
    return response


@app.middleware("response")
async def add_headers(_: Request, response: BaseHTTPResponse) -> None:
    """Allow scripts of this origin only, and keep a user's page out of every cache."""
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
