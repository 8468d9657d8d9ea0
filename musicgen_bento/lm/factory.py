"""Which decoder runs a model."""

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
    """The fastest there is.

    Args:
        weights: of the model.
        seats: most clips at once.
        deterministic: each clip is stepped alone, where its bits would depend on its company.
        team: whose threads make the steps, where the kernel does; by default as many as the model is best run on.
    """
    if isinstance(weights, PackedWeights):
        return CpuDecoder(weights, max_batch_size, threads or bindings.ThreadPool(weights.shape.num_threads()))
    graphed = weights.device.type == "cuda" and not deterministic
    return CudaGraphDecoder(weights) if graphed else EagerDecoder(weights)
