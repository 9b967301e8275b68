"""The door of the page: who comes in, as whom, and what is turned away before anything else sees it.

    Access(host, share, …) → Door → Person of every request
                               └─ DoorMiddleware: hosts, origins, logins, addresses that nobody may fetch

On loopback alone everyone is the owner. A page that others can reach has a password, unless its owner insists; the
owner then logs in as "owner", or opens the owner's link. Visitors are told apart by their account, or by a cookie
that nobody can guess.
"""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ovi_studio.errors import InvalidInputError
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.visits import OWNER, Limits, Person, Visit
from ovi_studio.ui import passing

OWNER_NAME = "owner"
VISITOR_COOKIE = "ovi-visitor"
OWNER_COOKIE = "ovi-owner"
SECRET_BYTES = 16  # 128 bits
MAX_BODY_BYTES = 96 << 20  # derived: a picture of 64 MiB as base64 in JSON, and some more
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
_YEAR = 365 * 86_400
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 10.0  # seconds after wrong passwords, doubling; guessed
_FORGET_SECONDS = 600.0  # guessed: wrong passwords of an address are forgotten after this long
_WAITING_LOGINS = 4  # of an address at once; guessed
# What gradio offers and this page has no use for: it runs ffmpeg on uploads, keeps forms on the disk, asks servers.
_UNUSED = re.compile(r"^/gradio_api/(?:process_recording|deep_link|proxy=|custom_component|vibe-|undo-vibe-|stream/)")
_FETCHES_OUTSIDE = re.compile(r"/file[=/](?:https?|ftp)(?::|%3a)", re.IGNORECASE)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """Who can reach the page, and what lets them in.

    Args:
        host: address to listen on.
        share: whether a public link is made.
        accounts: visitors' names and passwords.
        made_up: visitors log in with any name and a password that is made up.
        owner_password: of the owner; None makes one up where it is needed.
        open_to_all: no password, as the owner insists.
    """

    host: str = "127.0.0.1"
    share: bool = False
    accounts: tuple[tuple[str, str], ...] = ()
    made_up: bool = False
    owner_password: str | None = None
    open_to_all: bool = False

    @property
    def leaves_this_machine(self) -> bool:
        """Whether others can reach the page."""
        return self.share or self.host not in _LOOPBACK


class HasTokens(Protocol):
    """Gradio's server: who is logged in with which cookie."""

    tokens: dict[str, str]
    cookie_id: str


class Door:
    """Tells persons apart.

    Args:
        access: how the page can be reached.

    Raises:
        InvalidInputError: it leaves this machine without a password, and nobody insisted; or an account is wrong.
    """

    def __init__(self, access: Access) -> None:
        _check(access)
        self.access = access
        self.guarded = access.leaves_this_machine and not access.open_to_all
        self.owner_password = access.owner_password or secrets.token_urlsafe(SECRET_BYTES)
        self.visitor_password = secrets.token_urlsafe(SECRET_BYTES)
        self.owner_token = secrets.token_urlsafe(SECRET_BYTES)
        self._server: HasTokens | None = None

    def opened(self, server: HasTokens) -> None:
        """The server runs: it knows who is logged in."""
        self._server = server

    def lets_in(self, name: str, password: str) -> bool:
        """Whether name and password are right; gradio's `auth`."""
        accounts = dict(self.access.accounts)
        if name == OWNER_NAME:
            right = self.owner_password
        elif name in accounts or not self.access.made_up:
            right = accounts.get(name, secrets.token_urlsafe(SECRET_BYTES))
        else:
            right = self.visitor_password
        return secrets.compare_digest(password.encode(), right.encode())

    def person(self, cookies: Mapping[str, str]) -> Person:
        """Who sent a request with these cookies.

        Raises:
            InvalidInputError: nobody who is logged in.
        """
        if not self.access.leaves_this_machine:
            return OWNER
        token = cookies.get(OWNER_COOKIE, "")
        if secrets.compare_digest(token.encode(), self.owner_token.encode()):
            return OWNER
        name = self._logged_in(cookies) if self.guarded else "visitor"
        if name is None:
            raise InvalidInputError("You are not logged in.", "Log in, and try again.")
        if name == OWNER_NAME:
            return OWNER
        if name in dict(self.access.accounts):
            return _visitor(name, "")
        known = cookies.get(VISITOR_COOKIE, "")
        if len(known) < SECRET_BYTES:
            raise InvalidInputError("Your browser keeps no cookies.", "Allow them for this page, and open it again.")
        return _visitor(name, known)

    def _logged_in(self, cookies: Mapping[str, str]) -> str | None:
        if self._server is None:
            return None
        names = (f"access-token-{self._server.cookie_id}", f"access-token-unsecure-{self._server.cookie_id}")
        found = (self._server.tokens.get(cookies[name]) for name in names if name in cookies)
        return next((name for name in found if name is not None), None)


def _visitor(name: str, known_by: str) -> Person:
    """Whose jobs are marked with what tells nothing of the cookie."""
    digest = hashlib.sha256(f"{name}\0{known_by}".encode()).hexdigest()
    return Person(f"visitor:{digest[:32]}", name)


def _check(access: Access) -> None:
    if access.leaves_this_machine and not (access.accounts or access.made_up or access.open_to_all):
        raise InvalidInputError(
            "Others could reach this page, and it has no password.",
            "Give --auth name:password, --auth generate for one that is made up, or --no-password.",
        )
    for name, password in access.accounts:
        if not name or not password or name == OWNER_NAME:
            raise InvalidInputError(
                f"The account {name!r} cannot be.", "Write name:password; the owner's is --owner-password."
            )
    if access.open_to_all and (access.accounts or access.made_up):
        raise InvalidInputError("There are accounts, and no password is wanted.", "Leave out one of the two.")


class HasCookies(Protocol):
    """A request, gradio's or the server's own."""

    @property
    def cookies(self) -> Mapping[str, str]:
        """By name."""


class Visits:
    """Who sent a request, at the desk.

    Args:
        desk: what they come to.
        door: tells who they are.
        limits: for each visitor.
    """

    def __init__(self, desk: Desk, door: Door, limits: Limits | None = None) -> None:
        self._desk = desk
        self._door = door
        self._limits = limits

    def of(self, request: HasCookies) -> Visit:
        """The visit of whoever sent `request`.

        Raises:
            InvalidInputError: nobody who is logged in.
        """
        return Visit(self._desk, self._door.person(request.cookies), self._limits)


# --- Before anything else -------------------------------------------------------------------------------------


class DoorMiddleware:
    """Turns away what no browser of ours sends, and gives every browser a name."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door
        self._logins = _Logins()
        self._allowance = passing.Allowance()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, receive = Request(scope), _bounded(receive)
        refusal = self._refusal(request)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif request.method == "POST" and request.url.path.rstrip("/").endswith("/login"):
            await self._logins.pass_on(request, self._app, receive, send)
        elif request.method == "POST" and request.url.path.rstrip("/").endswith("/upload"):
            await self._take_in(request, receive, self._naming(request, send))
        elif self._is_owner_link(request):
            answer = RedirectResponse("./", 302)
            answer.set_cookie(OWNER_COOKIE, self._door.owner_token, max_age=_YEAR, httponly=True, samesite="lax")
            await answer(scope, receive, send)
        else:
            await self._pass_on(request, receive, self._naming(request, send))

    async def _pass_on(self, request: Request, receive: Receive, send: Send) -> None:
        try:
            scope = passing.found(request.scope)
        except InvalidInputError as error:
            await PlainTextResponse(str(error), 404)(request.scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _take_in(self, request: Request, receive: Receive, send: Send) -> None:
        """An upload; gradio turns away those who are not logged in."""
        try:
            person = self._door.person(request.cookies)
        except InvalidInputError:
            await self._app(request.scope, receive, send)
            return
        if not person.is_owner:
            if self._allowance.is_spent(person.id):
                words = f"A visitor can send {passing.VISITORS_BYTES >> 20} MB a day. Try again tomorrow."
                await PlainTextResponse(words, 429)(request.scope, receive, send)
                return
            receive = self._allowance.counting(person.id, receive)
        await self._app(request.scope, receive, passing.aliased(send))

    def _refusal(self, request: Request) -> PlainTextResponse | None:
        host = (request.headers.get("host") or "").lower()
        if not self._door.access.leaves_this_machine and urlsplit(f"//{host}").hostname not in _LOOPBACK:
            return PlainTextResponse("This page is for this machine alone.", 421)  # a name that was bent to loopback
        origin = request.headers.get("origin")
        if origin is not None and request.method not in ("GET", "HEAD") and urlsplit(origin).netloc.lower() != host:
            return PlainTextResponse("Another site cannot speak for you here.", 403)
        if _FETCHES_OUTSIDE.search(request.url.path) or _FETCHES_OUTSIDE.search(str(request.url)):
            return PlainTextResponse("This server fetches nothing from elsewhere.", 403)
        if _UNUSED.search(request.url.path):
            return PlainTextResponse("There is nothing here.", 404)
        if int(request.headers.get("content-length", "0") or 0) > MAX_BODY_BYTES:
            return PlainTextResponse(f"At most {MAX_BODY_BYTES >> 20} MB can be sent at once.", 413)
        return None

    def _is_owner_link(self, request: Request) -> bool:
        given = parse_qs(request.url.query).get("owner", [""])[0]
        return secrets.compare_digest(given.encode(), self._door.owner_token.encode())

    def _naming(self, request: Request, send: Send) -> Send:
        """Gives a browser that has none the cookie that tells its visitor apart."""
        if not self._door.access.leaves_this_machine or VISITOR_COOKIE in request.cookies:
            return send
        cookie: SimpleCookie = SimpleCookie({VISITOR_COOKIE: secrets.token_urlsafe(SECRET_BYTES)})
        for name, value in (("httponly", True), ("samesite", "lax"), ("max-age", _YEAR), ("path", "/")):
            cookie[VISITOR_COOKIE][name] = value
        header = (b"set-cookie", cookie[VISITOR_COOKIE].OutputString().encode())

        async def naming(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        return naming


def _bounded(receive: Receive) -> Receive:
    """The same, ending like a lost connection where a body of unknown length grows beyond what is taken."""
    left = MAX_BODY_BYTES

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return bounded


class _Logins:
    """Makes whoever guesses passwords wait, longer with every wrong one, and writes it down."""

    def __init__(self) -> None:
        self._wrong: dict[str, tuple[int, float]] = {}  # by address: how many, and when the last one was
        self._waiting: dict[str, int] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def pass_on(self, request: Request, app: ASGIApp, receive: Receive, send: Send) -> None:
        """Let one login after another of an address through, each after its delay."""
        address = request.client.host if request.client else "?"
        if self._waiting.get(address, 0) >= _WAITING_LOGINS:
            _logger.warning("login from %s refused: too many at once", address)
            await PlainTextResponse("Too many logins at once. Try again in a minute.", 429)(
                request.scope, receive, send
            )
            return
        self._waiting[address] = self._waiting.get(address, 0) + 1
        try:
            async with self._turns.setdefault(address, asyncio.Lock()):
                await asyncio.sleep(self._delay(address))
                await app(request.scope, receive, self._watching(address, send))
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address], self._turns[address]

    def _delay(self, address: str) -> float:
        count, last = self._wrong.get(address, (0, 0.0))
        if time.monotonic() - last > _FORGET_SECONDS:
            count = 0
        return min(_FIRST_DELAY * 2 ** (count - 1), _LONGEST_DELAY) if count else 0.0

    def _watching(self, address: str, send: Send) -> Send:
        async def watching(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(address, message["status"])
            await send(message)

        return watching

    def _note(self, address: str, status: int) -> None:
        if status < 400:
            self._wrong.pop(address, None)
            return
        count, now = self._wrong.get(address, (0, 0.0))[0] + 1, time.monotonic()
        recent = {each: wrong for each, wrong in self._wrong.items() if now - wrong[1] <= _FORGET_SECONDS}
        self._wrong = recent | {address: (count, now)}
        _logger.warning("wrong password from %s, the %d. in a row", address, count)


def middleware(door: Door) -> list[Middleware]:
    """For the server's `app_kwargs`."""
    return [Middleware(DoorMiddleware, door=door)]
