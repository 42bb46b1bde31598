"""The web server of `robustft app`: the page and what it asks. It takes images and writes nothing.

What keeps other pages in the same browser out: the Host header has to be an address or a name of this machine (a name
that somebody else points here is refused), what is asked for has to come from this page (Origin), and images are sent
with types that no other site's page may send unasked. Scripts, styles and pictures come from here alone.
"""

import ipaddress
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from robustft.common.errors import UserError
from robustft.data.own.reading import UnreadableImage
from robustft.deploy.looking import Looker

ASSETS = Path(__file__).parent / "assets"
FILES = {"/": ("app.html", "text/html"), "/app.css": ("app.css", "text/css"), "/app.js": ("app.js", "text/javascript")}
LIMIT = 32 * 2**20  # bytes of an upload
AT_ONCE = 32  # connections; more are told to come back
BINARY = "application/octet-stream"  # what browsers make of images that they do not know
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Refused(Exception):
    """A request that is not answered: a status of HTTP, and a line."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def application(looker: Looker, host: str) -> Starlette:
    """Make the application that answers for these models.

    Args:
        host: where it listens, as it was typed.
    """

    async def about(_: Request) -> Response:
        return _json({**looker.about(), "limit": LIMIT})

    async def answers(request: Request) -> Response:
        return _json(await run_in_threadpool(looker.answers, await received(request)))

    async def look(request: Request) -> Response:
        target, draw = (_number(request, name) for name in ("class", "draw"))
        if target is not None and target >= len(looker.model.class_names):
            raise Refused(422, "no such class")
        return _json(await run_in_threadpool(looker.look, await received(request), target, draw or 0))

    async def nearest(request: Request) -> Response:
        if request.method != "POST":
            return _json(await run_in_threadpool(looker.progress))
        return _json(await run_in_threadpool(looker.nearest, await received(request)))

    routes = [Route(path, _file(*named)) for path, named in FILES.items()]
    routes += [
        Route("/about", about),
        Route("/answers", answers, methods=["POST"]),
        Route("/look", look, methods=["POST"]),
        Route("/nearest", nearest, methods=["GET", "POST"]),
    ]
    handlers: dict[Any, Any] = {Refused: _refusal, UnreadableImage: _unreadable, UserError: _mistake}
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(Guard, host=host)])


def server(looker: Looker, host: str) -> uvicorn.Server:
    """Make the server; ``run(sockets=[…])`` answers until it is interrupted."""
    config = uvicorn.Config(
        application(looker, host),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,  # what goes wrong is said on the terminal, and nothing else
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=AT_ONCE,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


class Guard:
    """Answer those alone who know where they are, and say of every answer what a browser may do with it."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.names = app, names_of(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        host, origin = headers.get("host", ""), headers.get("origin")
        app: ASGIApp = self.app
        if not is_here(host, self.names):
            app = PlainTextResponse("This server goes by other names: see --host.", 421)
        elif origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            app = PlainTextResponse("Asked for by a page from elsewhere.", 403)
        await app(scope, receive, guarded)


def names_of(host: str) -> set[str]:
    """The names, addresses apart, by which a server that listens there may be called."""
    known = {"localhost", host.lower()}
    if not is_loopback(host):
        known |= {name for own in [socket.gethostname().lower()] for name in (own, f"{own}.local")}
    return known


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_here(header: str, names: set[str]) -> bool:
    """Whether a Host header is an address, which nobody can point elsewhere, or one of the names."""
    if "@" in header:  # no browser says who asks; what stands behind it is not the whole name
        return False
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in names
    return True


async def received(request: Request) -> bytes:
    """An upload, whole.

    Raises:
        Refused: it is no image by its type, or too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind.startswith("image/") or kind == BINARY):
        raise Refused(415, f"expected an image (Content-Type image/… or {BINARY})")
    length = request.headers.get("content-length", "")
    content = bytearray()
    if length.isdigit() and int(length) > LIMIT:
        raise too_large()
    async for part in request.stream():
        content += part
        if len(content) > LIMIT:
            raise too_large()
    return bytes(content)


def too_large() -> Refused:
    """What is said of an upload above the limit."""
    return Refused(413, f"larger than {LIMIT // 2**20} MB, the most that is taken")


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Refused(422, f"{name}: expected a whole number")
    return int(text)


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (ASSETS / name).read_bytes()

    async def endpoint(_: Request) -> Response:
        return Response(content, media_type=kind)

    return endpoint


def _json(content: Any, status: int = 200) -> Response:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(text.encode("utf-8", "backslashreplace"), status, media_type="application/json")


async def _refusal(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, error.status if isinstance(error, Refused) else 400)


async def _unreadable(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


async def _mistake(_: Request, error: Exception) -> Response:
    print(f"error: {error}", file=sys.stderr)  # it may name paths
    return JSONResponse({"error": "it could not be done: the terminal says why"}, 500)
