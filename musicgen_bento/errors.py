"""The error tree: every failure of this package is a `MusicGenError`, in Python, over HTTP and on the command line.

MusicGenError                     500 internal_error
├── InvalidRequest                400 invalid
│   └── UnknownModel              400 unknown_model
├── NotFound                      404 not_found
│   └── UnknownJob                404 unknown_job
├── MethodNotAllowed              405 method_not_allowed
├── RequestTimeout                408 request_timeout
├── NotReady                      409 not_ready
├── BodyTooLarge                  413 body_too_large
├── UnsupportedMediaType          415 unsupported_media_type
├── QueueFull                     429 queue_full            (retry_after)
│   └── ResponseBufferFull        429 response_buffer_full  (retry_after)
├── JobStorageFull                429 job_storage_full      (retry_after)
├── GenerationFailed              500 generation_failed
├── InvalidCheckpoint             500 invalid_checkpoint
├── LoadFailed                    500 load_failed
│   └── ModelTooLarge             500 model_too_large
└── Unavailable                   503 unavailable           (retry_after)
    ├── ModelUnavailable          503 model_unavailable     (retry_after)
    └── ShuttingDown              503 shutting_down         (retry_after)
"""

from __future__ import annotations

from typing import Any, ClassVar


class MusicGenError(Exception):
    """An unexpected failure, and the base of all other errors.

    Args:
        message: what is wrong, in one sentence. Never contains the prompt.
        hint: what to do about it.
        field: the request field at fault, if there is one.
        retry_after: seconds after which a retry may succeed.

    Attributes:
        status: the HTTP status.
        code: a stable name of the error for programs.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

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
        """Return the body of an error response: `{"error": {"code", "message", "hint", "field"}}`."""
        error: dict[str, Any] = {"code": self.code, "message": self.message, "hint": self.hint, "field": self.field}
        if self.retry_after is not None:
            error["retry_after"] = self.retry_after
        return {"error": error}

    def without_traceback(self) -> MusicGenError:
        """Return a copy that can be stored: a traceback would keep all local variables alive, such as the audio."""
        return MusicGenError.from_dict(self.to_dict())

    @staticmethod
    def from_dict(body: dict[str, Any]) -> MusicGenError:
        """Build the error that `to_dict` wrote. An unknown code, such as a newer version's, gives a MusicGenError."""
        error = body["error"]
        error_type = _BY_CODE.get(error.get("code", ""), MusicGenError)
        return error_type(
            error.get("message", ""),
            hint=error.get("hint") or "",
            field=error.get("field"),
            retry_after=error.get("retry_after"),
        )


def _unpickle(body: dict[str, Any]) -> MusicGenError:
    return MusicGenError.from_dict(body)


class InvalidRequest(MusicGenError):
    """A field of the request is missing, unknown or out of range."""

    status, code = 400, "invalid"


class UnknownModel(InvalidRequest):
    """The model is not in the catalogue."""

    code = "unknown_model"


class NotFound(MusicGenError):
    """No page or endpoint has this path."""

    status, code = 404, "not_found"


class UnknownJob(NotFound):
    """The server has no such job: it was deleted, has expired, or belongs to another server."""

    code = "unknown_job"


class MethodNotAllowed(MusicGenError):
    """The path exists, but not with this HTTP method."""

    status, code = 405, "method_not_allowed"


class RequestTimeout(MusicGenError):
    """The request body did not arrive completely in time."""

    status, code = 408, "request_timeout"


class NotReady(MusicGenError):
    """The job is not done, so it has no audio yet."""

    status, code = 409, "not_ready"


class BodyTooLarge(MusicGenError):
    """The request body is larger than the server accepts."""

    status, code = 413, "body_too_large"


class UnsupportedMediaType(MusicGenError):
    """The request body is not JSON."""

    status, code = 415, "unsupported_media_type"


class QueueFull(MusicGenError):
    """The queue is full."""

    status, code = 429, "queue_full"


class ResponseBufferFull(QueueFull):
    """The response buffer is full: clients have not read enough of their finished audio yet."""

    code = "response_buffer_full"


class JobStorageFull(MusicGenError):
    """Job storage is full."""

    status, code = 429, "job_storage_full"


class GenerationFailed(MusicGenError):
    """The model failed during generation."""

    status, code = 500, "generation_failed"


class InvalidCheckpoint(MusicGenError):
    """A model file is truncated, in an unknown format, or of an unsupported architecture."""

    status, code = 500, "invalid_checkpoint"


class LoadFailed(MusicGenError):
    """The model could not be loaded, although its files are available."""

    code = "load_failed"


class ModelTooLarge(LoadFailed):
    """The model does not fit into the memory budget."""

    code = "model_too_large"


class Unavailable(MusicGenError):
    """The server cannot serve the request now; a later retry may succeed."""

    status, code = 503, "unavailable"


class ModelUnavailable(Unavailable):
    """The model's files cannot be fetched: no network, no such file, or no disk space."""

    code = "model_unavailable"


class ShuttingDown(Unavailable):
    """The server is shutting down and accepts no new requests."""

    code = "shutting_down"

    def __init__(
        self,
        message: str = "The server is shutting down.",
        *,
        hint: str = "Retry in a few seconds.",
        field: str | None = None,
        retry_after: float | None = 5.0,
    ) -> None:
        super().__init__(message, hint=hint, field=field, retry_after=retry_after)


def _with_subclasses(error_type: type[MusicGenError]) -> list[type[MusicGenError]]:
    return [error_type] + [leaf for child in error_type.__subclasses__() for leaf in _with_subclasses(child)]


_BY_CODE = {error_type.code: error_type for error_type in _with_subclasses(MusicGenError)}
