"""The client of the HTTP API for asyncio."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Unpack

from musicgen_bento.client.generation import CANCEL_TIMEOUT_SECONDS, Generation
from musicgen_bento.client.stream import Stream
from musicgen_bento.client.sync_client import DEFAULT_RETRIES, DEFAULT_URL, MusicGenClient
from musicgen_bento.clip import Clip, Progress, ProgressCallback
from musicgen_bento.schemas import GenerationOptions, ModelInfo, StreamFormat

# The methods import asyncio: it would add a fifth to the import time, and the blocking client does not need it.
if TYPE_CHECKING:
    import asyncio

AsyncProgressCallback: TypeAlias = Callable[[Progress], Awaitable[object] | object]
"""A function or a coroutine function that receives each change of the progress, on the event loop."""

Result = TypeVar("Result")

MAX_CONCURRENT_CALLS = 16  # of one client; further calls wait in the client, not in the server's queue


class AsyncMusicGenClient:
    """A client of one musicgen-bento server for asyncio. Each call runs in a thread; a cancelled task cancels its clip.

    Use it with `async with`, or `close` it. The arguments and errors are those of MusicGenClient.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = None,
        retries: int = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._client = MusicGenClient(url, timeout=timeout, retries=retries, headers=headers)
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT_CALLS, thread_name_prefix="musicgen-client")

    async def __aenter__(self) -> AsyncMusicGenClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Accept no more calls. Running calls continue."""
        self._threads.shutdown(wait=False)

    async def generate(
        self,
        prompt: str,
        *,
        model: str | None = None,
        progress: AsyncProgressCallback | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  the synchronous client's
        **options: Unpack[GenerationOptions],
    ) -> Clip:
        """Generate a clip; see MusicGenClient.generate. `progress` may be a coroutine function."""
        generation = self._client.start(prompt, model=model, timeout=timeout, **options)
        return await self._run_with_progress(generation, generation.result, progress)

    async def stream(
        self,
        prompt: str,
        *,
        model: str | None = None,
        format: StreamFormat = "wav",
        progress: AsyncProgressCallback | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  the synchronous client's
        **options: Unpack[GenerationOptions],
    ) -> AsyncStream:
        """Stream a clip: `async with await client.stream(...) as stream`; see MusicGenClient.stream."""
        generation, skip_header = self._client._prepare_stream(prompt, model, format, timeout, options)
        open_stream = partial(generation.stream, skip_header=skip_header)
        return AsyncStream(await self._run_with_progress(generation, open_stream, progress), generation)

    async def list_models(self) -> list[ModelInfo]:
        """Return the models that the server offers; see MusicGenClient.list_models."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(self._threads, self._client.list_models)

    async def _run_with_progress(
        self,
        generation: Generation,
        run: Callable[[ProgressCallback], Result],
        progress: AsyncProgressCallback | None,
    ) -> Result:
        """Return the result of `run`, called in a thread, and pass its progress on. Any exception cancels the clip."""
        import asyncio

        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[Progress | None] = asyncio.Queue()  # None marks the end

        def report(update: Progress) -> None:
            loop.call_soon_threadsafe(updates.put_nowait, update)

        future = loop.run_in_executor(self._threads, run, report)
        future.add_done_callback(lambda _: updates.put_nowait(None))
        try:
            while (update := await updates.get()) is not None:
                pending = progress(update) if progress else None
                if inspect.isawaitable(pending):
                    await pending
            return await future
        except BaseException:
            await _abandon(generation, future)
            raise


class AsyncStream:
    """A Stream for asyncio: `async for` yields its bytes. A task that is cancelled while it reads cancels the clip.

    Attributes:
        seed, model, sample_rate, channels, duration: as those of Stream.
    """

    def __init__(self, stream: Stream, generation: Generation) -> None:
        self.seed = stream.seed
        self.model = stream.model
        self.sample_rate = stream.sample_rate
        self.channels = stream.channels
        self.duration = stream.duration
        self._stream = stream
        self._generation = generation
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="musicgen-stream")  # works after the client is closed

    @property
    def position(self) -> float:
        """Seconds of audio that have been read."""
        return self._stream.position

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> bytes:
        import asyncio

        future = asyncio.get_running_loop().run_in_executor(self._thread, next, self._stream, b"")
        try:
            chunk = await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.shield(_cancel_and_wait(self._generation, future))
            await self.aclose()
            raise
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop reading; see Stream.close."""
        import asyncio

        await asyncio.to_thread(self._stream.close)
        self._thread.shutdown(wait=False)


async def _abandon(generation: Generation, future: asyncio.Future[Result]) -> None:
    """End a call whose result is not used: cancel it if it is running, and close a stream that it has opened."""
    import asyncio

    if not future.done():
        await asyncio.shield(_cancel_and_wait(generation, future))
    elif isinstance(result := _result(future), Stream):
        await asyncio.to_thread(result.close)


async def _cancel_and_wait(generation: Generation, future: asyncio.Future[Result]) -> None:
    """Cancel the clip, and wait a few seconds for the thread of the call to end."""
    import asyncio

    await asyncio.to_thread(generation.cancel)
    await asyncio.wait((future,), timeout=CANCEL_TIMEOUT_SECONDS)
    if future.done():
        _result(future)


def _result(future: asyncio.Future[Result]) -> Result | None:
    """Return the result of a done future, or None. Reading the exception keeps asyncio from logging it as lost."""
    return None if future.cancelled() or future.exception() else future.result()
