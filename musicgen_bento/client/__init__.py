"""The Python client of the HTTP API. It needs only requests and pydantic; docs/sdk.md shows its use.

sync_client.py   MusicGenClient: generate, stream and list models, blocking
async_client.py  AsyncMusicGenClient: the same for asyncio, each call in a thread
generation.py    Generation: one clip as a job on the server; result, stream, cancel
stream.py        Stream: the bytes of a clip while it is generated
transport.py     HTTP calls with timeouts and retries
deadline.py      the time limit of several calls together
errors.py        the client's own errors, and the exceptions for failed calls
"""

from musicgen_bento.client.async_client import AsyncMusicGenClient, AsyncProgressCallback, AsyncStream
from musicgen_bento.client.errors import Cancelled, InvalidResponse, StreamTruncated, TimedOut, Unreachable
from musicgen_bento.client.generation import Generation
from musicgen_bento.client.stream import Stream
from musicgen_bento.client.sync_client import MusicGenClient
from musicgen_bento.clip import Clip, Progress, ProgressCallback
from musicgen_bento.errors import MusicGenError
from musicgen_bento.schemas import ModelInfo

__all__ = [
    "AsyncMusicGenClient",
    "AsyncProgressCallback",
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
