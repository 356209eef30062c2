"""What clients reach of a SuperLink: its Fleet API over TLS, and nothing else.

Flower serves three APIs on one port: Fleet for clients, Control for who submits runs and admits
keys, Runtime for the server's own processes. Whoever reaches the port can use Control. The gateway
is the port that clients see; it passes on requests to Fleet and refuses all others, so that a
client can neither submit a run nor admit a key.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

PASSED = re.compile(r"/v1/fleet/[a-z-]+|/health")
HOP_HEADERS = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
}
"""Headers of one connection, which are not passed on (RFC 9110, section 7.6.1)."""


def gateway(superlink: str, authority: Path) -> Starlette:
    """Return the application that passes Fleet requests on.

    Args:
        superlink: `https://host:port` of the SuperLink.
        authority: certificate of the authority that signed the SuperLink's.
    """
    context = ssl.create_default_context(cafile=str(authority))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = httpx.Timeout(60.0, connect=10.0, read=None)
        async with httpx.AsyncClient(
            base_url=superlink, verify=context, limits=limits, timeout=timeout
        ) as client:
            app.state.client = client
            yield

    async def passed_on(request: Request) -> Response:
        client: httpx.AsyncClient = request.app.state.client
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP_HEADERS]
        path = request.url.path
        if not PASSED.fullmatch(path):  # no dots, no encoded slashes: nothing leads elsewhere
            return await refused(request)
        content = request.stream() if request.method == "POST" else None
        sent = client.build_request(request.method, path, headers=headers, content=content)
        try:
            answer = await client.send(sent, stream=True)
        except httpx.TransportError as error:
            return PlainTextResponse(f"the SuperLink does not answer: {error}\n", 502)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for chunk in answer.aiter_raw():
                    yield chunk
            finally:
                await answer.aclose()

        kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_HEADERS}
        return StreamingResponse(body(), answer.status_code, kept)

    async def refused(request: Request) -> Response:
        return PlainTextResponse("this address serves clients alone\n", 403)

    return Starlette(
        routes=[
            Route("/v1/fleet/{rest:path}", passed_on, methods=["POST"]),
            Route("/health", passed_on, methods=["GET"]),
            Route("/{rest:path}", refused, methods=["GET", "POST", "PUT", "DELETE", "PATCH"]),
        ],
        lifespan=lifespan,
    )


def serve_gateway(
    superlink: str, authority: Path, certificate: Path, key: Path, host: str, port: int
) -> None:
    """Serve the gateway over TLS until the process is stopped.

    Args:
        superlink: `https://host:port` of the SuperLink.
        authority: certificate of the authority.
        certificate: the server's certificate.
        key: its private key.
        host: address to listen on.
        port: port to listen on.
    """
    import uvicorn

    uvicorn.run(
        gateway(superlink, authority),
        host=host,
        port=port,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        log_level="warning",
    )
