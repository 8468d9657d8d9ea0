"""Which decoder runs a model."""

from __future__ import annotations

from musicgen_bento.engine.checkpoint import Weights
from musicgen_bento.engine.compiled import CompiledWeights
from musicgen_bento.engine.compiled_decoder import CompiledDecoder
from musicgen_bento.engine.decoder import Decoder, EagerDecoder
from musicgen_bento.engine.graphs import GraphedDecoder


def decoder_of(weights: Weights, seats: int, *, deterministic: bool = False) -> Decoder:
    """The fastest there is.

    Args:
        weights: of the model.
        seats: most clips at once.
        deterministic: each clip is stepped alone.
    """
    if isinstance(weights, CompiledWeights):
        return CompiledDecoder(weights, seats)
    graphed = weights.device.type == "cuda" and not deterministic
    return GraphedDecoder(weights) if graphed else EagerDecoder(weights)
