"""Which decoder runs a model."""

from __future__ import annotations

from musicgen_bento import kernel
from musicgen_bento.engine.checkpoint import Weights
from musicgen_bento.engine.decoder import Decoder, EagerDecoder
from musicgen_bento.engine.graphs import GraphedDecoder
from musicgen_bento.engine.packed import PackedWeights
from musicgen_bento.engine.packed_decoder import PackedDecoder


def decoder_of(
    weights: Weights, seats: int, *, deterministic: bool = False, team: kernel.Team | None = None
) -> Decoder:
    """The fastest there is.

    Args:
        weights: of the model.
        seats: most clips at once.
        deterministic: each clip is stepped alone, where its bits would depend on its company.
        team: whose threads make the steps, where the kernel does; by default as many as the model is best run on.
    """
    if isinstance(weights, PackedWeights):
        return PackedDecoder(weights, seats, team or kernel.Team(weights.shape.cores()))
    graphed = weights.device.type == "cuda" and not deterministic
    return GraphedDecoder(weights) if graphed else EagerDecoder(weights)
