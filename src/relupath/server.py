"""The page's local server: a few files, questions and pictures; every request is checked before it is read."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import re
import secrets
import socket
import sys
import threading
import unicodedata
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from . import images
from ._asked import is_long
from ._patience import while_waited_for
from .errors import MissingExtraError, RelupathError, UsageError
from .explorer import Explorer

try:
    import anyio
    import uvicorn
    from h11 import LocalProtocolError
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingExtraError(f"explore is needed for this: pip install 'relupath[explore]' ({error})") from error

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Result = TypeVar("Result")

WEB = Path(__file__).with_name("web")
FILES = {
    "/": ("index.html", "text/html"),
    "/relupath.js": ("relupath.js", "text/javascript"),
    "/relupath.css": ("relupath.css", "text/css"),
    "/relupath.svg": ("relupath.svg", "image/svg+xml"),
}
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
QUESTION = 2**18
"""Bytes of a question."""
PHOTO = 2**25
"""Bytes of a picture's file."""
PIXELS = 30_000_000
SECONDS = 60
"""How long a body may take."""
HASTE = 10
"""How many seconds a connection may take to its first request."""
CONNECTIONS = 512
LONGEST_NAME = 80
WORKER = "relupath"


def application(explorer: Explorer, token: str, hosts: Sequence[str] = ("localhost",), web: Path = WEB) -> App:
    """The server as an ASGI application.

    ``GET /``, ``/relupath.js`` and ``/relupath.css`` give the page. ``POST /api/ask`` takes a question and gives its
    answer, both JSON as in docs/view.md; ``POST /api/photo?name=FILE`` takes the bytes of a picture's file and gives
    ``{"picture": id}``. What is refused is answered by ``{"error": sentence}``.

    Args:
        explorer: what answers.
        token: what a request to ``/api`` has to have in its header ``X-Relupath-Token``.
        hosts: names under which the server may be asked, beside any IP address.
        web: the folder of the page's files.
    """
    threads = _Threads()
    quick, long, photos = _Desk(threads, 6, 64), _Desk(threads, 2, 12), _Desk(threads, 2, 4)

    def page(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        async def get(request: Request) -> Response:
            return Response((web / name).read_bytes(), media_type=kind)

        return get

    async def ask(request: Request) -> Response:
        with quick.place():
            question = _parsed(await _body(request, QUESTION))
        with (long if is_long(question) else quick).place() as desk:
            return _json(200, await desk.run(request, lambda: _rendered(explorer.answer(question))))

    async def photo(request: Request) -> Response:
        with photos.place() as desk:
            data, name = await _body(request, PHOTO), clean(request.query_params.get("name", ""))
            key = await desk.run(request, lambda: explorer.add(images.decode(data, name, PIXELS)))
            return _json(200, _rendered({"picture": key}))

    routes = [Route(path, page(*file), methods=["GET"]) for path, file in FILES.items()]
    routes += [Route("/api/ask", ask, methods=["POST"]), Route("/api/photo", photo, methods=["POST"])]
    spoken: Any = dict.fromkeys((HTTPException, RelupathError, ClientDisconnect), _refused)
    return _Guard(Starlette(routes=routes, exception_handlers=spoken | {Exception: _failed}), token, hosts)


def serve(
    explorer: Explorer, ready: Callable[[str], None], host: str = "127.0.0.1", port: int = 0, web: Path = WEB
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        explorer: what answers.
        ready: called once with the page's address, which holds a fresh random token.
        host: the address to listen at.
        port: the port; 0 means a free one.
        web: the folder of the page's files.

    Raises:
        UsageError: the address cannot be used, such as a port that is taken.
        KeyboardInterrupt: the process was interrupted; the server has ended.
    """
    token = secrets.token_urlsafe(24)
    with _listening(host, port) as listener:
        host, port = listener.getsockname()[:2]
        host = "127.0.0.1" if ipaddress.ip_address(host).is_unspecified else host
        app = application(explorer, token, ("localhost", socket.gethostname().lower()), web)
        config = uvicorn.Config(
            app, http=_Hasty, ws="none", lifespan="off", log_config=None, log_level="critical", access_log=False,
            server_header=False, proxy_headers=False, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=1,
        )  # fmt: skip
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/?token={token}")
        uvicorn.Server(config).run(sockets=[listener])


def apart(work: Callable[[], Result]) -> Future[Result]:
    """Have something done in a thread of its own, which ends with it.

    OpenMP keeps a team of threads for every thread that has computed. Once they are more than the cores, they sleep
    between any two operations, and answers take longer: the main thread of a server computes nothing.
    """
    pool = ThreadPoolExecutor(1, WORKER)
    try:
        return pool.submit(work)
    finally:
        pool.shutdown(wait=False)


class _Threads:
    """One thread that stays, and while it is busy others that end, so that idle ones never outnumber the cores."""

    def __init__(self) -> None:
        self.pool, self.busy = ThreadPoolExecutor(1, WORKER), False

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Have something done."""
        if self.busy:
            return apart(work)
        self.busy = True
        future = self.pool.submit(work)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Any]) -> None:
        self.busy = False


def leave(status: int = 0) -> None:
    """End the process at once where a thread is left that computes or loads for the page, which may take minutes."""
    if any(thread.name.startswith(WORKER) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def clean(name: str) -> str:
    """A file's name as a person may read it: without folders and control characters, and not too long."""
    base = re.split(r"[/\\]", name)[-1]
    plain = "".join(c for c in base if not unicodedata.category(c).startswith("C")).strip()
    return plain[:LONGEST_NAME] or "photo"


class _Guard:
    """Answers the page itself and no other one, and adds what keeps a browser to it.

    A page of another site can have a name of its own lead to this machine, so that a browser takes the two for one
    site: the server therefore goes by its own names and by plain addresses only. ``Origin`` says which page asks.
    """

    def __init__(self, app: App, token: str, hosts: Sequence[str]) -> None:
        self.app, self.token, self.hosts = app, token.encode(), frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        api = scope["path"].startswith("/api/")
        more = HEADERS | {"cache-control": "no-store" if api else "no-cache"}

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in more.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        refusal = self._refusal(Request(scope), api)
        app = self.app if refusal is None else _json(403, _rendered({"error": refusal}))
        await app(scope, receive, guarded)

    def _refusal(self, request: Request, api: bool) -> str | None:
        """Why a request is not answered; None where it is."""
        headers = request.headers
        hosts = [host.lower() for host in headers.getlist("host")]
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return "this server does not go by that name: open the address that the command line printed"
        own = f"http://{hosts[0]}", f"https://{hosts[0]}"
        foreign = any(origin.lower() not in own for origin in headers.getlist("origin"))
        if foreign or (api and headers.get("sec-fetch-site", "none") not in ("same-origin", "none")):
            return "this request comes from another page: only the server's own page is answered"
        tokens = headers.getlist("x-relupath-token")
        if api and not (len(tokens) == 1 and secrets.compare_digest(tokens[0].encode(), self.token)):
            return "the token is missing or wrong: open the address that the command line printed"
        return None

    def _is_own(self, host: str) -> bool:
        """Whether the server goes by a name, with or without a port."""
        match = re.fullmatch(r"(\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]+))(:\d{1,5})?", host)
        if match is None or match["name"] in self.hosts:
            return match is not None
        try:
            ipaddress.ip_address(match["six"] or match["name"])
        except ValueError:
            return False
        return True


class _Desk:
    """Has work done in threads, so much at once; lets in so many requests and sends others away."""

    def __init__(self, threads: _Threads, at_once: int, most: int) -> None:
        self.threads, self.at_once, self.most, self.inside = threads, anyio.CapacityLimiter(at_once), most, 0

    @contextmanager
    def place(self) -> Iterator[_Desk]:
        """A request's place."""
        if self.inside >= self.most:
            raise HTTPException(503, "too much is asked at once: ask again in a second", {"retry-after": "1"})
        self.inside += 1
        try:
            yield self
        finally:
            self.inside -= 1

    async def run(self, request: Request, work: Callable[[], bytes | str]) -> Any:
        """What the work gives, if anyone still waits for it; it ends soon after they have gone."""
        left = threading.Event()

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            left.set()

        def patient() -> bytes | str:
            with while_waited_for(left.is_set):
                return work()

        watching = asyncio.create_task(watch())
        try:
            async with self.at_once:
                if left.is_set():
                    raise ClientDisconnect
                return await asyncio.wrap_future(self.threads.submit(patient))
        finally:
            watching.cancel()


class _Hasty(H11Protocol):
    """Closes a connection on which no request comes."""

    def connection_made(self, transport: Any) -> None:
        """Wait a while for the first request."""
        super().connection_made(transport)
        self.loop.call_later(HASTE, lambda: self.cycle or transport.close())


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on port {port} of {host} ({why}): give another --port or --host") from error


async def _body(request: Request, limit: int) -> bytes:
    """What a request brings, read while it comes."""
    too_large = HTTPException(413, f"this is too large: at most {limit:,} bytes are taken")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > limit):
        raise too_large
    data = bytearray()
    try:
        with anyio.fail_after(SECONDS):
            async for chunk in request.stream():
                if len(data) + len(chunk) > limit:
                    raise too_large
                data += chunk
    except TimeoutError:
        raise HTTPException(408, f"the request took more than {SECONDS} seconds to come") from None
    return bytes(data)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("a question is a JSON object; this is no JSON, or is nested too deeply") from None


def _rendered(data: object) -> bytes:
    """JSON in plain ASCII, whatever is in a name."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()


def _json(status: int, body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


async def _refused(request: Request, error: Exception) -> Response:
    """A request that cannot be answered, in one sentence."""
    if isinstance(error, HTTPException):
        return _json(error.status_code, _rendered({"error": error.detail}), dict(error.headers or {}))
    status = 400 if isinstance(error, UsageError) else 404 if isinstance(error, LookupError) else 422
    return _json(status, _rendered({"error": str(error)}))


async def _failed(request: Request, error: Exception) -> Response:
    """A mistake of ours, which is logged; what a client breaks off is none."""
    if not isinstance(error, LocalProtocolError):
        logging.getLogger(__name__).error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _json(500, _rendered({"error": "something went wrong here: the terminal says what"}))
