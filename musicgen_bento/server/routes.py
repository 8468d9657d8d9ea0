"""The page and the GET routes beside BentoML's own."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from musicgen_bento.errors import MusicGenError
from musicgen_bento.schemas import GenerationRequest, ModelList
from musicgen_bento.server import job_routes
from musicgen_bento.server.jobs import Jobs
from musicgen_bento.server.request_context import refuse

WEB = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, and asked for anew each time: the modules of two versions must not mix
}


def build(
    list_models: Callable[[], Awaitable[ModelList]], jobs: Callable[[], Jobs], asks: type[GenerationRequest]
) -> Starlette:
    """The routes. No catch-all: what is not here is BentoML's.

    Args:
        list_models: what `GET /models` answers with.
        jobs: the process's own; asked for with every request, as there are none before the service has begun.
        asks: what a request for a clip is.
    """

    async def models(_: Request) -> Response:
        try:
            return JSONResponse((await list_models()).model_dump())
        except MusicGenError as error:
            return refuse(error)

    pages = [Route(_path(file), _page(file)) for file in sorted(WEB.iterdir()) if file.suffix in KINDS]
    return Starlette(routes=[*pages, Route("/models", models), *job_routes.routes(jobs, asks)])


def _path(file: Path) -> str:
    return "/" if file.name == "index.html" else f"/{file.name}"


def _page(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content = file.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**HEADERS, "Content-Type": KINDS[file.suffix], "ETag": tag}

    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return page
