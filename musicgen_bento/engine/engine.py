"""Continuous batching: requests of any length join and leave the batch of one model between two steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from musicgen_bento.checkpoint.loading import Checkpoint
from musicgen_bento.codec.decoder import CodecDecoder
from musicgen_bento.codec.native_ops import create_ops
from musicgen_bento.engine.audio_decoder import AudioDecodeScheduler
from musicgen_bento.engine.request import RequestState
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
from musicgen_bento.log import exception_location, exception_summary, logger
from musicgen_bento.native import bindings

# Most rows of a prefill in one step, because the other requests wait for it. On a CPU the time grows with every row.
PREFILL_ROWS = {"cpu": 32, "cuda": 512}


def _grant(num_bytes: int) -> bool:
    """Grant any amount of memory."""
    return True


class Engine:
    """Runs the requests of one loaded model. Only the device thread calls `step`; any thread calls the rest.

    Args:
        checkpoint: the model.
        max_slots: maximum number of running requests.
        max_queue: maximum number of waiting requests.
        deterministic: if torch runs the model, step each request alone, which makes output batch-invariant. Products
            round differently in batches of different sizes. The native kernel is batch-invariant in any case.
        threads: number of cores that a step uses; by default what torch uses in the calling thread.
        wake: called when there is work for `step`.
        reserve_memory: called with the total bytes of all running requests before it grows, and after it shrinks.
            Returns whether that much may be used. May refuse only a second or later request.
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
        reserve_memory: Callable[[int], bool] = _grant,
    ) -> None:
        self.checkpoint = checkpoint
        self._shape = checkpoint.weights.shape
        self._device = checkpoint.weights.device
        self._conditioner = TextConditioner(checkpoint)
        self._threads = self._shape.num_threads(threads)
        thread_pool = bindings.create_thread_pool(self._threads) if self._device.type == "cpu" else None
        self._decoder = create_decoder(checkpoint.weights, max_slots, deterministic=deterministic, threads=thread_pool)
        codec_ops = create_ops(thread_pool)
        codec = CodecDecoder(checkpoint.codec, codec_ops)
        self._audio_decoder = AudioDecodeScheduler(
            codec, self._device, batched=codec_ops.batch_invariant or not deterministic
        )
        self._batched = checkpoint.weights.precision.native_kernel or not deterministic
        self._prefill_rows = PREFILL_ROWS[self._device.type]
        self._wake = wake
        self._reserve_memory = reserve_memory
        self._lock = threading.Lock()
        self._scheduler = Scheduler(max_slots, max_queue)
        self._requests: dict[str, RequestState] = {}  # waiting and running, by id
        self._running: list[RequestState] = []  # only the device thread uses it
        self._sampling_cache: tuple[list[RequestState], SamplingParams, Tensor] | None = None
        self._step_seconds = 0.0  # moving average
        self._shutdown_error: MusicGenError | None = None

    # ---- any thread

    def add_request(self, request_id: str, params: GenerationParams, on_event: EventCallback) -> None:
        """Append a request to the queue.

        Raises:
            QueueFull: the queue is full; `retry_after` estimates when a slot is free.
            InvalidRequest: the prompt is too long for T5.
            ValueError: a request with this id waits, runs or still has its slot.
        """
        prompt_ids = self._conditioner.tokenize(params.prompt)
        frames = max(1, int(params.duration * self.checkpoint.frame_rate + 1e-6))
        tokens = TokenSequence(self._shape.pattern, frames, self._shape.window, self._shape.codebook_size)
        positions = self._shape.pattern.last_position(tokens.window_frames)
        rows = 1 if params.cfg_coef == 1.0 else 2
        kv_request = KVCacheRequest(rows, positions, prompt_ids.shape[1])
        request = RequestState(request_id, params, on_event, prompt_ids, tokens, kv_request)
        with self._lock:
            if request_id in self._requests or request_id in self._scheduler.running:
                raise ValueError(f"request id {request_id} is in use")
            if self._scheduler.full:
                raise QueueFull(
                    "The queue is full.",
                    hint="Retry later, or start a second server.",
                    retry_after=self._estimate_wait(),
                )
            self._requests[request_id] = request
            self._scheduler.submit(request_id, tokens.steps_left)
            self._notify_queue_positions()
        self._wake()

    def abort(self, request_id: str) -> None:
        """End a request without a further event; its slot is free within a step. Unknown ids are ignored."""
        with self._lock:
            request = self._requests.pop(request_id, None)
            if request is not None:
                request.aborted = True
                if request_id not in self._scheduler.running:  # a running request keeps its slot until the step ends
                    self._scheduler.remove(request_id)
                self._notify_queue_positions()
        self._wake()

    @property
    def num_requests(self) -> tuple[int, int]:
        """Numbers of running and of waiting requests."""
        with self._lock:
            # An aborted request keeps its slot until the step ends, but does not count.
            running = len(self._scheduler.running & self._requests.keys())
            return running, len(self._requests) - running

    @property
    def idle(self) -> bool:
        """Whether the engine has no request, and no slot is in use."""
        return not self._requests and not self._running and len(self._scheduler) == 0

    def request_state(self, request_id: str) -> RequestState | None:
        """The state of a waiting or running request, for inspection; None if the id is unknown."""
        return self._requests.get(request_id)

    def fail_all(self, error: MusicGenError) -> None:
        """Fail all requests at the next step, because events come from the device thread alone."""
        self._shutdown_error = error
        self._wake()

    # ---- the device thread

    def step(self) -> bool:
        """Generate the next position, 20 ms of audio, of every running request. Does not raise.

        Returns:
            Whether there was anything to do.
        """
        try:
            return self._step()
        except Exception as error:
            for request in list(self._running):
                self._fail(request, "The model failed", error)
            return True

    def _step(self) -> bool:
        if self._device.type == "cpu" and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        if self._shutdown_error is not None:
            self._shut_down(self._shutdown_error)
        self._retire()
        self._admit()
        if not self._running:
            return False
        start_time = time.perf_counter()
        ready = [request for request in self._running if not request.prefill_chunks]
        self._prefill()
        self._decode(ready)
        self._emit(ready)
        self._scheduler.tick()
        self._step_seconds += 0.1 * (time.perf_counter() - start_time - self._step_seconds)
        return True

    def _shut_down(self, error: MusicGenError) -> None:
        self._shutdown_error = None
        with self._lock:
            requests = list(self._requests.values())
        for request in requests:
            self._finish(request, Failed(error))

    # ---- retire, admit

    def _retire(self) -> None:
        """Free the slots of requests that are finished, failed or aborted."""
        with self._lock:
            for request in self._running:
                if self._requests.get(request.request_id) is not request:
                    self._scheduler.remove(request.request_id)
                    self._release(request)
            running = [request for request in self._running if request.sequence_state is not None]
            has_retired = len(running) != len(self._running)
            if has_retired:
                self._running, self._sampling_cache = running, None
        if has_retired:
            self._reserve_memory(self._kv_cache_bytes())

    def _admit(self) -> None:
        """Give free slots to the next requests, as far as memory allows.

        One request per step joins running requests, because T5 may take longer for several prompts than the running
        requests have audio buffered. The first request is never refused: no running request would free memory for it.
        """
        while (request := self._next_waiting()) is not None:
            if not self._reserve_memory(self._kv_cache_bytes(request)) and self._running:
                break
            with self._lock:
                aborted = request.aborted
                if not aborted:
                    self._scheduler.admit(request.request_id)
                    self._notify_queue_positions()
            try:
                if not aborted:
                    self._start(request)
            except Exception as error:
                with self._lock:
                    self._scheduler.remove(request.request_id)
                self._release(request)
                self._fail(request, "The request could not be started", error)
            self._reserve_memory(self._kv_cache_bytes())  # a joining request needs more than a running one
            if len(self._running) > 1:
                break

    def _next_waiting(self) -> RequestState | None:
        with self._lock:
            request_id = self._scheduler.next()
            return None if request_id is None else self._requests[request_id]

    def _kv_cache_bytes(self, joining: RequestState | None = None) -> int:
        """Bytes of the KV caches of the running requests, and of one more while it joins them."""
        requests = self._running if joining is None else [*self._running, joining]
        return self._decoder.kv_cache_bytes([request.kv_request for request in requests])

    def _start(self, request: RequestState) -> None:
        """Encode the prompt, create the states of a request that has a slot, and report Started."""
        tokens = request.token_sequence
        text = self._conditioner.encode(request.prompt_ids)
        positions = self._shape.pattern.last_position(tokens.window_frames)
        request.sequence_state = self._decoder.open_sequence(text, request.guided, positions)
        request.audio_state = self._audio_decoder.create_state(tokens)
        prefix = self._decoder.prompt_prefix(request.sequence_state)
        request.prefill_chunks = self._split_prefill(request.sequence_state, prefix)
        self._running.append(request)
        checkpoint = self.checkpoint
        samples = tokens.frames * checkpoint.hop_length
        self._notify(request, Started(checkpoint.name, checkpoint.sample_rate, checkpoint.channels, samples))

    def _release(self, request: RequestState) -> None:
        """Free what a running request holds."""
        sequence_state, request.sequence_state, request.audio_state = request.sequence_state, None, None
        request.prefill_chunks.clear()
        if sequence_state is not None:  # last, so that an error here does not occur again at the next step
            self._decoder.close_sequence(sequence_state)

    # ---- prefill, decode

    def _split_prefill(self, sequence_state: SequenceState, inputs: Tensor) -> list[Tensor]:
        """Split inputs [rows, T, dim] along T, so that the other requests do not wait long for one chunk."""
        if not inputs.shape[1]:
            return []
        return list(torch.split(inputs, self._prefill_rows // sequence_state.rows, dim=1))

    def _prefill(self) -> None:
        """Read one prefill chunk of one request; the next step reads the next chunk."""
        request = next((request for request in self._running if request.prefill_chunks), None)
        if request is not None and request.sequence_state is not None:
            self._decoder.prefill(request.sequence_state, request.prefill_chunks.pop(0))
            self._running.remove(request)  # and append it again, so that several prefills take turns
            self._running.append(request)

    def _decode(self, requests: list[RequestState]) -> None:
        """Generate one position of each request, in one batch if that is allowed."""
        if not requests:
            return
        batches = [requests] if self._batched else [[request] for request in requests]
        for batch in batches:
            self._decode_batch(batch)

    def _decode_batch(self, batch: list[RequestState]) -> None:
        sampling, cfg_coef = self._sampling_params(batch)
        sampled = self._decoder.step_and_sample(
            [request.sequence_state for request in batch if request.sequence_state is not None],
            [request.token_sequence.next_input() for request in batch],
            cfg_coef,
            sampling,
            [request.token_sequence.noise_step for request in batch],
        )
        for request, column in zip(batch, sampled, strict=True):
            if min(column) < 0:
                message, hint = "The model produced NaN.", "Try another seed, or MUSICGEN_PRECISION=float32."
                self._finish(request, Failed(GenerationFailed(message, hint=hint)))
                continue
            request.token_sequence.append(column)
            if request.token_sequence.window_done and not request.token_sequence.done:
                self._next_window(request)

    def _next_window(self, request: RequestState) -> None:
        """Restart the sequence with the prompt and the last frames of the window as context."""
        sequence_state = request.sequence_state
        assert sequence_state is not None
        sequence_state.kv_cache.reset()
        context_tokens = torch.from_numpy(request.token_sequence.next_window()).to(self._device)
        context = self._decoder.embed(context_tokens).expand(sequence_state.rows, -1, -1)
        inputs = torch.cat([self._decoder.prompt_prefix(sequence_state), context], dim=1)
        request.prefill_chunks = self._split_prefill(sequence_state, inputs)

    def _sampling_params(self, batch: list[RequestState]) -> tuple[SamplingParams, Tensor]:
        """The sampling parameters and guidance of a batch as tensors, rebuilt only when the batch changes."""
        if self._sampling_cache is None or self._sampling_cache[0] != batch:
            params = [request.params for request in batch]
            sampling = SamplingParams.from_lists(
                [p.seed for p in params],
                [p.temperature for p in params],
                [p.top_k for p in params],
                [p.top_p for p in params],
                self._device,
            )
            self._sampling_cache = (batch, sampling, torch.tensor([p.cfg_coef for p in params], device=self._device))
        return self._sampling_cache[1:]

    # ---- emit

    def _emit(self, requests: list[RequestState]) -> None:
        """Decode complete frames to audio, and report the chunks and the finished requests."""
        by_state = {request.audio_state: request for request in requests if request.audio_state is not None}
        for audio_state, result in self._audio_decoder.decode_ready(list(by_state)):
            if isinstance(result, AudioChunk):
                self._notify(by_state[audio_state], result)
            else:
                self._fail(by_state[audio_state], "The audio could not be decoded", result)
        for request in requests:
            if request.token_sequence.done:
                self._finish(request, Finished())

    def _notify(self, request: RequestState, event: Event) -> None:
        if not request.aborted:
            request.on_event(event)

    def _finish(self, request: RequestState, event: Finished | Failed) -> None:
        """Report the last event of a request; its slot is freed before the next step."""
        if request.audio_state is not None:
            request.audio_state.finished = True
        with self._lock:
            if self._requests.pop(request.request_id, None) is None:
                return
            if request.request_id not in self._scheduler.running:
                self._scheduler.remove(request.request_id)
        self._notify(request, event)

    def _fail(self, request: RequestState, message: str, error: Exception) -> None:
        """Fail a request because of an unexpected error."""
        logger.error("%s: %s", message, exception_location(error))
        failure = GenerationFailed(f"{message} ({exception_summary(error)}).", hint="Try again.")
        self._finish(request, Failed(failure))

    def _notify_queue_positions(self) -> None:
        """Report the queue positions that have changed."""
        for queue_position, request_id in enumerate(self._scheduler.queue()):
            request = self._requests[request_id]
            if request.queue_position != queue_position:
                request.queue_position = queue_position
                self._notify(request, Queued(queue_position))

    def _estimate_wait(self) -> float:
        """Seconds until a slot is free, at the present speed; at least 1."""
        running_ids = self._scheduler.running & self._requests.keys()
        steps = min((self._requests[request_id].token_sequence.steps_left for request_id in running_ids), default=0)
        return max(1.0, steps * self._step_seconds)
