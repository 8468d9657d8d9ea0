"""The client for asyncio."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Unpack

from musicgen_bento.client.generation import LEAVE_SECONDS, Generation
from musicgen_bento.client.stream import Stream
from musicgen_bento.client.sync_client import DEFAULT_URL, RETRIES, MusicGenClient
from musicgen_bento.clip import Clip, Progress, ProgressCallback
from musicgen_bento.schemas import GenerationOptions, ModelInfo, StreamFormat

if TYPE_CHECKING:
    import asyncio

AsyncProgressCallback: TypeAlias = Callable[[Progress], Awaitable[object] | object]
"""A function or a coroutine function that receives each change of the progress, on the event loop."""

Result = TypeVar("Result")

TOGETHER = 16  # clips of one AsyncMusicGenClient at work; more wait their turn here, not in the server's queue


class AsyncMusicGenClient:
    """The same client for asyncio: each call is made in a thread, and a cancelled task cancels its clip on the server.

    Use it as `async with`, or `close` it. The arguments and errors are MusicGenClient's.
    """

    # Its methods import asyncio, a fifth of this file's time, which the other client does without.

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = None,
        retries: int = RETRIES,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._client = MusicGenClient(url, timeout=timeout, retries=retries, headers=headers)
        self._threads = ThreadPoolExecutor(TOGETHER, thread_name_prefix="musicgen-client")

    async def __aenter__(self) -> AsyncMusicGenClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more calls. Those at work go on."""
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
        """See MusicGenClient.generate. `progress` is called on the event loop, and may be a coroutine function."""
        generation = self._client.start(prompt, model=model, timeout=timeout, **options)
        return await self._told(generation, generation.result, progress)

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
        """See MusicGenClient.stream: `async with await client.stream(...) as stream`, `async for piece in stream`."""
        generation, samples = self._client._streamed(prompt, model, format, timeout, options)
        opened = await self._told(generation, partial(generation.stream, samples=samples), progress)
        return AsyncStream(opened, generation)

    async def _told(
        self,
        generation: Generation,
        run: Callable[[ProgressCallback], Result],
        progress: AsyncProgressCallback | None,
    ) -> Result:
        """What `run` gives, in a thread; whatever ends this cancels the generation."""
        import asyncio

        loop = asyncio.get_running_loop()
        kept = False
        news: asyncio.Queue[Progress | None] = asyncio.Queue()

        def tell(step: Progress) -> None:
            loop.call_soon_threadsafe(news.put_nowait, step)

        work = loop.run_in_executor(self._threads, run, tell)
        work.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while (step := await news.get()) is not None:
                told = progress(step) if progress else None
                if inspect.isawaitable(told):
                    await told
            result = await work
            kept = True
            return result
        finally:
            if not kept and work.done() and isinstance(lost := _result(work), Stream):
                await asyncio.to_thread(lost.close)
            if not work.done():
                await asyncio.shield(_leave(generation, work))
            elif not work.cancelled():
                work.exception()  # seen, also where `progress` has failed: asyncio would report it as lost

    async def list_models(self) -> list[ModelInfo]:
        """See MusicGenClient.list_models."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(self._threads, self._client.list_models)


class AsyncStream:
    """A Stream for asyncio: `async for` gives its bytes. A task that is cancelled while it reads cancels the clip."""

    def __init__(self, stream: Stream, generation: Generation) -> None:
        self.seed, self.model, self.duration = stream.seed, stream.model, stream.duration
        self.sample_rate, self.channels = stream.sample_rate, stream.channels
        self._stream = stream
        self._generation = generation
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="musicgen-stream")  # the client may be closed before

    @property
    def position(self) -> float:
        """Seconds that have been given so far."""
        return self._stream.position

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> bytes:
        import asyncio

        work = asyncio.get_running_loop().run_in_executor(self._thread, next, self._stream, b"")
        try:
            piece = await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.shield(_leave(self._generation, work))
            await self.aclose()
            raise
        if not piece:
            raise StopAsyncIteration
        return piece

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Read no more; see Stream.close."""
        import asyncio

        await asyncio.to_thread(self._stream.close)
        self._thread.shutdown(wait=False)


def _result(work: asyncio.Future[Result]) -> Result | None:
    return None if work.cancelled() or work.exception() else work.result()


async def _leave(generation: Generation, work: asyncio.Future[Result]) -> None:
    """Cancel it, and see its thread end where that is soon."""
    import asyncio

    await asyncio.to_thread(generation.cancel)
    await asyncio.wait((work,), timeout=LEAVE_SECONDS)
    if work.done():
        work.exception()  # seen
