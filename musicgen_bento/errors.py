"""The error tree. Every failure a user can meet is one of these, on every road.

MusicGenError                     500 failed
├── InvalidRequest                400 invalid
│   └── UnknownModel              400 unknown_model
├── NotFound                      404 not_found
│   └── UnknownJob                404 unknown_job
├── MethodNotAllowed              405 method_not_allowed
├── BodyTooSlow                   408 too_slow
├── NotReady                      409 not_ready
├── BodyTooLarge                  413 too_large
├── UnsupportedMediaType          415 unsupported_media_type
├── QueueFull                     429 queue_full            (retry_after)
│   └── UnreadFull                429 unread_full           (retry_after)
├── JobsFull                      429 jobs_full             (retry_after)
├── GenerationFailed              500 generation_failed
├── BrokenCheckpoint              500 broken_checkpoint
├── LoadFailed                    500 load_failed
│   └── ModelTooLarge             500 model_too_large
└── Unavailable                   503 unavailable           (retry_after)
    ├── ModelUnavailable          503 model_unavailable     (retry_after)
    └── ShuttingDown              503 shutting_down         (retry_after)
"""

from __future__ import annotations

from typing import Any, ClassVar


class MusicGenError(Exception):
    """A failure with a status, a stable code, a message for people and a way out.

    Args:
        message: what went wrong, in one sentence. Never contains the prompt.
        hint: what to do about it.
        field: the request field at fault, if there is one.
        retry_after: seconds after which trying again may help.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "failed"

    def __init__(
        self, message: str, *, hint: str = "", field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """The body of an error answer: `{"error": {"code", "message", "hint", "field"}}`."""
        error: dict[str, Any] = {"code": self.code, "message": self.message, "hint": self.hint, "field": self.field}
        if self.retry_after is not None:
            error["retry_after"] = self.retry_after
        return {"error": error}

    def without_traceback(self) -> MusicGenError:
        """The same, to be kept: a traceback would keep all that was on the way, such as the music."""
        return MusicGenError.from_dict(self.to_dict())

    @staticmethod
    def from_dict(body: dict[str, Any]) -> MusicGenError:
        """The error that `to_dict` wrote; a code of a newer version becomes a plain MusicGenError."""
        error = body["error"]
        kind = _BY_CODE.get(error.get("code", ""), MusicGenError)
        return kind(
            error.get("message", ""),
            hint=error.get("hint") or "",
            field=error.get("field"),
            retry_after=error.get("retry_after"),
        )


def _unpickle(body: dict[str, Any]) -> MusicGenError:
    return MusicGenError.from_dict(body)


class InvalidRequest(MusicGenError):
    """The request cannot be served as it is written."""

    status, code = 400, "invalid"


class UnknownModel(InvalidRequest):
    """The model is not in the catalogue."""

    code = "unknown_model"


class NotFound(MusicGenError):
    """There is nothing at this address."""

    status, code = 404, "not_found"


class UnknownJob(NotFound):
    """The job is not here: fetched, deleted, too old, or another server's."""

    code = "unknown_job"


class MethodNotAllowed(MusicGenError):
    """The address exists, for another method."""

    status, code = 405, "method_not_allowed"


class RequestTimeout(MusicGenError):
    """The request body did not come to its end."""

    status, code = 408, "too_slow"


class NotReady(MusicGenError):
    """The job has no music: it is not done."""

    status, code = 409, "not_ready"


class BodyTooLarge(MusicGenError):
    """The request body is larger than the service takes."""

    status, code = 413, "too_large"


class UnsupportedMediaType(MusicGenError):
    """The request body is not JSON."""

    status, code = 415, "unsupported_media_type"


class QueueFull(MusicGenError):
    """Every place in the queue is taken."""

    status, code = 429, "queue_full"


class ResponseBufferFull(QueueFull):
    """The memory for finished clips is taken by those that clients are still reading."""

    code = "unread_full"


class JobStorageFull(MusicGenError):
    """The memory for the music of jobs is spoken for."""

    status, code = 429, "jobs_full"


class GenerationFailed(MusicGenError):
    """The model failed while it made the music."""

    status, code = 500, "generation_failed"


class InvalidCheckpoint(MusicGenError):
    """A model file is truncated, foreign or of a kind this service cannot run."""

    status, code = 500, "broken_checkpoint"


class LoadFailed(MusicGenError):
    """The model's files are there, and it still could not be loaded."""

    code = "load_failed"


class ModelTooLarge(LoadFailed):
    """The model does not fit into the memory that the operator gives to models."""

    code = "model_too_large"


class Unavailable(MusicGenError):
    """The service cannot answer now; later it may."""

    status, code = 503, "unavailable"


class ModelUnavailable(Unavailable):
    """The model's files cannot be had now: no network, no such file, no room."""

    code = "model_unavailable"


class ShuttingDown(Unavailable):
    """The server is on its way out and takes no new work."""

    code = "shutting_down"


def _tree(kind: type[MusicGenError]) -> list[type[MusicGenError]]:
    return [kind] + [leaf for child in kind.__subclasses__() for leaf in _tree(child)]


_BY_CODE = {kind.code: kind for kind in _tree(MusicGenError)}
