"""What clients send and get. Needs pydantic alone, so the client SDK shares it."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_SEED = 2**32 - 1

Normalize = Literal["loudness", "peak", "rms", "clip", "none"]
StreamNormalize = Literal["clip", "none"]
StreamFormat = Literal["wav", "pcm"]

WAV_HEADER = 44  # bytes before the samples, in every WAV of this service

# No control characters but tab and the ends of lines: a null byte in a prompt is a client's mistake.
Prompt = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=2000,
        pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$",
    ),
]


class Schema(BaseModel):
    """Made ready when it is first used: the command line and the client need few of them."""

    model_config = ConfigDict(defer_build=True)


class GenerationRequest(Schema):
    """One clip to make from text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: Prompt = Field(
        description="What the music should sound like, in any language; at most 512 T5 tokens.",
        examples=["lofi hip hop with a warm electric piano and a lazy beat"],
    )
    model: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="A model of `GET /models`, by id or alias. The server's default where it is left out.",
        examples=["demo", "facebook/musicgen-small"],
    )
    duration: float = Field(
        30.0,
        ge=0.1,
        allow_inf_nan=False,
        description="Length in seconds, cut to whole frames (20 ms). The server sets the longest (300).",
        examples=[10],
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="The same seed and request give the same clip. One is drawn and returned where it is left out.",
        examples=[42],
    )
    temperature: float = Field(
        1.0, ge=0, le=10, allow_inf_nan=False, description="Higher is wilder; 0 takes the likeliest token every time."
    )
    top_k: int = Field(250, ge=0, le=10_000, description="Sample among the k likeliest tokens; 0 for all of them.")
    top_p: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Sample among the likeliest tokens that together have this probability; 0 is off. Wins over top_k.",
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
        "clip: levels kept, peaks cut at -1 dBFS; none: levels kept, turned down as a whole where they do not fit.",
    )


class StreamRequest(GenerationRequest):
    """One clip to make from text, and to send while it is made."""

    normalize: StreamNormalize = Field(
        "clip",
        description="clip: levels kept, peaks cut at -1 dBFS; none: levels kept, peaks cut at 0 dBFS. "
        "loudness, peak and rms need the whole clip: `POST /generate` and `POST /jobs` have them.",
    )
    format: StreamFormat = Field(
        "wav", description="wav: a WAV file; pcm: its samples alone, 16-bit little-endian, the channels in turn."
    )


class GenerationOptions(TypedDict, total=False):
    """A request's fields beside prompt and model, as Python's callers write them."""

    duration: float
    seed: int | None
    temperature: float
    top_k: int
    top_p: float
    cfg_coef: float
    normalize: Normalize


class LoadProgress(Schema):
    """How far a model is on its way into memory."""

    step: Literal["downloading", "waiting", "loading"] = Field(
        description="downloading its files; waiting, until others leave memory; loading, into memory."
    )
    done_bytes: int | None = Field(None, description="While downloading: what has come.")
    total_bytes: int | None = Field(None, description="While downloading: what there is to come in all.")
    ahead: int | None = Field(None, description="While waiting: how many models come before it.")


class ModelInfo(Schema):
    """One model the service offers."""

    id: str = Field(description="The model's name.", examples=["facebook/musicgen-small"])
    aliases: list[str] = Field(description="Other spellings of it.")
    channels: int | None = Field(None, description="1 mono, 2 stereo. null, as below: not known of this model.")
    sample_rate: int | None = Field(None, description="In Hz.", examples=[32_000])
    conditioning: list[str] = Field(description="What it listens to: text, melody.")
    window: float | None = Field(None, description="Seconds made in one go; longer clips are continued past it.")
    parameters: int | None = Field(None, description="Of its language model.")
    license: str | None = Field(None, description="Of its weights.")
    download_bytes: int | None = Field(None, description="About what has to be downloaded for it.")
    memory_bytes: int | None = Field(
        None,
        description="What it takes in memory with one clip: counted once its files are here, about so much before.",
    )
    state: Literal["downloadable", "cached", "loading", "loaded"] = Field(description="Where it is now.")
    progress: LoadProgress | None = Field(None, description="While it is loading.")
    default: bool = Field(description="Whether a request that names no model gets this one.")
    note: str = Field(description="What to know before choosing it.")


class ModelList(Schema):
    """All models the service offers."""

    models: list[ModelInfo]


class ErrorDetail(Schema):
    """What went wrong and what to do about it."""

    code: str = Field(description="Stable, for programs.", examples=["invalid"])
    message: str = Field(description="For people.")
    hint: str = Field(description="The way out.")
    field: str | None = Field(description="The request field at fault, if there is one.")
    retry_after: float | None = Field(None, description="Seconds after which trying again may help, where it may.")


class ErrorBody(Schema):
    """The body of every answer that is not a success."""

    error: ErrorDetail


JobState = Literal["queued", "loading", "running", "done", "failed", "cancelled"]


class Job(Schema):
    """A clip that is made without a connection held open for it."""

    id: str = Field(description="Unguessable: whoever has it can follow, fetch and cancel the job.")
    state: JobState = Field(
        description="queued; loading: its model is downloaded, waits for memory or is read, and GET /models says how "
        "far it is; running; done: the music is at /jobs/{id}/audio; failed: see `error`; cancelled: by a client, or "
        "because nobody asked after it for 5 minutes."
    )
    version: int = Field(description="Counts the changes, from 1; told of progress five times a second at most.")
    position: int | None = Field(None, description="Its place in the queue, 1 is next; null where it is in none.")
    model: str = Field(description="The model that makes it.", examples=["demo"])
    seed: int = Field(description="Asked for or drawn.")
    duration: float = Field(description="Its whole length in seconds; once it runs, cut to whole frames.")
    audio_seconds: float = Field(description="How much of it is made.")
    error: ErrorDetail | None = Field(None, description="Why it failed.")
    expires_in: float | None = Field(
        None, description="Seconds until a job that is over is forgotten; null while it is not over."
    )


class JobQuery(Schema):
    """How long to wait for news of a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wait: float = Field(
        0.0, ge=0, le=30, allow_inf_nan=False, description="Seconds to wait for a change; 0 answers at once."
    )
    version: int | None = Field(
        None,
        ge=0,
        description="The version that is known already: the answer comes as soon as there is a newer one. "
        "Left out: the one at the time of asking.",
    )


class JobAudioQuery(Schema):
    """What becomes of a job whose music has been sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: bool = Field(
        False,
        description="Keep the job until it is deleted or too old. For a client that wants to be sure: what a network "
        "loses behind the last byte, the server does not see.",
    )
