"""A model in this process, used the way the hub's libraries are. The command line makes its clips with it too."""

from __future__ import annotations

import os
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, Unpack

import numpy as np

from musicgen_bento import audio, clip, config, validation
from musicgen_bento.clip import Clip, Progress, ProgressCallback
from musicgen_bento.engine.types import AudioChunk, Event, Failed, Finished, GenerationParams, LoadProgress, Started
from musicgen_bento.model_pool.pool import ModelPool
from musicgen_bento.schemas import GenerationOptions, GenerationRequest, StreamRequest

LOOK_SECONDS = 0.02  # how often it looks whether the model is there
WAKE_SECONDS = 0.2  # how often a wait for the engine looks for Ctrl-C

Arriving: TypeAlias = Callable[[LoadProgress], object]
"""Told how far a model is on its way into memory."""


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedClip:
    """One clip of a call.

    Attributes:
        index: of its prompt.
        samples: [C, T], float32 within ±1, at the level that was asked for.
        sample_rate: Hz.
        seed: with the same prompt and options it makes this clip again.
        model: the id of the model that made it.
    """

    index: int
    samples: audio.Waveform
    sample_rate: int
    seed: int
    model: str

    def clip(self) -> Clip:
        """The same as a WAV."""
        channels, length = self.samples.shape
        wav = audio.encode_wav(self.samples, self.sample_rate)
        return Clip(wav, self.seed, self.model, self.sample_rate, channels, length / self.sample_rate)


@dataclass(frozen=True, slots=True, eq=False)
class PipelineOutput:
    """What a pipeline made.

    Attributes:
        audios: a waveform [C, T] for each prompt: float32 within ±1, at the level that was asked for.
        sample_rate: Hz.
        seeds: one for each prompt.
        model: the id of the model that made them.
    """

    audios: list[audio.Waveform]
    sample_rate: int
    seeds: list[int]
    model: str

    @property
    def seed(self) -> int:
        """The first clip's."""
        return self.seeds[0]

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write a WAV for each prompt: to the path, or, for several, beside it, numbered: `lofi-1.wav`, `lofi-2.wav`.

        Returns:
            The files.

        Raises:
            InvalidRequest: there can be no such file.
            MusicGenError: one cannot be written.
        """
        paths = [clip.check_output_path(each) for each in clip.numbered_paths(Path(path), len(self.audios))]
        for target, samples in zip(paths, self.audios, strict=True):
            clip.write_atomically(target, audio.encode_wav(samples, self.sample_rate))
        return paths


class Pipeline:
    """A loaded model. May be called by several threads at once: their clips are made together.

    Loads when it is made, and downloads the model's files first where this machine has none. MUSICGEN_* variables hold
    as for the server. Use it in a `with` block, or `close` it, where the process goes on without it.

    Args:
        model: an id or alias of the catalogue, another MusicGen of the hub, or a folder with its files; None is
            MUSICGEN_DEFAULT_MODEL, else demo.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, float32, bfloat16, float16 or int8, as far as the device has it.
        arriving: told how far the model is, now and then, until it is loaded.

    Raises:
        MusicGenError: it cannot be loaded; `code` and `hint` say why and what to do.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        device: str | None = None,
        precision: str | None = None,
        arriving: Arriving | None = None,
    ) -> None:
        self._settings = config.load_settings(default_model=model, device=device, precision=precision)
        self._model = self._settings.default_model
        # Nothing is preloaded but this; nobody is to be told that the queue is full.
        mine = {"preload": (self._model,), "max_queue": 10_000}
        self._pool = ModelPool(self._settings.model_copy(update=mine), allow_any_model=True, allow_folders=True)
        try:
            while not self._pool.ready():
                if arriving:
                    self._tell(arriving)
                time.sleep(LOOK_SECONDS)
        except BaseException:
            self.close()
            raise

    def _tell(self, arriving: Arriving) -> None:
        for status in self._pool.statuses():
            if status.progress:
                arriving(status.progress)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what runs, and give the memory back."""
        self._pool.close()

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        progress: ProgressCallback | None = None,
        **options: Unpack[GenerationOptions],
    ) -> PipelineOutput:
        """Make a clip of each prompt, all together.

        Args:
            prompt: what it should sound like; several make several clips.
            progress: told how many of the seconds of audio are made, of all clips together.
            options: duration, seed and the rest of a request's fields. The seed is the first clip's; the others count
                up from it.

        Raises:
            InvalidRequest: a prompt or an option is wrong; `field` says which.
            MusicGenError: a clip could not be made; none is given then.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        asked = validation.build_requests(prompts, max_duration=self._settings.max_duration, **options)
        made = sorted(self.make(asked, progress), key=lambda one: one.index)
        first = made[0]
        return PipelineOutput([one.samples for one in made], first.sample_rate, [one.seed for one in made], first.model)

    def make(
        self, requests: Sequence[GenerationRequest], progress: ProgressCallback | None = None
    ) -> Iterator[GeneratedClip]:
        """The same from requests with their seeds, each clip as soon as it is done. Their model is this one.

        Whoever stops reading cancels the rest.

        Raises:
            InvalidRequest, MusicGenError: as a call does.
        """
        call = _Call(requests, progress or (lambda *_: None))
        request_ids = []
        try:
            for index, params in enumerate(call.params):
                request_id = uuid.uuid4().hex
                self._pool.add_request(request_id, self._model, params, call.listener(index))
                request_ids.append(request_id)
            for index, started, samples in call.done():
                level = audio.normalize(samples, started.sample_rate, requests[index].normalize)
                yield GeneratedClip(index, level, started.sample_rate, call.params[index].seed, started.model)
        finally:
            for request_id in request_ids:
                self._pool.abort(request_id)

    def stream(self, request: StreamRequest, progress: ProgressCallback | None = None) -> Iterator[bytes]:
        """One clip from a request with its seed, while it is made: a WAV, or its samples alone. Its model is this one.

        Whoever stops reading cancels it.

        Raises:
            InvalidRequest, MusicGenError: as a call does, at any point.
        """
        call = _Call([request], progress or (lambda *_: None))
        request_id = uuid.uuid4().hex
        self._pool.add_request(request_id, self._model, call.params[0], call.listener(0))
        try:
            for event in call.events():
                match event:
                    case Started(_, rate, channels, samples) if request.format == "wav":
                        yield audio.wav_header(channels, rate, samples)
                    case AudioChunk(piece):
                        yield audio.pcm(audio.cut(piece, request.normalize))
        finally:
            self._pool.abort(request_id)


class _Call:
    """The clips of one call, and what is heard of them."""

    def __init__(self, requests: Sequence[GenerationRequest], progress: ProgressCallback) -> None:
        self.params = [
            GenerationParams(**request.model_dump(exclude={"model", "normalize", "format"})) for request in requests
        ]
        self._progress = progress
        self._events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()

    def listener(self, index: int) -> Callable[[Event], None]:
        return lambda event: self._events.put((index, event))

    def done(self) -> Iterator[tuple[int, Started, audio.Waveform]]:
        """Each clip as it ends, not normalised.

        Raises:
            MusicGenError: one failed.
        """
        begun: dict[int, tuple[Started, audio.Waveform]] = {}
        left, made, total = len(self.params), 0.0, sum(params.duration for params in self.params)
        self._progress(Progress("queued", None, made, total))
        while left:
            match self._next():
                case index, Started() as started:
                    begun[index] = started, np.zeros((started.channels, started.samples), np.float32)
                case index, AudioChunk(piece, position):
                    started, samples = begun[index]
                    samples[:, position : position + piece.shape[1]] = piece
                    made += piece.shape[1] / started.sample_rate
                    self._progress(Progress("running", None, min(made, total), total))
                case index, Finished():
                    left -= 1
                    if not left:
                        self._progress(Progress("done", None, total, total))
                    yield (index, *begun.pop(index))
                case _, Failed(error):
                    raise error

    def events(self) -> Iterator[Event]:
        """What is heard of the one clip, up to its end.

        Raises:
            MusicGenError: it failed.
        """
        rate, total = 0, self.params[0].duration
        self._progress(Progress("queued", None, 0.0, total))
        while True:
            _, event = self._next()
            yield event
            match event:
                case Started():
                    rate, total = event.sample_rate, event.samples / event.sample_rate
                case AudioChunk(piece, position):
                    self._progress(Progress("running", None, (position + piece.shape[1]) / rate, total))
                case Finished():
                    self._progress(Progress("done", None, total, total))
                    return
                case Failed(error):
                    raise error

    def _next(self) -> tuple[int, Event]:
        while True:
            try:
                return self._events.get(timeout=WAKE_SECONDS)
            except queue.Empty:
                continue
