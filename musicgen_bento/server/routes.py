"""The page and GET /models, which are served beside BentoML's own routes."""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

from musicgen_bento.errors import MusicGenError
from musicgen_bento.schemas import GenerationRequest, ModelList
from musicgen_bento.server.error_responses import ErrorResponse
from musicgen_bento.server.job_routes import job_routes
from musicgen_bento.server.jobs import Jobs

STATIC_FOLDER = Path(__file__).parent / "static"
STATIC_SUFFIXES = frozenset((".html", ".js", ".css", ".svg"))
STATIC_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # browsers revalidate each file, so that the modules of two versions are not mixed
}

mimetypes.add_type("text/javascript", ".js")  # RFC 9239; Python 3.11 has the obsolete application/javascript


class PageFiles(StaticFiles):
    """Serves the files of the page with their security headers and an ETag of their content.

    Starlette's own ETag is made of size and modification time, which two versions of an image may share.
    """

    def __init__(self) -> None:
        super().__init__(directory=STATIC_FOLDER, html=True)  # html: index.html is at /
        self._etags = {
            file.name: f'"{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"' for file in STATIC_FOLDER.iterdir()
        }

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return 200 with the file, or 304 if the client has it."""
        headers = STATIC_HEADERS | {"ETag": self._etags[Path(full_path).name]}
        response: Response = FileResponse(full_path, status_code, headers, stat_result=stat_result)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            response = NotModifiedResponse(response.headers)
            response.headers.update(STATIC_HEADERS)
        return response


def build_app(
    list_models: Callable[[], Awaitable[ModelList]],
    get_jobs: Callable[[], Jobs],
    request_type: type[GenerationRequest],
) -> Starlette:
    """Return the app with the page, GET /models and the routes of the jobs. BentoML serves all other paths.

    Args:
        list_models: returns the body of `GET /models`.
        get_jobs: returns the jobs of the process. They do not exist before the service has started.
        request_type: the model of the body of `POST /jobs`.
    """

    async def models(_: Request) -> Response:
        try:
            return JSONResponse((await list_models()).model_dump())
        except MusicGenError as error:
            return ErrorResponse(error)

    # One route per file: PathNormalizer accepts only the paths of routes.
    files = PageFiles()
    paths = [_path(file) for file in sorted(STATIC_FOLDER.iterdir()) if file.suffix in STATIC_SUFFIXES]
    pages = [Route(path, files, methods=["GET"], name=path) for path in paths]
    return Starlette(routes=[*pages, Route("/models", models), *job_routes(get_jobs, request_type)])


def _path(file: Path) -> str:
    return "/" if file.name == "index.html" else f"/{file.name}"
