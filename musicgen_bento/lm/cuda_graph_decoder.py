"""The decoder on a GPU: one position of all sequences is one CUDA graph, replayed on tensors at fixed addresses.

For one row a step is a thousand small kernels, and launching them takes longer than running them. A graph launches all
at once, but its kernels use the same addresses and sizes each time. So the sequences have batch slots in one cache,
without gaps from slot 0 on. What differs from step to step (tokens, positions, parameters) is copied into tensors that
stay. There is a graph for each batch size in BATCH_SIZES and each cache length in multiples of LENGTH_STEP, captured at
first use.

Everything except the capture runs on any device: on a CPU the tests compare it with `EagerDecoder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_bento.lm.cuda_graphs import CudaGraphCache
from musicgen_bento.lm.decoder import EagerDecoder, KVCacheRequest, SequenceState, TokenColumns, mark_nonfinite
from musicgen_bento.lm.kv_cache.batch import LENGTH_STEP, BatchKVCache
from musicgen_bento.lm.kv_cache.dense import DenseKVCache
from musicgen_bento.lm.sampling import SamplingParams, sample
from musicgen_bento.lm.weights import CrossAttentionWeights, LayerWeights, LMWeights
from musicgen_bento.model_catalog import MAX_PROMPT_TOKENS
from musicgen_bento.native.bindings import round_up

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPT_STEP = 64  # T5 tokens
TOP_K_LIMITS = (0, 64, 256)  # beyond, the whole codebook


@dataclass(frozen=True, slots=True)
class GraphKey:
    """What a graph is captured for. Everything else may change from step to step."""

    batch_size: int
    length: int
    largest_top_k: int
    any_top_p: bool
    any_noise: bool


class CudaGraphDecoder(EagerDecoder):
    """The decoder on CUDA graphs. Each sequence takes the memory of a whole window."""

    def __init__(self, weights: LMWeights) -> None:
        super().__init__(weights)
        self._batch_kv = BatchKVCache(weights, BATCH_SIZES[0], PROMPT_STEP)
        self._sequences: list[SequenceState] = []  # by batch index
        self._graphs = CudaGraphCache(weights.device) if weights.device.type == "cuda" else None
        self._scattered: tuple[SamplingParams, list[int]] | None = None  # what `_scatter_params` was last called with
        self._create_inputs()

    def kv_cache_bytes(self, requests: list[KVCacheRequest]) -> int:
        """The bytes of the cache for such requests; while it grows, the old and the new cache exist together."""
        current = self._batch_kv.batch_size, self._batch_kv.max_prompt_tokens
        prompt_tokens = max((request.prompt_tokens for request in requests), default=0)
        required = self._required_size(len(requests), prompt_tokens)
        required_bytes = BatchKVCache.num_bytes(self.weights, *required)
        if required == current or not self._sequences:
            return required_bytes
        return BatchKVCache.num_bytes(self.weights, *current) + required_bytes

    def open_sequence(self, prompt: Tensor, guided: bool, max_positions: int) -> SequenceState:
        """Use the next batch slot for a sequence, and store its prompt; the cache grows if necessary."""
        index = len(self._sequences)
        self._resize(*self._required_size(index + 1, len(prompt)))
        self._batch_kv.clear(index)
        self._batch_kv.prompt_lengths[index] = len(prompt)
        rows = 2 if guided else 1
        sequence = SequenceState(rows, self._self_view(index, rows), prompt, self._cross_views(index, len(prompt)))
        for layer_index, layer in enumerate(self.weights.layers):
            if layer.cross is not None:
                computed = self._cross_keys_values(layer.cross, prompt)
                for stored, values in zip(sequence.cross_kv[layer_index], computed, strict=True):
                    stored.copy_(values)
        self._sequences.append(sequence)  # last, so that a failure above takes no batch slot
        self._scattered = None
        return sequence

    def close_sequence(self, sequence: SequenceState) -> None:
        """Free a batch slot and move the last sequence into it; an empty cache shrinks."""
        index, last = batch_index_of(sequence, self._sequences), self._sequences.pop()
        if last is not sequence:
            self._batch_kv.clear(index)
            self._batch_kv.copy_from(index, self._batch_kv, len(self._sequences), last.kv_cache.length)
            self._sequences[index] = last
            self._set_views(last, index)
        self._scattered = None
        if not self._sequences:
            self._resize(BATCH_SIZES[0], PROMPT_STEP)

    @torch.inference_mode()
    def step_and_sample(
        self,
        sequences: list[SequenceState],
        tokens: TokenColumns,
        cfg_coef: Tensor,
        sampling: SamplingParams,
        noise_steps: list[int],
    ) -> TokenColumns:
        """Sample the next tokens with a graph; see `Decoder.step_and_sample`."""
        indices = [batch_index_of(sequence, self._sequences) for sequence in sequences]
        if self._scattered is None or self._scattered[0] is not sampling or self._scattered[1] != indices:
            self._scatter_params(sampling, indices, sequences, cfg_coef)
            self._scattered = (sampling, indices)
        # Set the position of every open sequence. For sequences that are not in `sequences` the graph writes keys and
        # values too, at a position that their next step overwrites.
        lengths = [sequence.kv_cache.length for sequence in self._sequences]
        self._host_inputs[: len(lengths), -2] = torch.tensor(lengths)
        self._host_inputs[indices, :-2] = torch.tensor(tokens)
        self._host_inputs[indices, -1] = torch.tensor(noise_steps)
        # The copy of the previous step is complete, since its tokens have arrived on the host.
        self._inputs.copy_(self._host_inputs, non_blocking=True)
        longest = max(sequence.kv_cache.length for sequence in sequences) + 1
        key = GraphKey(
            next(size for size in BATCH_SIZES if size > max(indices)),
            round_up(longest, LENGTH_STEP),
            _top_k_limit(sampling.largest_top_k, self.shape.codebook_size),
            sampling.any_top_p,
            sampling.any_noise,
        )
        work = partial(self._forward_position, key)
        sampled = self._graphs.run(key, work) if self._graphs else work()
        columns: TokenColumns = sampled.cpu()[indices].tolist()
        for sequence in sequences:
            sequence.kv_cache.advance(1)
        return columns

    # ---- batch slots

    def _self_view(self, index: int, rows: int, length: int = 0) -> DenseKVCache:
        """The self-attention cache of a batch slot, as `EagerDecoder` uses it for prefill."""
        return DenseKVCache(self._batch_kv.self_kv[:, :, index, :rows], length)

    def _cross_views(self, index: int, prompt_tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a batch slot's prompt for each layer, [1, H, L, D]; none if the model prepends it."""
        if self.shape.text_conditioning == "prepend":
            return []
        return [
            (layer[0, index, None, :, :prompt_tokens], layer[1, index, None, :, :prompt_tokens])
            for layer in self._batch_kv.cross_kv
        ]

    def _set_views(self, sequence: SequenceState, index: int) -> None:
        """Point a sequence's state to its new batch slot."""
        sequence.kv_cache = self._self_view(index, sequence.rows, sequence.kv_cache.length)
        sequence.cross_kv = self._cross_views(index, len(sequence.prompt))

    def _required_size(self, batch_size: int, prompt_tokens: int) -> tuple[int, int]:
        """The batch size and the prompt tokens of a cache for so many sequences; it is never below the current one."""
        size = next(size for size in BATCH_SIZES if size >= max(batch_size, self._batch_kv.batch_size))
        longest = max(prompt_tokens, self._batch_kv.max_prompt_tokens)
        return size, min(MAX_PROMPT_TOKENS, round_up(longest, PROMPT_STEP))

    def _resize(self, batch_size: int, max_prompt_tokens: int) -> None:
        """Move to a cache of this size. Graphs contain addresses, so they are discarded."""
        if (batch_size, max_prompt_tokens) == (self._batch_kv.batch_size, self._batch_kv.max_prompt_tokens):
            return
        if self._graphs:
            self._graphs.clear()
        if not self._sequences:  # nothing to copy: free the old cache first, as memory may not suffice for both
            self._batch_kv = BatchKVCache(self.weights, 0, PROMPT_STEP)
        old = self._batch_kv
        self._batch_kv = BatchKVCache(self.weights, batch_size, max_prompt_tokens)
        for index, sequence in enumerate(self._sequences):
            self._batch_kv.copy_from(index, old, index, sequence.kv_cache.length)
            self._set_views(sequence, index)
        self._create_inputs()
        self._scattered = None

    # ---- inputs at fixed addresses

    def _create_inputs(self) -> None:
        batch_size, device = self._batch_kv.batch_size, self.weights.device
        # Tokens, position and noise step of each batch slot: a pinned host buffer, and its copy on the device.
        host_inputs = torch.zeros(batch_size, self.shape.codebooks + 2, dtype=torch.int64)
        self._host_inputs = host_inputs.pin_memory() if device.type == "cuda" else host_inputs
        self._inputs = host_inputs.to(device, copy=True)
        self._cfg_coef = torch.ones(batch_size, device=device)
        self._guided = torch.zeros(batch_size, dtype=torch.bool, device=device)
        self._params = SamplingParams.from_lists(
            [0] * batch_size, [1.0] * batch_size, [0] * batch_size, [0.0] * batch_size, device
        )

    def _scatter_params(
        self, sampling: SamplingParams, indices: list[int], sequences: list[SequenceState], cfg_coef: Tensor
    ) -> None:
        """Copy the sequences' parameters to their batch slots.

        The other slots have no top-k, because a graph is captured for the largest top-k of the sequences in the step.
        """
        self._params.top_k.zero_()
        self._cfg_coef[indices] = cfg_coef
        self._guided[indices] = torch.tensor([sequence.rows == 2 for sequence in sequences], device=cfg_coef.device)
        for name in ("seeds", "temperature", "top_k", "top_p"):
            getattr(self._params, name)[indices] = getattr(sampling, name)

    # ---- one position

    def _forward_position(self, key: GraphKey) -> Tensor:
        """Run one position of the first batch slots, from the fixed inputs to tokens [batch_size, K].

        No operation waits for the host. The tokens of slots outside of the step are meaningless.
        """
        shape, batch_size = self.shape, key.batch_size
        inputs = self._inputs[:batch_size]
        tokens, position, noise_steps = inputs[:, : shape.codebooks], inputs[:, -2], inputs[:, -1]
        x = self.embed(tokens.T) + self.position_embeddings(position).to(self.weights.precision.compute_dtype)
        x = x.repeat_interleave(2, dim=0)
        # Masks, true where masked: [batch_size, length] and [batch_size, max_prompt_tokens].
        causal_mask = torch.arange(key.length, device=x.device) > position[:, None]
        prompt_positions = torch.arange(self._batch_kv.max_prompt_tokens, device=x.device)
        prompt_mask = prompt_positions >= self._batch_kv.prompt_lengths[:batch_size, None]
        for index, layer in enumerate(self.weights.layers):
            x = x + layer.out(self._slots_self_attention(index, layer, x, position, causal_mask))
            if layer.cross is not None:
                pairs = x.view(batch_size, 2, shape.dim)
                cond, uncond = pairs[:, 0], pairs[:, 1]
                cond = cond + self._slots_cross_attention(index, layer.cross, cond, prompt_mask)
                x = torch.stack([cond, uncond], dim=1).view(2 * batch_size, shape.dim)
            x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
        x = self.weights.out_norm(x)
        logits = self.weights.output_heads(x).float().view(batch_size, 2, shape.codebooks, shape.codebook_size)
        cond, uncond = logits.unbind(dim=1)
        guided = uncond + (cond - uncond) * self._cfg_coef[:batch_size, None, None]
        logits = torch.where(self._guided[:batch_size, None, None], guided, cond)
        sampling = SamplingParams(
            seeds=self._params.seeds[:batch_size],
            temperature=self._params.temperature[:batch_size],
            top_k=self._params.top_k[:batch_size],
            top_p=self._params.top_p[:batch_size],
            largest_top_k=key.largest_top_k,
            any_top_p=key.any_top_p,
            any_noise=key.any_noise,
        )
        return mark_nonfinite(logits, sample(logits, sampling, noise_steps))

    def _slots_self_attention(
        self, index: int, layer: LayerWeights, x: Tensor, position: Tensor, causal_mask: Tensor
    ) -> Tensor:
        """Self-attention of all rows [2 * batch_size, dim], which also stores their keys and values."""
        shape, batch_size, length = self.shape, *causal_mask.shape
        packed = layer.query_key_value(layer.norm1(x)).view(batch_size, 2, 3, shape.heads, shape.head_dim)
        kv = self._batch_kv.self_kv[index, :, :batch_size]  # [2, batch_size, 2, H, positions, D]
        slots = torch.arange(batch_size, device=x.device)
        kv[:, slots, :, :, position] = packed[:, :, 1:].transpose(1, 2)  # indexed dimensions come first: batch slots
        keys, values = kv[..., :length, :]
        return _attend(packed[:, :, 0], keys, values, causal_mask[:, None, None, None]).view(2 * batch_size, shape.dim)

    def _slots_cross_attention(
        self, index: int, cross: CrossAttentionWeights, x: Tensor, prompt_mask: Tensor
    ) -> Tensor:
        """Cross-attention of the conditional rows [batch_size, dim] to their prompts."""
        shape, batch_size = self.shape, len(x)
        query = cross.query(cross.norm(x)).view(batch_size, shape.heads, shape.head_dim)
        keys, values = self._batch_kv.cross_kv[index, :, :batch_size]
        return cross.out(_attend(query, keys, values, prompt_mask[:, None, None]).view(batch_size, shape.dim))


def batch_index_of(sequence: SequenceState, sequences: list[SequenceState]) -> int:
    """The index of a sequence, compared by identity.

    Raises:
        StopIteration: the sequence is not in the list.
    """
    return next(index for index, other in enumerate(sequences) if other is sequence)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of one position: query [..., D], keys and values [..., T, D]; mask [..., 1, T] is true where masked."""
    scores = (query[..., None, :] * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    weights = scores.masked_fill(mask, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    attn_out: Tensor = weights.to(values.dtype) @ values
    return attn_out[..., 0, :]


def _top_k_limit(largest_top_k: int, codebook_size: int) -> int:
    """The smallest limit of TOP_K_LIMITS that is at least as large, else the codebook size.

    Each value needs a graph of its own, and clients choose top_k.
    """
    return next((limit for limit in TOP_K_LIMITS if largest_top_k <= limit < codebook_size), codebook_size)
