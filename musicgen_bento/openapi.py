"""The API document: BentoML's, made true. It knows neither our errors nor what stands beside its own routes."""

from __future__ import annotations

import inspect
import json
from http import HTTPStatus
from typing import Any

from musicgen_bento import __version__
from musicgen_bento.schemas import ErrorBody, ModelList

TITLE = "musicgen-bento"
DESCRIPTION = "Text to music with MusicGen. `GET /` is a page for people."
ERRORS = {"/generate": (400, 413, 415, 429, 500, 503), "/list_models": (400, 413, 415, 503)}
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
    for model in (ErrorBody, ModelList):
        schema = model.model_json_schema(ref_template=_REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    for path, statuses in ERRORS.items():
        operation = document["paths"][path]["post"]
        operation["description"] = inspect.cleandoc(operation["description"])
        good = operation["responses"]["200"]
        operation["responses"] = {"200": good, **{str(status): _error(status) for status in statuses}}
    document["paths"]["/generate"]["post"]["responses"]["200"]["headers"] = {
        name: {"description": text, "schema": {"type": kind}} for name, (kind, text) in AUDIO_HEADERS.items()
    }
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
    return document


def _error(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model="ErrorBody")}}},
    }
    if status in (429, 503):
        answer["headers"] = {"Retry-After": {"description": "In seconds.", "schema": {"type": "integer"}}}
    return answer
