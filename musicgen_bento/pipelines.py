"""Generation in this process: a loaded model as a callable. The command line uses it too."""

from __future__ import annotations

import os
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, Unpack

from musicgen_bento import audio, clip, config, validation
from musicgen_bento.clip import Clip, Progress, ProgressCallback, ignore_progress
from musicgen_bento.engine.audio_assembler import AudioAssembler
from musicgen_bento.engine.types import (
    AudioChunk,
    Event,
    EventCallback,
    Failed,
    Finished,
    GenerationParams,
    LoadProgress,
    Started,
)
from musicgen_bento.model_pool.pool import ModelPool
from musicgen_bento.schemas import GenerationOptions, GenerationRequest, StreamRequest

LOAD_POLL_SECONDS = 0.02
INTERRUPT_POLL_SECONDS = 0.2  # a wait for an event ends this often, so that Ctrl-C is handled
MAX_QUEUE = 10_000  # requests; a call queues all its prompts

LoadProgressCallback: TypeAlias = Callable[[LoadProgress], object]
"""A function that receives the progress of a model that is loaded. Its result is ignored."""


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedClip:
    """One clip of a call, as samples.

    Attributes:
        index: index of the clip's prompt in the call.
        samples: [C, T], float32 within ±1, normalized as requested.
        sample_rate: Hz.
        seed: the same prompt and options with this seed give the same clip.
        model: id of the model that generated the clip.
    """

    index: int
    samples: audio.Waveform
    sample_rate: int
    seed: int
    model: str

    def clip(self) -> Clip:
        """Return the clip with its samples encoded as a WAV file."""
        channels, length = self.samples.shape
        wav = audio.encode_wav(self.samples, self.sample_rate)
        return Clip(wav, self.seed, self.model, self.sample_rate, channels, length / self.sample_rate)


@dataclass(frozen=True, slots=True, eq=False)
class PipelineOutput:
    """The clips of one call of a pipeline, in the order of the prompts.

    Attributes:
        audios: one waveform [C, T] per prompt: float32 within ±1, normalized as requested.
        sample_rate: Hz.
        seeds: one seed per prompt.
        model: id of the model that generated the clips.
    """

    audios: list[audio.Waveform]
    sample_rate: int
    seeds: list[int]
    model: str

    @property
    def seed(self) -> int:
        """The seed of the first clip."""
        return self.seeds[0]

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write one WAV file per prompt. The files of several prompts are numbered: `lofi-1.wav`, `lofi-2.wav`.

        Returns:
            The paths of the files.

        Raises:
            InvalidRequest: a path cannot be written to.
            MusicGenError: writing failed.
        """
        targets = [clip.check_output_path(numbered) for numbered in clip.numbered_paths(Path(path), len(self.audios))]
        for target, samples in zip(targets, self.audios, strict=True):
            clip.write_atomically(target, audio.encode_wav(samples, self.sample_rate))
        return targets


class Pipeline:
    """A loaded model that generates clips. Threads may share it: their clips are generated in one batch.

    The constructor downloads missing model files and loads the model. The `MUSICGEN_*` variables apply as for the
    server. A `with` block or `close` frees the memory.

    Args:
        model: an id or alias of the catalogue, another MusicGen repository of the Hugging Face Hub, or a folder with
            its files; None means MUSICGEN_DEFAULT_MODEL, else demo.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, float32, bfloat16, float16 or int8, if the device supports it.
        on_load_progress: receives the load progress repeatedly until the model is loaded.

    Raises:
        MusicGenError: the model could not be loaded; `code` and `hint` give the reason and a remedy.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        device: str | None = None,
        precision: str | None = None,
        on_load_progress: LoadProgressCallback | None = None,
    ) -> None:
        self._settings = config.load_settings(default_model=model, device=device, precision=precision)
        self._model = self._settings.default_model
        pool_settings = self._settings.model_copy(update={"preload": (self._model,), "max_queue": MAX_QUEUE})
        self._pool = ModelPool(pool_settings, allow_any_model=True, allow_folders=True)
        try:
            while not self._pool.ready():
                if on_load_progress:
                    self._report_load_progress(on_load_progress)
                time.sleep(LOAD_POLL_SECONDS)
        except BaseException:
            self.close()
            raise

    def _report_load_progress(self, on_load_progress: LoadProgressCallback) -> None:
        for status in self._pool.statuses():
            if status.progress:
                on_load_progress(status.progress)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Abort running requests and free the memory."""
        self._pool.close()

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        progress: ProgressCallback | None = None,
        **options: Unpack[GenerationOptions],
    ) -> PipelineOutput:
        """Generate one clip per prompt, all in one batch.

        Args:
            prompt: what the music should sound like; several prompts give several clips.
            progress: receives the progress of all clips together.
            options: duration, seed and the other fields of a request. The seed is that of the first clip; the seeds of
                the others count up from it.

        Raises:
            InvalidRequest: a prompt or an option is invalid; `field` names it.
            MusicGenError: a clip failed; the others are aborted.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        requests = validation.build_requests(prompts, max_duration=self._settings.max_duration, **options)
        clips = sorted(self.generate(requests, progress), key=lambda generated: generated.index)
        return PipelineOutput(
            audios=[generated.samples for generated in clips],
            sample_rate=clips[0].sample_rate,
            seeds=[generated.seed for generated in clips],
            model=clips[0].model,
        )

    def generate(
        self, requests: Sequence[GenerationRequest], progress: ProgressCallback | None = None
    ) -> Iterator[GeneratedClip]:
        """Generate the clips of requests in one batch and yield each when it is finished.

        Closing the iterator early aborts the remaining requests.

        Args:
            requests: validated, with seeds; their model is ignored.
            progress: receives the progress of all clips together.

        Raises:
            InvalidRequest, MusicGenError: as a call of the pipeline.
        """
        call = _PipelineCall(requests, progress or ignore_progress)
        request_ids = []
        try:
            for index in range(len(requests)):
                request_ids.append(self._add_request(call, index))  # noqa: PERF401  an error keeps those before it
            for index, started, samples in call.finished_clips():
                normalized = audio.normalize(samples, started.sample_rate, requests[index].normalize)
                yield GeneratedClip(index, normalized, started.sample_rate, call.params[index].seed, started.model)
        finally:
            for request_id in request_ids:
                self._pool.abort(request_id)

    def stream(self, request: StreamRequest, progress: ProgressCallback | None = None) -> Iterator[bytes]:
        """Generate one clip and yield its bytes while it is generated: a WAV, or the samples alone with format pcm.

        Closing the iterator early aborts the request.

        Args:
            request: validated, with a seed; its model is ignored.
            progress: receives the progress of the clip.

        Raises:
            InvalidRequest, MusicGenError: as a call of the pipeline, at any point.
        """
        call = _PipelineCall([request], progress or ignore_progress)
        request_id = self._add_request(call, 0)
        try:
            for event in call.events():
                match event:
                    case Started(_, rate, channels, samples) if request.format == "wav":
                        yield audio.wav_header(channels, rate, samples)
                    case AudioChunk(samples):
                        yield audio.encode_pcm(audio.clip_peaks(samples, request.normalize))
        finally:
            self._pool.abort(request_id)

    def _add_request(self, call: _PipelineCall, index: int) -> str:
        """Add a request of a call to the pool and return its id."""
        request_id = uuid.uuid4().hex
        self._pool.add_request(request_id, self._model, call.params[index], call.event_callback(index))
        return request_id


class _PipelineCall:
    """The requests of one call of the pipeline, and the queue of their events.

    Attributes:
        params: the parameters of each request.
    """

    def __init__(self, requests: Sequence[GenerationRequest], progress: ProgressCallback) -> None:
        self.params = [
            GenerationParams(**request.model_dump(exclude={"model", "normalize", "format"})) for request in requests
        ]
        self._progress = progress
        self._events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()

    def event_callback(self, index: int) -> EventCallback:
        """Return the event callback of one request; engine threads call it."""
        return lambda event: self._events.put((index, event))

    def finished_clips(self) -> Iterator[tuple[int, Started, audio.Waveform]]:
        """Yield the index, format and samples, not normalized, of each request when it is finished.

        Raises:
            MusicGenError: a request failed.
        """
        assemblers = {index: AudioAssembler() for index in range(len(self.params))}  # of unfinished requests
        audio_seconds = 0.0
        duration = sum(params.duration for params in self.params)
        self._progress(Progress("queued", None, 0.0, duration))
        while assemblers:
            index, event = self._next_event()
            assembler = assemblers[index]
            assembler.on_event(event)
            match event:
                case AudioChunk(samples) if assembler.started:
                    audio_seconds += samples.shape[1] / assembler.started.sample_rate
                    self._progress(Progress("running", None, min(audio_seconds, duration), duration))
                case Finished() if assembler.started and assembler.samples is not None:
                    del assemblers[index]
                    if not assemblers:
                        self._progress(Progress("done", None, duration, duration))
                    yield index, assembler.started, assembler.samples
                case Failed(error):
                    raise error

    def events(self) -> Iterator[Event]:
        """Yield the events of the only request, including the last.

        Raises:
            MusicGenError: the request failed.
        """
        sample_rate, duration = 0, self.params[0].duration
        self._progress(Progress("queued", None, 0.0, duration))
        while True:
            _, event = self._next_event()
            yield event
            match event:
                case Started():
                    sample_rate, duration = event.sample_rate, event.samples / event.sample_rate
                case AudioChunk(samples, start):
                    audio_seconds = (start + samples.shape[1]) / sample_rate
                    self._progress(Progress("running", None, audio_seconds, duration))
                case Finished():
                    self._progress(Progress("done", None, duration, duration))
                    return
                case Failed(error):
                    raise error

    def _next_event(self) -> tuple[int, Event]:
        while True:
            try:
                return self._events.get(timeout=INTERRUPT_POLL_SECONDS)
            except queue.Empty:
                continue
