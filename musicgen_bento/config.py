"""Settings, read from MUSICGEN_* environment variables."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from musicgen_bento.errors import InvalidRequest

PrecisionName = Literal["auto", "float32", "bfloat16", "float16", "int8"]


class Settings(BaseSettings):
    """Everything an operator can set. `MUSICGEN_MAX_QUEUE=8` sets `max_queue`.

    Raises:
        pydantic.ValidationError: a variable holds a value outside its range.
    """

    model_config = SettingsConfigDict(env_prefix="MUSICGEN_", frozen=True)

    default_model: str = Field("demo", description="the model of a request that names none")
    preload: Annotated[tuple[str, ...], NoDecode] = Field(
        ("demo",), description="models loaded at start, comma-separated; /readyz waits for them"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    precision: PrecisionName = Field(
        "auto",
        description="auto (float16 on a GPU, int8 on a CPU), float32, bfloat16, float16 (GPU, x86) or int8 (CPU)",
    )
    memory_budget: ByteSize | None = Field(
        None, gt=0, description="bytes that models and clips may take, as `6GB` too; 80% of what is free at start"
    )
    max_slots: int | None = Field(None, ge=1, le=256, description="clips made together; 16 on a CPU, 64 on a GPU")
    max_queue: int = Field(
        64, ge=0, le=10_000, description="requests that may wait, for each model; one more is answered 429"
    )
    max_duration: float = Field(300.0, ge=0.1, le=3600, description="longest clip, in seconds")
    deterministic: bool = Field(
        False, description="same bytes for a seed in any company, where torch makes the clips too; slower"
    )
    allow_any_model: bool = Field(False, description="let HTTP clients name models outside the catalogue")
    allow_anonymous: bool = Field(False, description="let the launchers listen beyond this machine")
    job_megabytes: int = Field(
        256, ge=1, le=1_000_000, description="memory for the finished clips of jobs; one more is answered 429"
    )
    response_buffer_megabytes: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="above it, in finished clips that are still being read, no new one is begun: 429",
    )
    job_minutes: float = Field(10.0, gt=0, le=1440, description="how long a finished job is kept for its client")
    drain_seconds: float = Field(60.0, ge=0, description="how long running work may take to finish after SIGTERM")

    @field_validator("preload", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value


def load_settings(**given: Any) -> Settings:
    """The settings, from the environment; what is given and not None wins.

    Raises:
        InvalidRequest: one is out of its range. It names the variable.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        name = f"MUSICGEN_{str(fault['loc'][0]).upper()}" if fault["loc"] else "MUSICGEN_*"
        raise InvalidRequest(f"{name}: {fault['msg']}.") from None
