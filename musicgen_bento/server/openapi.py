"""The API document: BentoML's, made true. It knows neither our errors nor what stands beside its own routes."""

from __future__ import annotations

import inspect
import json
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from musicgen_bento import __version__
from musicgen_bento.schemas import ErrorBody, Job, JobAudioQuery, JobQuery, ModelList

TITLE = "musicgen-bento"
DESCRIPTION = "Text to music with MusicGen. `GET /` is a page for people."
GENERATE_ERRORS = (400, 413, 415, 429, 500, 503)
ERRORS = {"/generate": GENERATE_ERRORS, "/stream": GENERATE_ERRORS, "/list_models": (400, 413, 415, 503)}
AUDIO_HEADERS = {
    "X-Seed": ("integer", "The seed that makes this clip again."),
    "X-Model": ("string", "The model that made it."),
    "X-Audio-Sample-Rate": ("integer", "In Hz."),
    "X-Audio-Channels": ("integer", "1 mono, 2 stereo."),
    "X-Audio-Duration": ("number", "In seconds."),
}
_REF = "#/components/schemas/{model}"
_FOREIGN = ("TaskStatusResponse", "InvalidArgument", "NotFound", "InternalServerError")
_SUFFIX = "IODescriptor"  # BentoML adds it to the names of models


class Document(dict[str, Any]):
    """A document, as BentoML asks for one."""

    def asdict(self) -> dict[str, Any]:
        """Itself."""
        return self


def correct(document: dict[str, Any]) -> Document:
    """The same document with our errors, headers and GET routes."""
    document = Document(json.loads(json.dumps(document).replace(_SUFFIX, "")))
    document["info"] = {"title": TITLE, "description": DESCRIPTION, "version": __version__}
    schemas = document["components"]["schemas"]
    for name in _FOREIGN:
        schemas.pop(name, None)
    for model in (ErrorBody, ModelList, Job):
        schema = model.model_json_schema(ref_template=_REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    for path, statuses in ERRORS.items():
        operation = document["paths"][path]["post"]
        operation["description"] = inspect.cleandoc(operation["description"])
        good = operation["responses"]["200"]
        operation["responses"] = {"200": good, **{str(status): _error(status) for status in statuses}}
    generate, stream = (document["paths"][path]["post"] for path in ("/generate", "/stream"))
    for operation in (generate, stream):
        operation["responses"]["200"]["headers"] = {
            name: {"description": text, "schema": {"type": kind}} for name, (kind, text) in AUDIO_HEADERS.items()
        }
    streamed = stream["responses"]["200"]["content"]
    streamed["audio/pcm"] = streamed["audio/wav"]
    models = {"$ref": _REF.format(model="ModelList")}
    document["paths"]["/models"] = {
        "get": {
            "summary": "The models, as POST /list_models gives them.",
            "operationId": "MusicGenService__models",
            "responses": {
                "200": {"description": "The models.", "content": {"application/json": {"schema": models}}},
                "503": _error(503),
            },
        }
    }
    document["paths"].update(_jobs(generate))
    return document


def _jobs(generate: dict[str, Any]) -> dict[str, Any]:
    """The routes of the jobs, which take and give what /generate does."""
    job = {"application/json": {"schema": {"$ref": _REF.format(model="Job")}}}
    name = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    submit: dict[str, Any] = {
        "summary": "Have a clip made, whether or not the client stays.",
        "operationId": "MusicGenService__submit_job",
        "requestBody": generate["requestBody"],
        "responses": {
            "202": {
                "description": "The runner has taken it.",
                "headers": {"Location": {"description": "/jobs/{id}", "schema": {"type": "string"}}},
                "content": job,
            },
            **{str(status): _error(status) for status in GENERATE_ERRORS},
        },
    }
    follow: dict[str, Any] = {
        "summary": "How it is going; waits for news if asked to.",
        "operationId": "MusicGenService__job",
        "parameters": [name, *_query(JobQuery)],
        "responses": {
            "200": {"description": "The job.", "content": job},
            **{str(status): _error(status) for status in (400, 404)},
        },
    }
    drop: dict[str, Any] = {
        "summary": "Cancel it; forget it where it is over.",
        "operationId": "MusicGenService__drop_job",
        "parameters": [name],
        "responses": {"204": {"description": "Done."}, "404": _error(404)},
    }
    audio: dict[str, Any] = {
        "summary": "The whole WAV, once: when its last byte has been sent the job is forgotten, unless it is kept.",
        "operationId": "MusicGenService__job_audio",
        "parameters": [name, *_query(JobAudioQuery)],
        "responses": {
            "200": generate["responses"]["200"],
            **{str(status): _error(status) for status in (400, 404, 409)},
        },
    }
    listen: dict[str, Any] = {
        "summary": "Its sound while it is made, from the first sample on, as a WAV of exact length. Readers may "
        "come and go, the job goes on. The level is the job's own, or clip where that needs the whole clip.",
        "operationId": "MusicGenService__job_stream",
        "parameters": [name],
        "responses": {
            "200": generate["responses"]["200"],
            **{str(status): _error(status) for status in (404, 409, 500, 503)},
        },
    }
    return {
        "/jobs": {"post": submit},
        "/jobs/{id}": {"get": follow, "delete": drop},
        "/jobs/{id}/audio": {"get": audio},
        "/jobs/{id}/stream": {"get": listen},
    }


def _query(kind: type[BaseModel]) -> list[dict[str, Any]]:
    return [
        {"name": field, "in": "query", "required": False, "description": about.pop("description"), "schema": about}
        for field, about in kind.model_json_schema()["properties"].items()
    ]


def _error(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model="ErrorBody")}}},
    }
    if status in (429, 503):
        answer["headers"] = {"Retry-After": {"description": "In seconds.", "schema": {"type": "integer"}}}
    return answer
