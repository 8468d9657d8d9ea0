"""The data that clients send and receive. The module needs pydantic only, because the Python client uses it too."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from musicgen_bento.audio_options import Normalize as Normalize  # the `as` re-exports the name
from musicgen_bento.audio_options import StreamFormat as StreamFormat
from musicgen_bento.audio_options import StreamNormalize as StreamNormalize

MAX_SEED = 2**32 - 1

WAV_HEADER_BYTES = 44  # before the samples, in every WAV file of this service
BYTES_PER_SAMPLE = 2  # 16-bit PCM

# No control characters except tab and line ends: a null byte in a prompt is a mistake of the client.
Prompt = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=2000,
        pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$",
    ),
]


class Schema(BaseModel):
    """The base of all schemas. Pydantic builds each at its first use: the command line and the client need few."""

    model_config = ConfigDict(defer_build=True)


class GenerationRequest(Schema):
    """One clip to generate from text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: Prompt = Field(
        description="What the music should sound like, in any language; at most 512 T5 tokens.",
        examples=["lofi hip hop with a warm electric piano and a lazy beat"],
    )
    model: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="A model of `GET /models`, by id or alias. Default: the server's default model.",
        examples=["demo", "facebook/musicgen-small"],
    )
    duration: float = Field(
        30.0,
        ge=0.1,
        allow_inf_nan=False,
        description="Length in seconds, rounded down to whole frames of 20 ms. The server sets the maximum (300).",
        examples=[10],
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="The same seed and request give the same clip. Default: random; the response contains it.",
        examples=[42],
    )
    temperature: float = Field(
        1.0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Higher values give more varied output; 0 always takes the likeliest token.",
    )
    top_k: int = Field(250, ge=0, le=10_000, description="Sample among the k likeliest tokens; 0 means all tokens.")
    top_p: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Sample among the likeliest tokens with this total probability; 0 is off. Overrides top_k.",
    )
    cfg_coef: float = Field(
        3.0,
        ge=0,
        le=20,
        allow_inf_nan=False,
        description="Classifier-free guidance: how closely to follow the prompt; 1 is off, and faster.",
    )
    normalize: Normalize = Field(
        "loudness",
        description="loudness: -14 LUFS with soft limiting, as AudioCraft's demos; peak: -1 dBFS; rms: -18 dBFS; "
        "clip: level unchanged, peaks clipped at -1 dBFS; none: level unchanged, but a clip with peaks beyond 0 dBFS "
        "is scaled down as a whole.",
    )


class StreamRequest(GenerationRequest):
    """One clip to generate from text, streamed while it is generated."""

    normalize: StreamNormalize = Field(
        "clip",
        description="clip: level unchanged, peaks clipped at -1 dBFS; none: level unchanged, peaks clipped at 0 dBFS. "
        "loudness, peak and rms need the whole clip: use `POST /generate` or `POST /jobs`.",
    )
    format: StreamFormat = Field(
        "wav", description="wav: a WAV file; pcm: its samples only, interleaved 16-bit integers, little-endian."
    )


class GenerationOptions(TypedDict, total=False):
    """The fields of a request except prompt and model, as keyword arguments."""

    duration: float
    seed: int | None
    temperature: float
    top_k: int
    top_p: float
    cfg_coef: float
    normalize: Normalize


class LoadProgress(Schema):
    """The progress of loading a model."""

    step: Literal["downloading", "waiting", "loading"] = Field(
        description="downloading: fetching files; waiting: until other models are evicted; loading: into memory."
    )
    done_bytes: int | None = Field(None, description="While downloading: bytes received.")
    total_bytes: int | None = Field(None, description="While downloading: bytes in total.")
    ahead: int | None = Field(None, description="While waiting: number of models before this one.")


class ModelInfo(Schema):
    """A model that the server offers."""

    id: str = Field(description="The name of the model.", examples=["facebook/musicgen-small"])
    aliases: list[str] = Field(description="Other names of the model.")
    channels: int | None = Field(None, description="1 mono, 2 stereo. null here and below: not known for this model.")
    sample_rate: int | None = Field(None, description="In Hz.", examples=[32_000])
    conditioning: list[str] = Field(description="Kinds of input that the model can follow: text, melody.")
    window: float | None = Field(
        None, description="The longest clip in seconds that the model reads in one sequence; longer clips continue it."
    )
    parameters: int | None = Field(None, description="Number of parameters of the language model.")
    license: str | None = Field(None, description="Licence of the weights.")
    download_bytes: int | None = Field(None, description="Approximate size of the download.")
    memory_bytes: int | None = Field(
        None,
        description="Memory of the model with one request; exact once its files are on the server, an estimate before.",
    )
    state: Literal["downloadable", "cached", "loading", "loaded"] = Field(
        description="downloadable: not on the server; cached: on its disk; loading; loaded: in memory."
    )
    progress: LoadProgress | None = Field(None, description="The progress, while the model is loading.")
    default: bool = Field(description="Whether requests that do not name a model use this one.")
    note: str = Field(description="What to know before choosing the model.")


class ModelList(Schema):
    """All models that the server offers."""

    models: list[ModelInfo]


class ErrorDetail(Schema):
    """What is wrong and what to do about it."""

    code: str = Field(description="A stable name of the error, for programs.", examples=["invalid"])
    message: str = Field(description="What is wrong.")
    hint: str = Field(description="What to do about it.")
    field: str | None = Field(description="The request field at fault, if there is one.")
    retry_after: float | None = Field(None, description="Seconds after which a retry may succeed.")


class ErrorBody(Schema):
    """The body of every response that is not a success."""

    error: ErrorDetail


JobState = Literal["queued", "loading", "running", "done", "failed", "cancelled"]


class Job(Schema):
    """A clip that the server generates without an open connection."""

    id: str = Field(description="A secret: any client that has it can read, download and cancel the job.")
    state: JobState = Field(
        description="queued; loading: the model is downloaded, waits for memory or is loaded, see `GET /models` for "
        "its progress; running; done: the audio is at /jobs/{id}/audio; failed: see `error`; cancelled: by a client, "
        "or because no client polled the job for 5 minutes."
    )
    version: int = Field(
        description="Counts the changes of the job, from 1. Progress changes it at most five times a second."
    )
    position: int | None = Field(None, description="Queue position, 1 is next; null if the job is not queued.")
    model: str = Field(description="The model that generates the clip.", examples=["demo"])
    seed: int = Field(description="The seed of the request, or a random one.")
    duration: float = Field(description="The duration of the clip in seconds; exact once the job is running.")
    audio_seconds: float = Field(description="Seconds of audio generated so far.")
    error: ErrorDetail | None = Field(None, description="Why the job failed.")
    expires_in: float | None = Field(
        None, description="Seconds until the server deletes the finished job; null while it is not finished."
    )


class JobQuery(Schema):
    """How long to wait for a change of a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wait: float = Field(
        0.0, ge=0, le=30, allow_inf_nan=False, description="Seconds to wait for a change; 0 returns immediately."
    )
    version: int | None = Field(
        None,
        ge=0,
        description="The version that the client already has: the response comes as soon as there is a newer one. "
        "Default: the current version.",
    )


class JobAudioQuery(Schema):
    """Whether to keep a job after its audio is sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: bool = Field(
        False,
        description="Keep the job until it is deleted or expires. Use it if you must be sure to receive all audio: "
        "the server cannot see bytes that the network loses after it has sent them.",
    )
