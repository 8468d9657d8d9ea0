"""The client of the HTTP API, for Python programs. Needs requests and pydantic alone; docs/sdk.md shows its use."""

from musicgen_bento.client.async_client import AsyncMusicGenClient, AsyncStream
from musicgen_bento.client.generation import Generation
from musicgen_bento.client.stream import Stream
from musicgen_bento.client.sync_client import MusicGenClient
from musicgen_bento.client.transport import Cancelled, InvalidResponse, StreamTruncated, TimedOut, Unreachable
from musicgen_bento.clip import Clip, Progress, ProgressCallback
from musicgen_bento.errors import MusicGenError
from musicgen_bento.schemas import ModelInfo

__all__ = [
    "AsyncMusicGenClient",
    "AsyncStream",
    "Cancelled",
    "Clip",
    "Generation",
    "InvalidResponse",
    "ModelInfo",
    "MusicGenClient",
    "MusicGenError",
    "Progress",
    "ProgressCallback",
    "Stream",
    "StreamTruncated",
    "TimedOut",
    "Unreachable",
]
