"""The web application of the dashboard: reading alone, from one folder, for this machine.

A page of another origin could ask a loopback server by a name of its own that it lets point here
(DNS rebinding): requests are answered only if they name a host that is expected.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.responses import StreamingResponse as Stream
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedopt.dashboard.index import RunIndex
from fedopt.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_KINDS = {"app.js": "text/javascript", "chart.js": "text/javascript", "style.css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
_BEAT_SECONDS = 15.0  # a comment, so that a connection that is gone is noticed


def create_app(
    index: RunIndex,
    host: str = "127.0.0.1",
    interval: float = 1.0,
    is_stopping: Callable[[], bool] = lambda: False,
) -> FastAPI:
    """Return the application.

    Args:
        index: the runs that it shows.
        host: the address it is bound to; on a loopback one, only requests that name one are
            answered.
        interval: seconds between two looks for changes, while a page is open.
        is_stopping: whether the server wants to end, so that open streams end too.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    expected = LOOPBACK if is_loopback(host) else None

    app.add_middleware(Guard, expected=expected)

    @app.exception_handler(ConfigError)
    async def refuse(_request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=404)

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(_file("index.html"))

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _KINDS:
            raise ConfigError("there is no such file")
        return Response(_file(name), media_type=_KINDS[name])

    @app.get("/api/runs")
    def runs() -> JSONResponse:
        return JSONResponse({"root": str(index.root), "runs": list(index.entries().values())})

    @app.get("/api/curves/{run:path}")
    def curves(run: str) -> JSONResponse:
        return JSONResponse(index.curves(run))

    @app.get("/report/{run:path}")
    def report(run: str) -> HTMLResponse:
        from fedopt.analysis.report import read_run, run_report

        text = run_report(read_run(index.folder(run)))
        # The page has a policy of its own. Sandboxed, it is of no origin: what a folder holds that
        # somebody else wrote could not read the other runs even if it ran.
        policy = "sandbox allow-scripts allow-popups"
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/api/events")
    async def events(request: Request) -> Stream:
        async def is_over() -> bool:
            return is_stopping() or await request.is_disconnected()

        return Stream(_changes(index, interval, is_over), media_type="text/event-stream")

    return app


class Guard:
    """Refuses requests that name an unexpected host, and adds headers that keep a page to itself.

    Args:
        app: what is guarded.
        expected: hosts that are answered; None: all.
    """

    def __init__(self, app: ASGIApp, expected: Sequence[str] | None) -> None:
        self.app = app
        self.expected = expected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = host_of(Headers(scope=scope).get("host", ""))
        if self.expected is not None and host not in self.expected:
            refusal = PlainTextResponse("this host is not expected here\n", status_code=403)
            await refusal(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, guarded)


def is_loopback(host: str) -> bool:
    """Return whether an address to bind to is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(header: str) -> str:
    """Return the host of a `Host` header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


async def _changes(
    index: RunIndex, interval: float, is_over: Callable[[], Awaitable[bool]]
) -> AsyncIterator[str]:
    """Yield server-sent events: all runs first, then those that changed or went."""
    seen: dict[str, Any] = {}
    silent = 0.0
    is_first = True
    while not await is_over():
        entries = await asyncio.to_thread(index.entries)
        changed = [entry for run, entry in entries.items() if entry["version"] != seen.get(run)]
        gone = sorted(seen.keys() - entries.keys())
        seen = {run: entry["version"] for run, entry in entries.items()}
        if changed or gone or is_first:
            payload = json.dumps({"runs": changed, "gone": gone, "root": str(index.root)})
            yield f"event: runs\ndata: {payload}\n\n"
            silent, is_first = 0.0, False
        elif silent >= _BEAT_SECONDS:
            yield ": still here\n\n"
            silent = 0.0
        await asyncio.sleep(interval)
        silent += interval


def _file(name: str) -> str:
    return (resources.files("fedopt.dashboard") / "static" / name).read_text(encoding="utf-8")
