"""Audio responses: a finished clip, or a clip that is sent while it is generated. Slow clients do not delay others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from musicgen_bento import audio
from musicgen_bento.engine.types import Started
from musicgen_bento.errors import MusicGenError
from musicgen_bento.schemas import StreamFormat
from musicgen_bento.server.audio_buffer import CHUNK_BYTES, PcmBuffer, pcm_bytes
from musicgen_bento.server.error_responses import ErrorResponse, ResponseAborted
from musicgen_bento.server.request_body import wait_for_disconnect
from musicgen_bento.server.request_context import CLIENT_DISCONNECTED, current_request
from musicgen_bento.server.response_buffer import ResponseBufferLimit
from musicgen_bento.server.tasks import Stopped, cancel_and_wait, run_until

STALLED_SECONDS = 300.0  # a client that reads nothing for so long is disconnected
MIN_BYTES_PER_SECOND = 4096  # on average; a slower client would hold memory that other requests need


@dataclass(frozen=True, slots=True)
class EncodedAudio:
    """A finished clip: a whole WAV file, and the response headers that describe it."""

    wav: bytes
    headers: dict[str, str]


def audio_headers(started: Started, seed: int) -> dict[str, str]:
    """Return the response headers that describe a clip."""
    return {
        "X-Seed": str(seed),
        "X-Model": quote(started.model, safe="/:@+ "),
        "X-Audio-Sample-Rate": str(started.sample_rate),
        "X-Audio-Channels": str(started.channels),
        "X-Audio-Duration": f"{started.samples / started.sample_rate:.3f}",
    }


class StreamingAudioResponse(Response):
    """Sends a clip while it is generated.

    An error before the first sample is a normal error response. A later error closes the connection before
    Content-Length bytes are sent, so that no client mistakes a truncated clip for a whole one.

    Args:
        buffer: the clip's PCM.
        seed: seed of the clip.
        format: a WAV file, or the samples alone.
        generation: fills the buffer. It starts with the response, and is cancelled when the response ends.
        limit: counts the buffer from the end of the generation to the end of the response.
    """

    def __init__(
        self,
        buffer: PcmBuffer,
        seed: int,
        format: StreamFormat,
        generation: Coroutine[Any, Any, None] | None = None,
        limit: ResponseBufferLimit | None = None,
    ) -> None:
        super().__init__()
        self._buffer = buffer
        self._seed = seed
        self._format = format
        self._generation = generation
        self._limit = limit
        self._response_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the clip, unless the client disconnects."""
        with ExitStack() as stack:
            tasks = [asyncio.ensure_future(self._generate(self._generation, stack))] if self._generation else []
            try:
                await run_until(self._send(scope, receive, send), wait_for_disconnect(receive))
            except Stopped:
                if not self._response_started:  # BentoML waits for a response
                    await Response()(scope, receive, send)
                current_request().status = CLIENT_DISCONNECTED
            finally:
                await cancel_and_wait(*tasks)

    async def _generate(self, generation: Coroutine[Any, Any, None], stack: ExitStack) -> None:
        """Run the generation, then count its audio until the end of the response, which closes `stack`."""
        await generation
        if self._limit:
            stack.enter_context(self._limit.hold(self._buffer.size))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            started = await self._buffer.wait_started()
        except MusicGenError as error:
            await ErrorResponse(error)(scope, receive, send)
            return
        current_request().model = started.model
        is_wav = self._format == "wav"
        header = audio.wav_header(started.channels, started.sample_rate, started.samples) if is_wav else b""
        length = len(header) + pcm_bytes(started)
        self._response_started = True
        await send({"type": "http.response.start", "status": 200, "headers": self._headers_of(started, length)})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        writer = _ClientWriter(send, length)
        if header:
            await writer.write(header)
        async for chunk in self._buffer.iter_chunks():
            await writer.write(chunk)
        await writer.write(b"", last=True)

    def _headers_of(self, started: Started, length: int) -> list[tuple[bytes, bytes]]:
        pcm_type = f"audio/pcm;rate={started.sample_rate};channels={started.channels}"
        headers = {
            **audio_headers(started, self._seed),
            "Content-Type": "audio/wav" if self._format == "wav" else pcm_type,
            "Content-Length": str(length),
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",  # nginx would collect the response before it sends any of it
        }
        return Response(headers=headers).raw_headers


class AudioResponse(Response):
    """Sends a finished clip, and counts it in the response buffer until the response ends.

    Args:
        encoded: the clip.
        limit: counts it.
    """

    media_type = "audio/wav"

    def __init__(self, encoded: EncodedAudio, limit: ResponseBufferLimit) -> None:
        super().__init__(headers={**encoded.headers, "Content-Length": str(len(encoded.wav))})
        self._encoded = encoded
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the clip, unless the client disconnects."""
        with self._limit.hold(len(self._encoded.wav)):
            await send_wav(self._encoded.wav, self.raw_headers, receive, send)


async def send_wav(wav: bytes, headers: list[tuple[bytes, bytes]], receive: Receive, send: Send) -> bool:
    """Send a finished clip, and return whether the client was connected to its end.

    Raises:
        ResponseAborted: the client reads too slowly.
    """
    disconnected = asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        writer = _ClientWriter(send, len(wav))
        for start in range(0, len(wav), CHUNK_BYTES):
            await writer.write(wav[start : start + CHUNK_BYTES])
            if disconnected.done():
                return False
        await writer.write(b"", last=True)
        return not disconnected.done()
    finally:
        await cancel_and_wait(disconnected)


class _ClientWriter:
    """Writes a response body to a client, within a time limit.

    Args:
        send: ASGI's send function.
        size: size of the body in bytes.
    """

    def __init__(self, send: Send, size: int) -> None:
        self._send = send
        self._remaining_seconds = STALLED_SECONDS + size / MIN_BYTES_PER_SECOND

    async def write(self, chunk: bytes, *, last: bool = False) -> None:
        """Write a chunk as soon as the client has read enough of the previous ones.

        Raises:
            ResponseAborted: the client reads nothing, or too slowly.
        """
        clock = asyncio.get_running_loop().time
        started_at = clock()
        try:
            async with asyncio.timeout(min(STALLED_SECONDS, self._remaining_seconds)):
                await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})
        except TimeoutError:
            current_request().status = CLIENT_DISCONNECTED
            raise ResponseAborted from None
        self._remaining_seconds -= clock() - started_at
