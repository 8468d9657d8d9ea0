"""The settings, which MUSICGEN_* environment variables set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from musicgen_bento.errors import InvalidRequest

PrecisionName = Literal["auto", "float32", "bfloat16", "float16", "int8"]


class Settings(BaseSettings):
    """All settings of an operator. The variable `MUSICGEN_MAX_QUEUE=8` sets `max_queue`.

    Raises:
        pydantic.ValidationError: the value of a variable is out of range.
    """

    model_config = SettingsConfigDict(env_prefix="MUSICGEN_", frozen=True)

    default_model: str = Field("demo", description="model for requests that do not name one")
    preload: Annotated[tuple[str, ...], NoDecode] = Field(
        ("demo",), description="models to load at start, comma-separated; /readyz waits for them"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    precision: PrecisionName = Field(
        "auto",
        description="auto (float16 on a GPU, int8 on a CPU), float32, bfloat16, float16 (GPU, x86) or int8 (CPU)",
    )
    memory_budget: ByteSize | None = Field(
        None,
        gt=0,
        description="bytes that models and requests may use together, also as `6GB`; "
        "default: 80% of the free memory at start",
    )
    max_slots: int | None = Field(
        None, ge=1, le=256, description="requests that one model runs at once; default: 16 on a CPU, 64 on a GPU"
    )
    max_queue: int = Field(64, ge=0, le=10_000, description="waiting requests per model; the next one gets 429")
    max_duration: float = Field(300.0, ge=0.1, le=3600, description="maximum duration of a clip, in seconds")
    deterministic: bool = Field(
        False,
        description="make output independent of batch composition when torch (not the C kernel) runs the model; slower",
    )
    allow_any_model: bool = Field(False, description="let HTTP clients name models outside the catalogue")
    allow_anonymous: bool = Field(
        False, description="let `musicgen-bento serve` listen on addresses that other machines can reach"
    )
    job_megabytes: int = Field(
        256, ge=1, le=1_000_000, description="job storage: memory for the audio of jobs; a job beyond it gets 429"
    )
    response_buffer_megabytes: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="response buffer: audio that clients have not read yet; while it is full, new requests get 429",
    )
    job_minutes: float = Field(10.0, gt=0, le=1440, description="minutes that the server keeps a finished job")
    drain_seconds: float = Field(60.0, ge=0, description="seconds that running work may take to finish after SIGTERM")

    @field_validator("preload", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment. An override that is not None takes precedence.

    Raises:
        InvalidRequest: a value is out of range. The message names the variable.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        name = f"MUSICGEN_{str(fault['loc'][0]).upper()}" if fault["loc"] else "MUSICGEN_*"
        raise InvalidRequest(f"{name}: {fault['msg']}.") from None
