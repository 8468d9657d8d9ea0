"""Answers as fast as their readers take them: a clip while it is made, and a finished one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from musicgen_bento import audio
from musicgen_bento.engine.types import Started
from musicgen_bento.errors import MusicGenError
from musicgen_bento.schemas import StreamFormat
from musicgen_bento.server import studio
from musicgen_bento.server.audio_buffer import PIECE, PcmBuffer, size
from musicgen_bento.server.request_context import CLIENT_LEFT, ResponseAborted, exchange, refuse, until_gone
from musicgen_bento.server.shutdown import cancel
from musicgen_bento.server.studio import EncodedAudio
from musicgen_bento.server.unread import ResponseBufferLimit

STALLED_SECONDS = 300.0  # without taking a byte: nobody is there
SLOWEST = 4096  # bytes a second, in all: who takes fewer holds memory that others wait for


class Streamed(Response):
    """A recording on its way to one reader.

    An error before the sound has begun is an answer like any other. After that the connection breaks before the length
    that the headers have told is reached: no client can take a part for the whole.

    Args:
        recording: what is sent.
        seed: of its clip.
        format: a WAV, or its samples alone.
        work: makes the recording. It is begun when the answer is, and cancelled when the reader has all of it, or
            leaves.
    """

    def __init__(
        self, recording: PcmBuffer, seed: int, format: StreamFormat, work: Coroutine[Any, Any, None] | None = None
    ) -> None:
        super().__init__()
        self._recording = recording
        self._seed = seed
        self._format = format
        self._work = work
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, unless the reader leaves."""
        tasks = [asyncio.ensure_future(self._work)] if self._work else []
        sending = asyncio.ensure_future(self._send(scope, receive, send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                if not self._begun:  # BentoML waits for a word
                    await Response()(scope, receive, send)
                exchange().status = CLIENT_LEFT
        finally:
            await cancel(sending, gone, *tasks)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            started = await self._recording.begun()
        except MusicGenError as error:
            await refuse(error)(scope, receive, send)
            return
        exchange().model = started.model
        header = audio.wav_header(started.channels, started.sample_rate, started.samples)
        head = header if self._format == "wav" else b""
        headers = self._describe(started, len(head) + size(started))
        self._begun = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        reader = _Reader(send, len(head) + size(started))
        if head:
            await reader.take(head)
        async for piece in self._recording.pieces():
            await reader.take(piece)
        await reader.take(b"", last=True)

    def _describe(self, started: Started, length: int) -> list[tuple[bytes, bytes]]:
        kind = f"audio/pcm;rate={started.sample_rate};channels={started.channels}"
        told = {
            **studio.headers(started, self._seed),
            "Content-Type": "audio/wav" if self._format == "wav" else kind,
            "Content-Length": str(length),
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",  # a proxy is to pass on what it has
        }
        return Response(headers=told).raw_headers


class Whole(Response):
    """A finished clip on its way to one reader, counted until it is there.

    Args:
        music: what is sent.
        unread: where it counts.
    """

    media_type = "audio/wav"

    def __init__(self, music: EncodedAudio, unread: ResponseBufferLimit) -> None:
        super().__init__(headers={**music.headers, "Content-Length": str(len(music.wav))})
        self._music = music
        self._unread = unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, unless the reader leaves."""
        with self._unread.holding(len(self._music.wav)):
            await send_whole(self._music.wav, self.raw_headers, receive, send)


async def send_whole(wav: bytes, headers: list[tuple[bytes, bytes]], receive: Receive, send: Send) -> bool:
    """Send a finished clip.

    Returns:
        Whether its reader was there to the end.

    Raises:
        Broken: nobody takes it.
    """
    gone = asyncio.ensure_future(until_gone(receive))
    try:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        reader = _Reader(send, len(wav))
        for start in range(0, len(wav), PIECE):
            await reader.take(wav[start : start + PIECE])
            if gone.done():
                return False
        await reader.take(b"", last=True)
        return not gone.done()
    finally:
        await cancel(gone)


class _Reader:
    """Who takes an answer, and how long they may keep it waiting.

    Args:
        send: to them.
        size: bytes of the answer.
    """

    def __init__(self, send: Send, size: int) -> None:
        self._send = send
        self._left = STALLED_SECONDS + size / SLOWEST

    async def take(self, piece: bytes, *, last: bool = False) -> None:
        """Send a piece, once those before it are on their way.

        Raises:
            Broken: nobody takes it, or they take it too slowly.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(min(STALLED_SECONDS, self._left)):
                await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
        except TimeoutError:
            exchange().status = CLIENT_LEFT
            raise ResponseAborted from None
        self._left -= clock() - began
