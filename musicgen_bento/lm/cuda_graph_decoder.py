"""The decoder on a GPU: one position of all clips is one CUDA graph, replayed over memory that stays where it is.

At one row a step is a thousand small kernels, and starting them takes longer than running them. A graph starts them
all at once; but its kernels see the same addresses and sizes each time. So clips have seats in one slab, the first
ones always, and what differs from step to step (tokens, positions, parameters) is copied into tensors that stay. There
is a graph for each number of seats in SEATS and each length of the past in steps of LENGTH, captured when it is first
needed.

Everything but the capture runs on any device: on a CPU the tests compare it with `decoder.py`.
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_bento.lm.cuda_graphs import CudaGraphCache
from musicgen_bento.lm.decoder import EagerDecoder, KVCacheRequest, SequenceState, TokenColumns, mark_nonfinite
from musicgen_bento.lm.kv_cache.dense import DenseKVCache
from musicgen_bento.lm.sampling import SamplingParams, sample
from musicgen_bento.lm.seats import seat_of
from musicgen_bento.lm.weights import MAX_PROMPT_TOKENS, CrossAttentionWeights, LayerWeights, LMShape, LMWeights
from musicgen_bento.native.bindings import round_up

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LENGTH = 256  # positions
PROMPT = 64  # T5 tokens
TOP_K = (0, 64, 256)  # then all


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a graph is captured for; anything else may change from step to step."""

    seats: int
    length: int
    largest_top_k: int
    any_top_p: bool
    any_noise: bool


class _Slab:
    """Keys and values of all seats; zeros where nobody sits, since what is masked is still multiplied.

    Attributes:
        own: of self-attention, [layers, 2, seats, 2 rows, H, positions, D].
        cross: of the prompts, [layers, 2, seats, H, L, D].
        heard: tokens of the prompts, [seats].
    """

    def __init__(self, weights: LMWeights, seats: int, prompt: int) -> None:
        shape = weights.shape
        positions, width = self._sizes(shape, prompt)
        zeros = partial(torch.zeros, dtype=weights.precision.kv_dtype, device=weights.device)
        self.own = zeros((shape.layers, 2, seats, 2, shape.heads, positions, shape.head_dim))
        self.cross = zeros((shape.layers, 2, seats, shape.heads, width, shape.head_dim))
        self.heard = torch.ones(seats, dtype=torch.int64, device=weights.device)
        self.seats, self.prompt = seats, prompt

    @classmethod
    def bytes(cls, weights: LMWeights, seats: int, prompt: int) -> int:
        """Of such a slab."""
        shape = weights.shape
        positions, width = cls._sizes(shape, prompt)
        return 2 * shape.layers * seats * shape.dim * (2 * positions + width) * weights.precision.kv_dtype.itemsize

    @staticmethod
    def _sizes(shape: LMShape, prompt: int) -> tuple[int, int]:
        """Positions of a row, and of a prompt beside them."""
        prefix = prompt if shape.text_conditioning == "prepend" else 0
        positions = round_up(prefix + shape.pattern.last_position(shape.window), LENGTH)
        return positions, prompt - prefix

    def clean(self, seat: int) -> None:
        """For a new clip: one that went to infinity before it would spoil it."""
        self.own[:, :, seat].zero_()
        self.cross[:, :, seat].zero_()

    def take(self, seat: int, other: _Slab, there: int, length: int) -> None:
        """What a seat of another slab, or of this one, remembers."""
        self.own[:, :, seat, :, :, :length] = other.own[:, :, there, :, :, :length]
        self.cross[:, :, seat, :, : other.prompt] = other.cross[:, :, there]
        self.heard[seat] = other.heard[there]


class CudaGraphDecoder(EagerDecoder):
    """See `Decoder`. Clips are as many as there are seats for; each takes the whole window's room."""

    def __init__(self, weights: LMWeights) -> None:
        super().__init__(weights)
        self._slab = _Slab(weights, BATCH_SIZES[0], PROMPT)
        self._seated: list[SequenceState] = []
        self._graphs = CudaGraphCache(weights.device) if weights.device.type == "cuda" else None
        self._rows: tuple[SamplingParams, list[int]] | None = None
        self._make_inputs()

    def kv_cache_bytes(self, clips: list[KVCacheRequest]) -> int:
        """See `Decoder.bytes`. Two slabs for as long as what one remembers is copied into a larger one."""
        here = _Slab.bytes(self.weights, self._slab.seats, self._slab.prompt)
        seats, prompt = self._wanted(len(clips), max((need.prompt for need in clips), default=0))
        wanted = _Slab.bytes(self.weights, seats, prompt)
        larger = (seats, prompt) != (self._slab.seats, self._slab.prompt)
        return here + wanted if larger and self._seated else wanted

    def open(self, text: Tensor, guided: bool, positions: int) -> SequenceState:
        """See `Decoder.open`."""
        seat = len(self._seated)
        self._take_slab(*self._wanted(seat + 1, len(text)))
        self._slab.clean(seat)
        self._slab.heard[seat] = len(text)
        rows = 2 if guided else 1
        sequence = SequenceState(rows, self._own_of(seat, rows), text, self._cross_of(seat, len(text)))
        for index, layer in enumerate(self.weights.layers):
            if layer.cross is not None:
                for place, found in zip(sequence.cross[index], self._cross_keys(layer.cross, text), strict=True):
                    place.copy_(found)
        self._seated.append(sequence)  # last: what fails before takes no seat
        self._rows = None
        return sequence

    def close(self, sequence: SequenceState) -> None:
        """See `Decoder.close`. The last seat's clip moves to the free one; who is alone has no use for a large slab."""
        seat, last = seat_of(sequence, self._seated), self._seated.pop()
        if last is not sequence:
            self._slab.clean(seat)
            self._slab.take(seat, self._slab, len(self._seated), last.cache.length)
            self._seated[seat] = last
            self._sit(last, seat)
        self._rows = None
        if not self._seated:
            self._take_slab(BATCH_SIZES[0], PROMPT)

    @torch.inference_mode()
    def step_and_sample(
        self,
        sequences: list[SequenceState],
        tokens: TokenColumns,
        cfg_coef: Tensor,
        rows: SamplingParams,
        keys: list[int],
    ) -> TokenColumns:
        """See `Decoder.draw`."""
        seats = [seat_of(sequence, self._seated) for sequence in sequences]
        if self._rows is None or self._rows[0] is not rows or self._rows[1] != seats:
            self._place(rows, seats, sequences, cfg_coef)
            self._rows = (rows, seats)
        # of all who sit: those that nobody asked for write too, where they will be written anew
        lengths = [sequence.cache.length for sequence in self._seated]
        self._told[: len(lengths), -2] = torch.tensor(lengths)
        self._told[seats, :-2], self._told[seats, -1] = torch.tensor(tokens), torch.tensor(keys)
        self._inputs.copy_(self._told, non_blocking=True)  # of the step before it has been taken: its tokens are here
        longest = max(sequence.cache.length for sequence in sequences) + 1
        kind = _Kind(
            next(count for count in BATCH_SIZES if count > max(seats)),
            round_up(longest, LENGTH),
            _limit(rows.largest_top_k, self.shape.codebook_size),
            rows.any_top_p,
            rows.any_noise,
        )
        work = partial(self._position, kind)
        drawn: TokenColumns = (self._graphs.run(kind, work) if self._graphs else work()).cpu()[seats].tolist()
        for sequence in sequences:
            sequence.cache.advance(1)
        return drawn

    # ---- seats

    def _own_of(self, seat: int, rows: int, length: int = 0) -> DenseKVCache:
        return DenseKVCache(self._slab.own[:, :, seat, :rows], length)

    def _cross_of(self, seat: int, prompt: int) -> list[tuple[Tensor, Tensor]]:
        if self.shape.text_conditioning == "prepend":
            return []
        return [(layer[0, seat, None, :, :prompt], layer[1, seat, None, :, :prompt]) for layer in self._slab.cross]

    def _sit(self, sequence: SequenceState, seat: int) -> None:
        """Have a clip remember what its seat does."""
        sequence.cache = self._own_of(seat, sequence.rows, sequence.cache.length)
        sequence.cross = self._cross_of(seat, len(sequence.text))

    def _wanted(self, seats: int, prompt: int) -> tuple[int, int]:
        """The seats and the prompt of a slab that has room for so many clips and a prompt so long."""
        seats = next(count for count in BATCH_SIZES if count >= max(seats, self._slab.seats))
        return seats, min(MAX_PROMPT_TOKENS, round_up(max(prompt, self._slab.prompt), PROMPT))

    def _take_slab(self, seats: int, prompt: int) -> None:
        """Move to a slab of this size. Graphs see addresses, so they are captured anew."""
        if (seats, prompt) == (self._slab.seats, self._slab.prompt):
            return
        if self._graphs:
            self._graphs.clear()
        if not self._seated:  # nothing to move, and perhaps no room for two
            self._slab = _Slab(self.weights, 0, PROMPT)
        old = self._slab
        self._slab = _Slab(self.weights, seats, prompt)
        for seat, sequence in enumerate(self._seated):
            self._slab.take(seat, old, seat, sequence.cache.length)
            self._sit(sequence, seat)
        self._make_inputs()
        self._rows = None

    # ---- what stays

    def _make_inputs(self) -> None:
        seats, device = self._slab.seats, self.weights.device
        # Tokens, position and key of each seat: on the host, where one copy takes all of them from, and on the device.
        told = torch.zeros(seats, self.shape.codebooks + 2, dtype=torch.int64)
        self._told = told.pin_memory() if device.type == "cuda" else told
        self._inputs = told.to(device, copy=True)
        self._cfg_coef = torch.ones(seats, device=device)
        self._guided = torch.zeros(seats, dtype=torch.bool, device=device)
        self._parameters = SamplingParams.from_lists([0] * seats, [1.0] * seats, [0] * seats, [0.0] * seats, device)

    def _place(self, rows: SamplingParams, seats: list[int], sequences: Row[SequenceState], cfg_coef: Tensor) -> None:
        """The clips' parameters to their seats. Who is not asked has no top-k: a graph is for the largest that is."""
        self._parameters.top_k.zero_()
        self._cfg_coef[seats] = cfg_coef
        self._guided[seats] = torch.tensor([sequence.rows == 2 for sequence in sequences], device=cfg_coef.device)
        for name in ("seeds", "temperature", "top_k", "top_p"):
            getattr(self._parameters, name)[seats] = getattr(rows, name)

    # ---- a position

    def _position(self, kind: _Kind) -> Tensor:
        """One position of the first seats, from what stays to tokens [seats, K]. No host in it.

        Of the seats that were not asked for, nobody knows what.
        """
        shape, seats = self.shape, kind.seats
        inputs = self._inputs[:seats]
        tokens, position, keys = inputs[:, : shape.codebooks], inputs[:, -2], inputs[:, -1]
        x = self.embed(tokens.T) + self.sinusoids(position).to(self.weights.precision.compute_dtype)
        x = x.repeat_interleave(2, dim=0)
        ahead = torch.arange(kind.length, device=x.device) > position[:, None]  # [seats, length]
        beyond = torch.arange(self._slab.prompt, device=x.device) >= self._slab.heard[:seats, None]
        for index, layer in enumerate(self.weights.layers):
            x = x + layer.out(self._own(index, layer, x, position, ahead))
            if layer.cross is not None:
                pairs = x.view(seats, 2, shape.dim)
                heard = pairs[:, 0] + self._prompt(index, layer.cross, pairs[:, 0], beyond)
                x = torch.stack([heard, pairs[:, 1]], dim=1).view(2 * seats, shape.dim)
            x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
        x = self.weights.out_norm(x)
        logits = self.weights.output_heads(x).float().view(seats, 2, shape.codebooks, shape.codebook_size)
        hearing, deaf = logits.unbind(dim=1)
        guided = deaf + (hearing - deaf) * self._cfg_coef[:seats, None, None]
        logits = torch.where(self._guided[:seats, None, None], guided, hearing)
        every = self._parameters
        rows = SamplingParams(
            seeds=every.seeds[:seats],
            temperature=every.temperature[:seats],
            top_k=every.top_k[:seats],
            top_p=every.top_p[:seats],
            largest_top_k=kind.largest_top_k,
            any_top_p=kind.any_top_p,
            any_noise=kind.any_noise,
        )
        return mark_nonfinite(logits, sample(logits, rows, keys))

    def _own(self, index: int, layer: LayerWeights, x: Tensor, position: Tensor, ahead: Tensor) -> Tensor:
        """What rows [2 * seats, dim] find in their past and themselves."""
        shape, seats, length = self.shape, *ahead.shape
        packed = layer.query_key_value(layer.norm1(x)).view(seats, 2, 3, shape.heads, shape.head_dim)
        both = self._slab.own[index, :, :seats]  # [2, seats, 2, H, positions, D]
        seat = torch.arange(seats, device=x.device)
        both[:, seat, :, :, position] = packed[:, :, 1:].transpose(1, 2)  # the indexed ones come first: seats
        keys, values = both[..., :length, :]
        return _find(packed[:, :, 0], keys, values, ahead[:, None, None, None]).view(2 * seats, shape.dim)

    def _prompt(self, index: int, cross: CrossAttentionWeights, x: Tensor, beyond: Tensor) -> Tensor:
        """What hearing rows [seats, dim] find in their prompts."""
        shape, seats = self.shape, len(x)
        query = cross.query(cross.norm(x)).view(seats, shape.heads, shape.head_dim)
        keys, values = self._slab.cross[index, :, :seats]
        return cross.out(_find(query, keys, values, beyond[:, None, None]).view(seats, shape.dim))


def _find(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
    """Attention of one position: query [..., D], keys and values [..., T, D], what is hidden [..., 1, T]."""
    scores = (query[..., None, :] * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    found: Tensor = weights.to(values.dtype) @ values
    return found[..., 0, :]


def _limit(largest_top_k: int, card: int) -> int:
    """One of a few that are as large: each is a graph of its own, and clients choose top_k."""
    return next((limit for limit in TOP_K if largest_top_k <= limit < card), card)
