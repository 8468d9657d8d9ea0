"""Selects the decoder for given weights."""

from __future__ import annotations

from typing import TypeAlias

from musicgen_bento.lm.cpu_decoder import CpuDecoder
from musicgen_bento.lm.cuda_graph_decoder import CudaGraphDecoder
from musicgen_bento.lm.decoder import Decoder, EagerDecoder
from musicgen_bento.lm.packed_weights import PackedWeights
from musicgen_bento.lm.weights import LMWeights
from musicgen_bento.native import bindings

Weights: TypeAlias = LMWeights | PackedWeights


def create_decoder(
    weights: Weights, max_batch_size: int, *, deterministic: bool = False, threads: bindings.ThreadPool | None = None
) -> Decoder:
    """Create the fastest decoder for given weights.

    Args:
        weights: the weights of the model.
        max_batch_size: maximum number of sequences in a batch.
        deterministic: whether the output must be batch-invariant where torch runs the model; this excludes CUDA graphs.
        threads: the thread pool for the C kernel; by default it has as many threads as suit the model.
    """
    if isinstance(weights, PackedWeights):
        return CpuDecoder(weights, max_batch_size, threads or bindings.ThreadPool(weights.shape.num_threads()))
    use_cuda_graphs = weights.device.type == "cuda" and not deterministic
    return CudaGraphDecoder(weights) if use_cuda_graphs else EagerDecoder(weights)
