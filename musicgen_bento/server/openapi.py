"""Adds the errors, headers and routes of this service to BentoML's API document, which lacks them."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel

from musicgen_bento import __version__
from musicgen_bento.schemas import ErrorBody, Job, JobAudioQuery, JobQuery, ModelList

TITLE = "musicgen-bento"
DESCRIPTION = "Text to music with MusicGen. `GET /` is a page for people."
GENERATE_ERRORS = (400, 413, 415, 429, 500, 503)
ERRORS = {"/generate": GENERATE_ERRORS, "/stream": GENERATE_ERRORS, "/list_models": (400, 413, 415, 503)}
AUDIO_HEADERS = {
    "X-Seed": ("integer", "The seed that generates this clip again."),
    "X-Model": ("string", "The model that generated the clip."),
    "X-Audio-Sample-Rate": ("integer", "In Hz."),
    "X-Audio-Channels": ("integer", "1 mono, 2 stereo."),
    "X-Audio-Duration": ("number", "In seconds."),
}
_REF = "#/components/schemas/{model}"
_UNUSED_SCHEMAS = ("TaskStatusResponse", "InvalidArgument", "NotFound", "InternalServerError")
_SUFFIX = "IODescriptor"  # BentoML appends it to the names of models


@dataclass(frozen=True)
class _Operation:
    """One method of a path that BentoML's document lacks.

    Attributes:
        operation_id: the operation's id without the name of the service.
        success: status and description of a successful response.
        content: body of a successful response: a model, a WAV, or nothing.
        errors: statuses of the error responses.
        query: the query parameters.
        body: whether the request has the body of /generate.
        location: whether the response has a Location header.
    """

    method: Literal["get", "post", "delete"]
    path: str
    operation_id: str
    summary: str
    success: tuple[int, str]
    content: type[BaseModel] | Literal["wav"] | None
    errors: tuple[int, ...]
    query: type[BaseModel] | None = None
    body: bool = False
    location: bool = False


_OPERATIONS = (
    _Operation(
        "get", "/models", "models", "List the models, as POST /list_models.", (200, "The models."), ModelList, (503,)
    ),
    _Operation(
        "post",
        "/jobs",
        "submit_job",
        "Start a job: generate a clip, whether or not the client stays connected.",
        (202, "The request is admitted."),
        Job,
        GENERATE_ERRORS,
        body=True,
        location=True,
    ),
    _Operation(
        "get",
        "/jobs/{id}",
        "job",
        "Return the state of a job, or wait for its next change.",
        (200, "The job."),
        Job,
        (400, 404),
        query=JobQuery,
    ),
    _Operation(
        "delete",
        "/jobs/{id}",
        "delete_job",
        "Cancel a job, or delete it if it is finished.",
        (204, "The job is cancelled or deleted."),
        None,
        (404,),
    ),
    _Operation(
        "get",
        "/jobs/{id}/audio",
        "job_audio",
        "Download the whole WAV. The job is deleted when the last byte has been sent, unless `keep` is true.",
        (200, ""),
        "wav",
        (400, 404, 409),
        query=JobAudioQuery,
    ),
    _Operation(
        "get",
        "/jobs/{id}/stream",
        "job_stream",
        "Stream a running job's audio from the first sample, as a WAV of exact length. Any number of clients may "
        "stream it; disconnecting does not affect the job. The level is `none` if the job's is, otherwise `clip`.",
        (200, ""),
        "wav",
        (404, 409, 500, 503),
    ),
)


class Document(dict[str, Any]):
    """An API document with the method that BentoML expects."""

    def asdict(self) -> dict[str, Any]:
        """Return the document itself."""
        return self


def patch_openapi(document: dict[str, Any]) -> Document:
    """Return a copy of BentoML's document with the errors, headers and routes of this service."""
    document = Document(json.loads(json.dumps(document).replace(_SUFFIX, "")))
    document["info"] = {"title": TITLE, "description": DESCRIPTION, "version": __version__}
    schemas = document["components"]["schemas"]
    for name in _UNUSED_SCHEMAS:
        schemas.pop(name, None)
    for model in (ErrorBody, ModelList, Job):
        schema = model.model_json_schema(ref_template=_REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    for path, statuses in ERRORS.items():
        operation = document["paths"][path]["post"]
        operation["description"] = inspect.cleandoc(operation["description"])
        operation["responses"] = {"200": operation["responses"]["200"], **_errors(statuses)}
    generate, stream = (document["paths"][path]["post"] for path in ("/generate", "/stream"))
    for operation in (generate, stream):
        operation["responses"]["200"]["headers"] = {
            name: {"description": text, "schema": {"type": kind}} for name, (kind, text) in AUDIO_HEADERS.items()
        }
    stream_content = stream["responses"]["200"]["content"]
    stream_content["audio/pcm"] = stream_content["audio/wav"]
    for entry in _OPERATIONS:
        document["paths"].setdefault(entry.path, {})[entry.method] = _describe(entry, generate)
    return document


def _describe(entry: _Operation, generate: dict[str, Any]) -> dict[str, Any]:
    """Return the description of an operation. It shares the request and the audio response of /generate."""
    operation: dict[str, Any] = {
        "summary": entry.summary,
        "operationId": f"MusicGenService__{entry.operation_id}",
    }
    if entry.body:
        operation["requestBody"] = generate["requestBody"]
    if "{id}" in entry.path:
        job_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [job_id, *_query_parameters(entry.query)]
    status, description = entry.success
    success: dict[str, Any] = {"description": description}
    if entry.location:
        success["headers"] = {"Location": {"description": "/jobs/{id}", "schema": {"type": "string"}}}
    if entry.content == "wav":
        success = generate["responses"]["200"]
    elif entry.content:
        success["content"] = _json(entry.content)
    operation["responses"] = {str(status): success, **_errors(entry.errors)}
    return operation


def _query_parameters(query: type[BaseModel] | None) -> list[dict[str, Any]]:
    fields = query.model_json_schema()["properties"].items() if query else ()
    return [
        {"name": name, "in": "query", "required": False, "description": schema.pop("description"), "schema": schema}
        for name, schema in fields
    ]


def _errors(statuses: tuple[int, ...]) -> dict[str, Any]:
    """Return the error responses of an operation, by status."""
    return {str(status): _error(status) for status in statuses}


def _error(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {"description": HTTPStatus(status).phrase, "content": _json(ErrorBody)}
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"description": "In seconds.", "schema": {"type": "integer"}}}
    return response


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
