"""The decoder on a CPU: one position of all clips is one run of ONNX Runtime.

Clips have seats, the first ones always, since a run sees the caches of neighbouring rows. A seat has two rows, one that
hears the prompt and, for guidance, one that does not; the second one of a clip without guidance begins anew at each
step. As in `decoder.py` attention sees just what a row has filled, and no row sees another.
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import dataclass, replace
from math import gcd
from mmap import PAGESIZE

import torch
from torch import Tensor

from musicgen_bento.engine.compiled import CompiledWeights, own_names, prompt_names, scale_name
from musicgen_bento.engine.decoder import Decoder, Need, Sequence
from musicgen_bento.engine.kv_cache import KVCache
from musicgen_bento.engine.onnx_graph import Run
from musicgen_bento.engine.pages import Pages
from musicgen_bento.engine.seats import seat_of, up
from musicgen_bento.engine.weights import MAX_TOKENS

PROMPT = 16  # T5 tokens: prompts side by side are as long as the longest, in steps of this


@dataclass(frozen=True, slots=True)
class _Company:
    """A run over the rows of some clips, and what it reads and writes.

    Attributes:
        run: of the program.
        x: [R, T, 1, dim].
        last: [R].
        total: [].
        logits: [R, T, 1, K * card].
    """

    run: Run
    x: Tensor
    last: Tensor
    total: Tensor
    logits: Tensor


class CompiledDecoder(Decoder):
    """See `Decoder`.

    Args:
        weights: of the model.
        seats: most clips at once. They take memory as they are filled.
    """

    def __init__(self, weights: CompiledWeights, seats: int) -> None:
        super().__init__(weights.shape, weights.precision, weights.embeddings)
        self._weights, self._seats, shape = weights, seats, weights.shape
        prefix = MAX_TOKENS if shape.text == "prepend" else 0
        dtype = weights.precision.cache
        # each head of a row begins with a page
        self._page = PAGESIZE // gcd(PAGESIZE, shape.head_dim * dtype.itemsize)
        positions = up(prefix + shape.pattern.last_position(shape.window) + 1, self._page)
        self._pages = Pages(shape.layers, 2, 2 * seats, shape.heads, positions, shape.head_dim, dtype=dtype)
        self._own = self._pages.tensor
        self._places = self.sinusoids(torch.arange(positions))
        self._seated: list[Sequence] = []
        self._companies: dict[tuple[int, int], _Company] = {}

    def bytes(self, clips: list[Need]) -> int:
        """See `Decoder.bytes`. Prompts side by side are as long as the longest, and memory is taken by the page."""
        longest = up(max((need.prompt for need in clips), default=0), PROMPT)
        short = sum(longest - need.prompt for need in clips) if self.shape.text == "cross" else 0
        # the second row of a clip without guidance: a page of each head's
        unheard = sum(2 * self.shape.layers * self.shape.heads * PAGESIZE for need in clips if need.rows == 1)
        whole = [replace(need, positions=up(need.positions, self._page)) for need in clips]
        return super().bytes(whole) + 2 * self.shape.layers * self.shape.dim * short * 4 + unheard

    # ---- seats

    def open(self, text: Tensor, guided: bool, positions: int) -> Sequence:
        """See `Decoder.open`.

        Raises:
            IndexError: all seats are taken.
        """
        if len(self._seated) == self._seats:
            raise IndexError("no seat is free")  # a run would write behind the last one
        rows = 2 if guided else 1
        sequence = Sequence(rows, self._cache(len(self._seated), rows), text, self._prompt(text))
        self._seated.append(sequence)  # last: what fails before takes no seat
        self._companies.clear()
        return sequence

    def close(self, sequence: Sequence) -> None:
        """See `Decoder.close`. The last seat's clip moves to the free one."""
        seat, last = seat_of(sequence, self._seated), self._seated.pop()
        left, length = len(self._seated), last.cache.length
        self._forget(seat)
        if last is not sequence:
            self._rows(seat, last.rows)[..., :length, :] = self._rows(left, last.rows)[..., :length, :]
            self._forget(left)
            self._seated[seat] = last
            last.cache = self._cache(seat, last.rows, length)
        self._companies.clear()

    def _forget(self, seat: int) -> None:
        for part in self._rows(seat).flatten(0, 1):
            self._pages.forget(part)

    def _rows(self, seat: int, rows: int = 2) -> Tensor:
        """What a seat remembers, [layers, 2, rows, H, P, D]."""
        return self._own[:, :, 2 * seat : 2 * seat + rows]

    def _cache(self, seat: int, rows: int, length: int = 0) -> KVCache:
        return KVCache(self._rows(seat, rows), length)

    def _prompt(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """See `Sequence.cross`."""
        if self._weights.prompt is None:
            return []
        shape, text = self.shape, text.contiguous()
        made = {f"keys_values_{i}": text.new_empty(len(text), 1, 2 * shape.dim) for i in range(shape.layers)}
        self._weights.prompt.bind({"text": text[:, None]}, made)()
        both = [each.view(1, len(text), 2, shape.heads, shape.head_dim).transpose(1, 3) for each in made.values()]
        return [(each[:, :, 0].contiguous(), each[:, :, 1].contiguous()) for each in both]  # [1, H, L, D]

    # ---- runs

    @torch.inference_mode()
    def prefill(self, sequence: Sequence, inputs: Tensor) -> None:
        """See `Decoder.prefill`."""
        begin, count = sequence.cache.length, inputs.shape[1]
        x = inputs + self._places[begin : begin + count]
        for row in range(sequence.rows):
            hearing = [sequence if row == 0 else None]
            company = self._bind(2 * seat_of(sequence, self._seated) + row, 1, count, hearing, [0])
            company.x.copy_(x[row, :, None])
            company.last.fill_(begin + count - 1)
            company.total.fill_(begin + count)
            company.run()
        sequence.cache.advance(count)

    @torch.inference_mode()
    def step(self, sequences: list[Sequence], tokens: Tensor, cfg_coef: Tensor) -> Tensor:
        """See `Decoder.step`."""
        seats = [seat_of(sequence, self._seated) for sequence in sequences]
        first, end = min(seats), max(seats) + 1
        company = self._company(first, end)
        # those between that nobody asked for write too, where they will be written anew
        lengths = torch.tensor([seated.cache.length for seated in self._seated[first:end]])
        guided = torch.tensor([seated.rows == 2 for seated in self._seated[first:end]])
        asked = torch.tensor(seats) - first
        x = self._places[lengths]
        x[asked] += self.embed(tokens.T)
        company.x.view(end - first, 2, -1).copy_(x[:, None])
        company.last.view(-1, 2).copy_(torch.stack([lengths, lengths * guided], dim=1))
        company.total.fill_(int(lengths.max()) + 1)
        company.run()
        for sequence in sequences:
            sequence.cache.advance(1)
        logits = company.logits.view(end - first, 2, self.shape.codebooks, self.shape.card)[asked]
        hearing, deaf = logits[:, 0], logits[:, 1]
        return torch.where(guided[asked, None, None], deaf + (hearing - deaf) * cfg_coef[:, None, None], hearing)

    def _company(self, first: int, end: int) -> _Company:
        """A step of the clips in these seats. Nobody's prompt is kept in two companies."""
        if (first, end) not in self._companies:
            apart = {(a, b): kept for (a, b), kept in self._companies.items() if b <= first or end <= a}
            self._companies = apart
            some = self._seated[first:end]
            bound = self._bind(2 * first, 2 * len(some), 1, some, range(0, 2 * len(some), 2))
            self._companies[first, end] = bound
        return self._companies[first, end]

    def _bind(self, row: int, rows: int, positions: int, hearing: Row[Sequence | None], hears: Row[int]) -> _Company:
        """A run over neighbouring rows.

        Args:
            row: the first.
            rows: how many.
            positions: of each.
            hearing: whose prompts are heard; None is silence.
            hears: the rows that hear them, counted from the first.
        """
        shape = self.shape
        x = torch.zeros(rows, positions, 1, shape.dim)
        last, total = torch.zeros(rows, dtype=torch.int32), torch.zeros([], dtype=torch.int32)
        logits = torch.empty(rows, positions, 1, shape.codebooks * shape.card)
        caches = {
            name: cache
            for names, both in zip(own_names(shape.layers), self._own[:, :, row : row + rows], strict=True)
            for name, cache in zip(names, both, strict=True)
        }
        inputs = {"x": x, "last": last, "total": total, **caches}
        if self._weights.scales is not None:
            for names, both in zip(own_names(shape.layers), self._weights.scales, strict=True):
                inputs |= {scale_name(name): scales for name, scales in zip(names, both, strict=True)}
        if self._weights.prompt is not None:
            inputs |= self._heard(hearing, positions) | {"hears": torch.tensor(list(hears))}
        run = self._weights.step.bind(inputs, {"logits": logits, **caches})
        return _Company(run, x, last, total, logits)

    def _heard(self, hearing: Row[Sequence | None], positions: int) -> dict[str, Tensor]:
        """Their prompts side by side, and where each ends."""
        shape = self.shape
        lengths = [0 if sequence is None else len(sequence.text) for sequence in hearing]
        longest = up(max(1, max(lengths)), PROMPT)
        size = (len(hearing), shape.heads, longest, shape.head_dim)
        heard = {}
        for index, names in enumerate(prompt_names(shape.layers)):
            for which, name in enumerate(names):
                heard[name] = torch.zeros(size)
                for place, sequence in zip(heard[name], hearing, strict=True):
                    if sequence is not None:
                        place[:, : len(sequence.text)] = sequence.cross[index][which][0]
        # silence is the one who hears nothing but zeros
        beyond = torch.arange(longest) >= torch.tensor(lengths)[:, None].clamp(min=1)
        masks = torch.zeros(beyond.shape).masked_fill(beyond, -torch.inf)
        return heard | {"beyond": masks[:, None, None].expand(-1, 1, positions, -1).contiguous()}
