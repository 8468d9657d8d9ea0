"""The page and the GET routes beside BentoML's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from musicgen_bento import job_routes
from musicgen_bento.errors import MusicGenError
from musicgen_bento.exchange import refuse
from musicgen_bento.jobs import Jobs
from musicgen_bento.schemas import GenerationRequest, ModelList

WEB = Path(__file__).parent / "web"
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
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

    pages = [Route(path, _page(name, kind)) for path, (name, kind) in PAGES.items()]
    return Starlette(routes=[*pages, Route("/models", models), *job_routes.routes(jobs, asks)])


def _page(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (WEB / name).read_bytes()

    async def page(_: Request) -> Response:
        return Response(content, headers={**HEADERS, "Content-Type": kind})

    return page
