"""Continuous batching: clips of any length join and leave one model's batch at every step."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from musicgen_bento.checkpoint.loading import Checkpoint
from musicgen_bento.codec.decoder import CodecDecoder
from musicgen_bento.codec.native_ops import create_ops
from musicgen_bento.engine.audio_decoder import AudioDecodeScheduler, AudioDecodeState
from musicgen_bento.engine.scheduler import Scheduler
from musicgen_bento.engine.text_conditioner import TextConditioner
from musicgen_bento.engine.token_sequence import TokenSequence
from musicgen_bento.engine.types import (
    AudioChunk,
    Event,
    EventCallback,
    Failed,
    Finished,
    GenerationParams,
    Queued,
    Started,
)
from musicgen_bento.errors import GenerationFailed, MusicGenError, QueueFull
from musicgen_bento.lm.decoder import KVCacheRequest, SequenceState
from musicgen_bento.lm.factory import create_decoder
from musicgen_bento.lm.sampling import SamplingParams
from musicgen_bento.log import exception_location, exception_summary
from musicgen_bento.native import bindings

_log = logging.getLogger("bentoml.musicgen")  # below BentoML's, which has a handler

# Rows of a prefill that the others wait for in a step. On a CPU the time grows with every row.
PREFILL_ROWS = {"cpu": 32, "cuda": 512}


@dataclass(slots=True, eq=False)
class RequestState:
    """A clip on its way, from its place in the queue to its last sample."""

    request_id: str
    params: GenerationParams
    on_event: EventCallback
    prompt_ids: Tensor
    tokens: TokenSequence
    kv_request: KVCacheRequest
    queue_position: int = -1
    sequence: SequenceState | None = None
    audio: AudioDecodeState | None = None
    prefill_chunks: list[Tensor] = field(default_factory=list)  # inputs to read before the next step, in pieces
    aborted: bool = False

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance needs a second row."""
        return self.params.cfg_coef != 1.0


class Engine:
    """Makes clips with one model. `step` is called by the device's thread alone, everything else by any.

    Args:
        checkpoint: the model.
        max_slots: clips made together.
        max_queue: clips that may wait.
        deterministic: where torch makes them, step each clip alone, so that its bits depend on no company: its products
            round differently in batches of different sizes.
        threads: how many cores a step may use; by default what torch uses in the calling thread.
        wake: called when there is work.
        room: asked before the running clips take more memory, and told when they take less: whether they may take so
            many bytes together. It may say no only to more than one clip.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_slots: int,
        max_queue: int,
        deterministic: bool,
        threads: int | None = None,
        wake: Callable[[], None] = lambda: None,
        reserve_memory: Callable[[int], bool] = lambda bytes: True,
    ) -> None:
        self.checkpoint = checkpoint
        self._shape = checkpoint.weights.shape
        self._device = checkpoint.weights.device
        self._conditioner = TextConditioner(checkpoint)
        self._threads = self._shape.num_threads(threads)
        team = bindings.create_thread_pool(self._threads) if self._device.type == "cpu" else None
        self._decoder = create_decoder(checkpoint.weights, max_slots, deterministic=deterministic, threads=team)
        layers = create_ops(team)
        codec = CodecDecoder(checkpoint.codec, layers)
        # what the kernel makes is the same in any company
        self._audio_decoder = AudioDecodeScheduler(
            codec, self._device, alone=deterministic and not layers.batch_invariant
        )
        self._alone = deterministic and not checkpoint.weights.precision.native_kernel
        self._prefill_rows = PREFILL_ROWS[self._device.type]
        self._wake = wake
        self._room = reserve_memory
        self._lock = threading.Lock()
        self._scheduler = Scheduler(max_slots, max_queue)
        self._requests: dict[str, RequestState] = {}  # waiting and running
        self._running: list[RequestState] = []  # touched by the device's thread alone
        self._rows: tuple[list[RequestState], SamplingParams, Tensor] | None = None
        self._step_seconds = 0.0
        self._shutdown_error: MusicGenError | None = None

    # ---- any thread

    def add_request(self, request_id: str, params: GenerationParams, on_event: EventCallback) -> None:
        """See `Engine.submit`."""
        ids = self._conditioner.tokenize(params.prompt)
        frames = max(1, int(params.duration * self.checkpoint.frame_rate + 1e-6))
        clip = TokenSequence(self._shape.pattern, frames, self._shape.window, self._shape.codebook_size)
        positions = self._shape.pattern.last_position(clip.window_frames)
        rows = 1 if params.cfg_coef == 1.0 else 2
        slot = RequestState(request_id, params, on_event, ids, clip, KVCacheRequest(rows, positions, ids.shape[1]))
        with self._lock:
            if self._scheduler.full:
                raise QueueFull(
                    "The queue is full.",
                    hint="Ask again later, or start a second server.",
                    retry_after=self._estimate_wait(),
                )
            self._requests[request_id] = slot
            self._scheduler.submit(request_id, clip.steps_left)
            self._notify_queue_positions()
        self._wake()

    def abort(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        with self._lock:
            slot = self._requests.pop(request_id, None)
            if slot is not None:
                slot.aborted = True
                if request_id not in self._scheduler.running:  # a running one keeps its slot till the step ends
                    self._scheduler.remove(request_id)
                self._notify_queue_positions()
        self._wake()

    @property
    def num_requests(self) -> tuple[int, int]:
        """Clips running and clips waiting."""
        with self._lock:
            # a cancelled one has its slot till the step ends, and is not counted
            running = len(self._scheduler.running & self._requests.keys())
            return running, len(self._requests) - running

    def fail_all(self, error: MusicGenError) -> None:
        """End everything that waits or runs, at the next step: a clip's events come from the device's thread alone."""
        self._shutdown_error = error
        self._wake()

    # ---- the device's thread

    def step(self) -> bool:
        """Make 20 ms of every running clip. Whether there was anything to do. Does not raise."""
        try:
            return self._step()
        except Exception as error:
            for slot in list(self._running):
                self._fail(slot, "The model failed", error)
            return True

    def _step(self) -> bool:
        if self._device.type == "cpu" and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        if self._shutdown_error is not None:
            self._end_all(self._shutdown_error)
        self._retire()
        self._admit()
        if not self._running:
            return False
        began = time.perf_counter()
        ready = [slot for slot in self._running if not slot.prefill_chunks]
        self._prefill()
        for company in [[slot] for slot in ready] if self._alone else [ready] if ready else []:
            self._decode(company)
        self._emit(ready)
        self._scheduler.tick()
        self._step_seconds += 0.1 * (time.perf_counter() - began - self._step_seconds)
        return True

    def _end_all(self, error: MusicGenError) -> None:
        self._shutdown_error = None
        with self._lock:
            slots = list(self._requests.values())
        for slot in slots:
            self._finish(slot, Failed(error))

    def _retire(self) -> None:
        """Free the slots of clips that are done, failed or cancelled."""
        with self._lock:
            for slot in self._running:
                if self._requests.get(slot.request_id) is not slot:
                    self._scheduler.remove(slot.request_id)
                    self._close(slot)
            kept = [slot for slot in self._running if slot.sequence is not None]
            fewer = len(kept) != len(self._running)
            if fewer:
                self._running, self._rows = kept, None
        if fewer:
            self._room(self._kv_cache_bytes())

    def _admit(self) -> None:
        """Give the free slots to those whose turn it is, as far as there is memory for them.

        One in a step, where others wait for it: a prompt may take T5 longer than they have sound ahead. The first of
        all is never refused: nobody is there whose end would make room.
        """
        while (slot := self._next()) is not None and (self._room(self._kv_cache_bytes(slot)) or not self._running):
            with self._lock:
                gone = slot.aborted
                if not gone:
                    self._scheduler.admit(slot.request_id)
                    self._notify_queue_positions()
            try:
                if not gone:
                    self._open(slot)
            except Exception as error:
                with self._lock:
                    self._scheduler.remove(slot.request_id)
                self._close(slot)
                self._fail(slot, "The clip could not be begun", error)
            self._room(self._kv_cache_bytes())  # less than while it joined
            if len(self._running) > 1:
                break

    def _next(self) -> RequestState | None:
        with self._lock:
            ticket = self._scheduler.next()
            return None if ticket is None else self._requests[ticket]

    def _kv_cache_bytes(self, joining: RequestState | None = None) -> int:
        """Bytes that the running clips take; with one more, while it joins them."""
        return self._decoder.kv_cache_bytes(
            [slot.kv_request for slot in [*self._running, *([joining] if joining else [])]]
        )

    def _open(self, slot: RequestState) -> None:
        clip = slot.tokens
        text = self._conditioner.encode(slot.prompt_ids)
        positions = self._shape.pattern.last_position(clip.window_frames)
        slot.sequence = self._decoder.open(text, slot.guided, positions)
        slot.audio = self._audio_decoder.open(clip)
        slot.prefill_chunks = self._split_prefill(slot.sequence, self._decoder.prompt_prefix(slot.sequence))
        self._running.append(slot)
        checkpoint = self.checkpoint
        length = clip.frames * checkpoint.hop_length
        self._notify(slot, Started(checkpoint.name, checkpoint.sample_rate, checkpoint.channels, length))

    def _close(self, slot: RequestState) -> None:
        """Give back what a clip held while it ran."""
        sequence, slot.sequence, slot.audio = slot.sequence, None, None
        slot.prefill_chunks.clear()
        if sequence is not None:  # last: what fails here does not fail again
            self._decoder.close(sequence)

    def _split_prefill(self, sequence: SequenceState, inputs: Tensor) -> list[Tensor]:
        """Inputs [rows, T, dim] cut so that no piece keeps the others waiting for long."""
        return list(torch.split(inputs, self._prefill_rows // sequence.rows, dim=1)) if inputs.shape[1] else []

    def _prefill(self) -> None:
        """Read one piece of what one clip knows already; the next step takes the next."""
        slot = next((slot for slot in self._running if slot.prefill_chunks), None)
        if slot is not None and slot.sequence is not None:
            self._decoder.prefill(slot.sequence, slot.prefill_chunks.pop(0))
            self._running.remove(slot)  # to the end, so that several prefills take turns
            self._running.append(slot)

    def _decode(self, slots: list[RequestState]) -> None:
        """One position of each clip."""
        rows, cfg_coef = self._sampling_params(slots)
        sequences = [slot.sequence for slot in slots if slot.sequence is not None]
        read = [slot.tokens.next_input() for slot in slots]
        sampled = self._decoder.step_and_sample(
            sequences, read, cfg_coef, rows, [slot.tokens.noise_step for slot in slots]
        )
        for slot, column in zip(slots, sampled, strict=True):
            if min(column) < 0:
                error = GenerationFailed("The model gave NaN.", hint="Try another seed, or MUSICGEN_PRECISION=float32.")
                self._finish(slot, Failed(error))
                continue
            slot.tokens.append(column)
            if slot.tokens.window_done and not slot.tokens.done:
                self._next_window(slot)

    def _next_window(self, slot: RequestState) -> None:
        """Start over with the last part of the window as what is known."""
        assert slot.sequence is not None
        slot.sequence.cache.reset()
        memory = self._decoder.embed(torch.from_numpy(slot.tokens.next_window()).to(self._device))
        memory = memory.expand(slot.sequence.rows, -1, -1)
        slot.prefill_chunks = self._split_prefill(
            slot.sequence, torch.cat([self._decoder.prompt_prefix(slot.sequence), memory], dim=1)
        )

    def _sampling_params(self, slots: list[RequestState]) -> tuple[SamplingParams, Tensor]:
        """The clips' parameters as tensors, made anew only when the company changes."""
        if self._rows is None or self._rows[0] != slots:
            params = [slot.params for slot in slots]
            rows = SamplingParams.from_lists(
                [p.seed for p in params],
                [p.temperature for p in params],
                [p.top_k for p in params],
                [p.top_p for p in params],
                self._device,
            )
            self._rows = (slots, rows, torch.tensor([p.cfg_coef for p in params], device=self._device))
        return self._rows[1:]

    def _emit(self, slots: list[RequestState]) -> None:
        """Give what can be heard by now."""
        heard = {slot.audio: slot for slot in slots if slot.audio is not None}
        for sound, what in self._audio_decoder.decode_ready(list(heard)):
            if isinstance(what, AudioChunk):
                self._notify(heard[sound], what)
            else:
                self._fail(heard[sound], "The sound could not be decoded", what)
        for slot in slots:
            if slot.tokens.done:
                self._finish(slot, Finished())

    # ---- telling

    def _notify(self, slot: RequestState, event: Event) -> None:
        if not slot.aborted:
            slot.on_event(event)

    def _finish(self, slot: RequestState, event: Finished | Failed) -> None:
        """The last event of a clip; its slot is freed before the next step."""
        if slot.audio is not None:
            slot.audio.finished = True
        with self._lock:
            if self._requests.pop(slot.request_id, None) is None:
                return
            if slot.request_id not in self._scheduler.running:
                self._scheduler.remove(slot.request_id)
        self._notify(slot, event)

    def _fail(self, slot: RequestState, what: str, error: Exception) -> None:
        """End a clip for a reason nobody foresaw."""
        _log.error("%s: %s", what, exception_location(error))
        self._finish(slot, Failed(GenerationFailed(f"{what} ({exception_summary(error)}).", hint="Try again.")))

    def _notify_queue_positions(self) -> None:
        """Tell those who wait, where that has changed."""
        for place, ticket in enumerate(self._scheduler.queue()):
            slot = self._requests[ticket]
            if slot.queue_position != place:
                slot.queue_position = place
                self._notify(slot, Queued(place))

    def _estimate_wait(self) -> float:
        """Seconds until the next slot is free, at the speed of late."""
        running = [self._requests[ticket] for ticket in self._scheduler.running if ticket in self._requests]
        left = min((slot.tokens.steps_left for slot in running), default=0)
        return max(1.0, left * self._step_seconds)
