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
from musicgen_bento.codec.native_ops import operations
from musicgen_bento.engine.audio_decoder import ClipSound, Sounds
from musicgen_bento.engine.scheduler import Scheduler
from musicgen_bento.engine.text_conditioner import TextConditioner
from musicgen_bento.engine.token_sequence import Clip
from musicgen_bento.engine.types import Chunk, Event, Failed, Finished, GenerationParams, Listener, Started, Waiting
from musicgen_bento.errors import GenerationFailed, MusicGenError, QueueFull
from musicgen_bento.lm.decoder import Need, Sequence
from musicgen_bento.lm.factory import decoder_of
from musicgen_bento.lm.sampling import SamplingRows
from musicgen_bento.log import briefly, where
from musicgen_bento.native import bindings

_log = logging.getLogger("bentoml.musicgen")  # below BentoML's, which has a handler

# Rows of a prefill that the others wait for in a step. On a CPU the time grows with every row.
PREFILL_ROWS = {"cpu": 32, "cuda": 512}


@dataclass(slots=True, eq=False)
class Slot:
    """A clip on its way, from its place in the queue to its last sample."""

    ticket: str
    params: GenerationParams
    listener: Listener
    ids: Tensor
    clip: Clip
    need: Need
    place: int = -1
    sequence: Sequence | None = None
    sound: ClipSound | None = None
    known: list[Tensor] = field(default_factory=list)  # inputs to read before the next step, in pieces
    cancelled: bool = False

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance needs a second row."""
        return self.params.cfg_coef != 1.0


class ModelEngine:
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
        room: Callable[[int], bool] = lambda bytes: True,
    ) -> None:
        self.checkpoint = checkpoint
        self._shape = checkpoint.weights.shape
        self._device = checkpoint.weights.device
        self._conditioner = TextConditioner(checkpoint)
        self._threads = self._shape.cores(threads)
        team = bindings.team(self._threads) if self._device.type == "cpu" else None
        self._decoder = decoder_of(checkpoint.weights, max_slots, deterministic=deterministic, team=team)
        layers = operations(team)
        codec = CodecDecoder(checkpoint.codec, layers)
        # what the kernel makes is the same in any company
        self._sounds = Sounds(codec, self._device, alone=deterministic and not layers.exact)
        self._alone = deterministic and not checkpoint.weights.precision.packed
        self._prefill_rows = PREFILL_ROWS[self._device.type]
        self._wake = wake
        self._room = room
        self._lock = threading.Lock()
        self._scheduler = Scheduler(max_slots, max_queue)
        self._slots: dict[str, Slot] = {}  # waiting and running
        self._running: list[Slot] = []  # touched by the device's thread alone
        self._rows: tuple[list[Slot], SamplingRows, Tensor] | None = None
        self._step_seconds = 0.0
        self._doom: MusicGenError | None = None

    # ---- any thread

    def submit(self, ticket: str, params: GenerationParams, listener: Listener) -> None:
        """See `Engine.submit`."""
        ids = self._conditioner.tokenize(params.prompt)
        frames = max(1, int(params.duration * self.checkpoint.frame_rate + 1e-6))
        clip = Clip(self._shape.pattern, frames, self._shape.window, self._shape.card)
        positions = self._shape.pattern.last_position(clip.window_frames)
        rows = 1 if params.cfg_coef == 1.0 else 2
        slot = Slot(ticket, params, listener, ids, clip, Need(rows, positions, ids.shape[1]))
        with self._lock:
            if self._scheduler.full:
                raise QueueFull(
                    "The queue is full.", hint="Ask again later, or start a second server.", retry_after=self._wait()
                )
            self._slots[ticket] = slot
            self._scheduler.submit(ticket, clip.steps)
            self._tell_places()
        self._wake()

    def cancel(self, ticket: str) -> None:
        """See `Engine.cancel`."""
        with self._lock:
            slot = self._slots.pop(ticket, None)
            if slot is not None:
                slot.cancelled = True
                if ticket not in self._scheduler.running:  # a running one keeps its slot till the step ends
                    self._scheduler.remove(ticket)
                self._tell_places()
        self._wake()

    @property
    def load(self) -> tuple[int, int]:
        """Clips running and clips waiting."""
        with self._lock:
            # a cancelled one has its slot till the step ends, and is not counted
            running = len(self._scheduler.running & self._slots.keys())
            return running, len(self._slots) - running

    def fail_all(self, error: MusicGenError) -> None:
        """End everything that waits or runs, at the next step: a clip's events come from the device's thread alone."""
        self._doom = error
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
        if self._doom is not None:
            self._end_all(self._doom)
        self._retire()
        self._admit()
        if not self._running:
            return False
        began = time.perf_counter()
        ready = [slot for slot in self._running if not slot.known]
        self._prefill()
        for company in [[slot] for slot in ready] if self._alone else [ready] if ready else []:
            self._decode(company)
        self._emit(ready)
        self._scheduler.tick()
        self._step_seconds += 0.1 * (time.perf_counter() - began - self._step_seconds)
        return True

    def _end_all(self, error: MusicGenError) -> None:
        self._doom = None
        with self._lock:
            slots = list(self._slots.values())
        for slot in slots:
            self._end(slot, Failed(error))

    def _retire(self) -> None:
        """Free the slots of clips that are done, failed or cancelled."""
        with self._lock:
            for slot in self._running:
                if self._slots.get(slot.ticket) is not slot:
                    self._scheduler.remove(slot.ticket)
                    self._close(slot)
            kept = [slot for slot in self._running if slot.sequence is not None]
            fewer = len(kept) != len(self._running)
            if fewer:
                self._running, self._rows = kept, None
        if fewer:
            self._room(self._remembered())

    def _admit(self) -> None:
        """Give the free slots to those whose turn it is, as far as there is memory for them.

        One in a step, where others wait for it: a prompt may take T5 longer than they have sound ahead. The first of
        all is never refused: nobody is there whose end would make room.
        """
        while (slot := self._next()) is not None and (self._room(self._remembered(slot)) or not self._running):
            with self._lock:
                gone = slot.cancelled
                if not gone:
                    self._scheduler.admit(slot.ticket)
                    self._tell_places()
            try:
                if not gone:
                    self._open(slot)
            except Exception as error:
                with self._lock:
                    self._scheduler.remove(slot.ticket)
                self._close(slot)
                self._fail(slot, "The clip could not be begun", error)
            self._room(self._remembered())  # less than while it joined
            if len(self._running) > 1:
                break

    def _next(self) -> Slot | None:
        with self._lock:
            ticket = self._scheduler.next()
            return None if ticket is None else self._slots[ticket]

    def _remembered(self, joining: Slot | None = None) -> int:
        """Bytes that the running clips take; with one more, while it joins them."""
        return self._decoder.bytes([slot.need for slot in [*self._running, *([joining] if joining else [])]])

    def _open(self, slot: Slot) -> None:
        clip = slot.clip
        text = self._conditioner.encode(slot.ids)
        positions = self._shape.pattern.last_position(clip.window_frames)
        slot.sequence = self._decoder.open(text, slot.guided, positions)
        slot.sound = self._sounds.open(clip)
        slot.known = self._pieces(slot.sequence, self._decoder.prefix(slot.sequence))
        self._running.append(slot)
        checkpoint = self.checkpoint
        length = clip.frames * checkpoint.hop
        self._tell(slot, Started(checkpoint.name, checkpoint.sample_rate, checkpoint.channels, length))

    def _close(self, slot: Slot) -> None:
        """Give back what a clip held while it ran."""
        sequence, slot.sequence, slot.sound = slot.sequence, None, None
        slot.known.clear()
        if sequence is not None:  # last: what fails here does not fail again
            self._decoder.close(sequence)

    def _pieces(self, sequence: Sequence, inputs: Tensor) -> list[Tensor]:
        """Inputs [rows, T, dim] cut so that no piece keeps the others waiting for long."""
        return list(torch.split(inputs, self._prefill_rows // sequence.rows, dim=1)) if inputs.shape[1] else []

    def _prefill(self) -> None:
        """Read one piece of what one clip knows already; the next step takes the next."""
        slot = next((slot for slot in self._running if slot.known), None)
        if slot is not None and slot.sequence is not None:
            self._decoder.prefill(slot.sequence, slot.known.pop(0))
            self._running.remove(slot)  # to the end, so that several prefills take turns
            self._running.append(slot)

    def _decode(self, slots: list[Slot]) -> None:
        """One position of each clip."""
        rows, cfg_coef = self._parameters(slots)
        sequences = [slot.sequence for slot in slots if slot.sequence is not None]
        read = [slot.clip.read() for slot in slots]
        sampled = self._decoder.draw(sequences, read, cfg_coef, rows, [slot.clip.key for slot in slots])
        for slot, column in zip(slots, sampled, strict=True):
            if min(column) < 0:
                error = GenerationFailed("The model gave NaN.", hint="Try another seed, or MUSICGEN_PRECISION=float32.")
                self._end(slot, Failed(error))
                continue
            slot.clip.accept(column)
            if slot.clip.window_done and not slot.clip.done:
                self._next_window(slot)

    def _next_window(self, slot: Slot) -> None:
        """Start over with the last part of the window as what is known."""
        assert slot.sequence is not None
        slot.sequence.cache.reset()
        memory = self._decoder.embed(torch.from_numpy(slot.clip.next_window()).to(self._device))
        memory = memory.expand(slot.sequence.rows, -1, -1)
        slot.known = self._pieces(slot.sequence, torch.cat([self._decoder.prefix(slot.sequence), memory], dim=1))

    def _parameters(self, slots: list[Slot]) -> tuple[SamplingRows, Tensor]:
        """The clips' parameters as tensors, made anew only when the company changes."""
        if self._rows is None or self._rows[0] != slots:
            params = [slot.params for slot in slots]
            rows = SamplingRows.of(
                [p.seed for p in params],
                [p.temperature for p in params],
                [p.top_k for p in params],
                [p.top_p for p in params],
                self._device,
            )
            self._rows = (slots, rows, torch.tensor([p.cfg_coef for p in params], device=self._device))
        return self._rows[1:]

    def _emit(self, slots: list[Slot]) -> None:
        """Give what can be heard by now."""
        heard = {slot.sound: slot for slot in slots if slot.sound is not None}
        for sound, what in self._sounds.heard(list(heard)):
            if isinstance(what, Chunk):
                self._tell(heard[sound], what)
            else:
                self._fail(heard[sound], "The sound could not be decoded", what)
        for slot in slots:
            if slot.clip.done:
                self._end(slot, Finished())

    # ---- telling

    def _tell(self, slot: Slot, event: Event) -> None:
        if not slot.cancelled:
            slot.listener(event)

    def _end(self, slot: Slot, event: Finished | Failed) -> None:
        """The last event of a clip; its slot is freed before the next step."""
        if slot.sound is not None:
            slot.sound.over = True
        with self._lock:
            if self._slots.pop(slot.ticket, None) is None:
                return
            if slot.ticket not in self._scheduler.running:
                self._scheduler.remove(slot.ticket)
        self._tell(slot, event)

    def _fail(self, slot: Slot, what: str, error: Exception) -> None:
        """End a clip for a reason nobody foresaw."""
        _log.error("%s: %s", what, where(error))
        self._end(slot, Failed(GenerationFailed(f"{what} ({briefly(error)}).", hint="Try again.")))

    def _tell_places(self) -> None:
        """Tell those who wait, where that has changed."""
        for place, ticket in enumerate(self._scheduler.queue()):
            slot = self._slots[ticket]
            if slot.place != place:
                slot.place = place
                self._tell(slot, Waiting(place))

    def _wait(self) -> float:
        """Seconds until the next slot is free, at the speed of late."""
        running = [self._slots[ticket] for ticket in self._scheduler.running if ticket in self._slots]
        left = min((slot.clip.steps for slot in running), default=0)
        return max(1.0, left * self._step_seconds)
