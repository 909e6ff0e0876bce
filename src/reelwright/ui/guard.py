"""What stands before every route of the page: whose request it is, from where it comes, what it may reach.

Three attacks on a server that listens on a person's own machine are met here. A page of another site that sends
requests to it: `Origin` and `Sec-Fetch-Site` tell (Fetch Metadata, W3C). A name of another site that is made to point
at this machine (DNS rebinding): the `Host` header tells. Others on the network: a token, asked for once and then held
in a cookie that no script can read. What Gradio serves beside what the page needs (files by path, proxies, editors) is
not passed on at all.
"""

from __future__ import annotations

import asyncio
import hmac
import html
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
MIN_TOKEN_CHARACTERS = 12
MAX_BODY_BYTES, MAX_LOGIN_BYTES = 8 * 2**20, 4096
UPLOAD_PATH = "/gradio_api/upload"
MULTIPART_BYTES = 2**20  # what a form adds to the file in it
WRONG_TOKEN_SECONDS = 1.0
# Gradio's own addresses that the page uses; everything else of Gradio's is refused.
GRADIO_ROUTES = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)(/[\w.-]{1,150}){1,5}"
    r"|/gradio_api/(startup-events|info|heartbeat/\w+|queue/(join|data)|upload|upload_progress|reset|cancel|run/\w+)/?"
)
OWN_ROUTES = re.compile(r"/media/.+|/inspection/[0-9]{1,12}")
# Gradio's own scripts are inline and build functions from text. No other address is reachable from the page at all.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; frame-src 'self'; "
    "manifest-src 'self'; worker-src 'self' blob:; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "same-origin",  # with `no-referrer` a browser calls the origin of our own form null
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """An ASGI application around another. `token` None: whoever reaches `hosts` on this machine may use it.

    `hosts` None: any name in `Host`, for a server that the network reaches; then a token is a must.
    """

    def __init__(
        self, app: Any, port: int, token: str | None, hosts: Iterable[str] | None, max_upload_bytes: int
    ) -> None:
        if hosts is None and token is None:
            raise ValueError("a server for any host name needs a token")
        self._app = app
        self._token = token
        self._hosts = None if hosts is None else frozenset(hosts)
        self._max_upload_bytes = max_upload_bytes + MULTIPART_BYTES
        self._cookie = f"reelwright_{port}"  # cookies know no ports: two servers on one machine are two names
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # the page speaks by requests and event streams alone
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = _with_headers(send)
        headers = _headers(scope)
        refusal = self._wrong_host(headers) or self._cross_site(scope, headers)
        if refusal:
            await _answer(send, 403, refusal)
        elif self._token is not None and not self._logged_in(headers):
            await self._log_in(scope, receive, send)
        elif not _served(scope["path"]):
            await _answer(send, 404, "There is nothing at this address.")
        else:
            most = self._max_upload_bytes if scope["path"].rstrip("/") == UPLOAD_PATH else MAX_BODY_BYTES
            declared = headers.get("content-length", ["0"])[0]
            if not declared.isdecimal() or int(declared) > most:
                await _answer(send, 413, f"Too large: at most {most >> 20} MiB.")
            else:
                await self._app(scope, _bounded(receive, most), send)

    def _wrong_host(self, headers: dict[str, list[str]]) -> str:
        """Why the Host header is not this server's name; '' where it is."""
        names = headers.get("host", [])
        if len(names) != 1 or not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?", names[0]):
            return "This request names no host, or several."
        if self._hosts is not None and re.sub(r":\d+$", "", names[0]).lower() not in self._hosts:
            return (
                "This page answers to localhost and 127.0.0.1 only. To reach it under another name, start it with "
                "`reelwright ui --listen`."
            )
        return ""

    def _cross_site(self, scope: Scope, headers: dict[str, list[str]]) -> str:
        """Why the request looks as if another site had sent it; '' where it does not.

        Programs without a browser send neither header and are no danger here: they carry nobody's cookies.
        """
        refusal = "This request comes from another site's page."
        for origin in headers.get("origin", []):
            try:
                place = urlsplit(origin).netloc.lower()
            except ValueError:  # such as `http://[`
                return refusal
            if place != headers["host"][0].lower():
                return refusal
        site, mode = (headers.get(f"sec-fetch-{name}", [""])[0] for name in ("site", "mode"))
        opened = mode == "navigate" and scope["method"] in ("GET", "HEAD") and scope["path"] == "/"
        if site in ("cross-site", "same-site") and not opened:  # a link to the page may be followed, nothing more
            return refusal
        return ""

    def _logged_in(self, headers: dict[str, list[str]]) -> bool:
        cookies = [part.strip() for header in headers.get("cookie", []) for part in header.split(";")]
        given = [cookie.partition("=")[2] for cookie in cookies if cookie.startswith(f"{self._cookie}=")]
        return any(_same(value, self._session) for value in given)

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The token in the address or the form -> the cookie; anything else is refused."""
        given = None
        if scope["path"] == "/" and scope["method"] == "GET":
            given = _field(scope.get("query_string", b""))
        elif scope["path"] == "/login" and scope["method"] == "POST":
            given = _field(await _read(receive, MAX_LOGIN_BYTES))
        if given is not None and _same(given, self._token or ""):
            cookie = f"{self._cookie}={self._session}; Path=/; HttpOnly; SameSite=Lax"
            await _answer(send, 303, "", location="/", set_cookie=cookie)
            return
        if given is not None:
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
        if scope["path"] in ("/", "/login"):
            await _answer(send, 401, _login_page(wrong=given is not None), "text/html; charset=utf-8")
        else:
            await _answer(send, 401, "Log in first: open the page's first address and give the token.")


def _served(path: str) -> bool:
    parts = path.split("/")
    if ".." in parts or "\\" in path or "\0" in path:
        return False
    return bool(GRADIO_ROUTES.fullmatch(path) or OWN_ROUTES.fullmatch(path))


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _same(one: str, other: str) -> bool:
    """Compared in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode("utf-8", "surrogateescape"))


def _field(form: bytes) -> str | None:
    """`token` of an urlencoded form or query."""
    try:
        return parse_qs(form.decode("latin-1"), max_num_fields=20).get("token", [None])[0]
    except ValueError:
        return None


async def _read(receive: Receive, most: int) -> bytes:
    body, more = b"", True
    while more and len(body) <= most:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
    return body if len(body) <= most else b""


def _bounded(receive: Receive, most: int) -> Receive:
    """`receive` that hangs up once more than `most` bytes came, whatever the request said of its length."""
    count = 0

    async def counted() -> dict[str, Any]:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        return message if count <= most else {"type": "http.disconnect"}

    return counted


def _with_headers(send: Send) -> Send:
    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", [])}
            added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in present]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, text: str, kind: str = "text/plain; charset=utf-8", **more: str) -> None:
    body = text.encode()
    headers = {"content-type": kind, "content-length": str(len(body)), "cache-control": "no-store"}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _login_page(wrong: bool) -> str:
    message = "That is not the token." if wrong else "The token was printed where the page was started."
    return _LOGIN.replace("MESSAGE", html.escape(message))


_LOGIN = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Reelwright: log in</title><style>
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1b1f27; --faint: #667085; --line: #d5dae3; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #11141a; --card: #191d25; --ink: #e8ebf1; --faint: #98a2b3; --line: #2b313c; } }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif; }
form { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 28px;
  width: min(340px, 84vw); }
h1 { font-size: 21px; margin: 0 0 4px; } p { color: var(--faint); margin: 0 0 18px; }
input, button { font: inherit; width: 100%; box-sizing: border-box; padding: 10px 12px; border-radius: 8px; }
input { border: 1px solid var(--line); background: var(--paper); color: var(--ink); }
button { margin-top: 12px; border: 0; background: #2f6fe4; color: #fff; cursor: pointer; }
</style></head><body><form method="post" action="/login">
<h1>Reelwright</h1><p>MESSAGE</p>
<input type="password" name="token" aria-label="Token" placeholder="Token" autocomplete="current-password" autofocus>
<button type="submit">Log in</button></form></body></html>
"""
