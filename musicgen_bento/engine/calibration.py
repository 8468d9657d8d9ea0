"""How large a model's keys and values become, so that 8 bits hold them as finely as they can.

ONNX Runtime multiplies what a channel's keys hold with one number, whatever the position and the clip, which has to be
known before the music is. So a model is heard for a moment when it is loaded: what it remembers of random tokens says
how far each channel goes, and what goes beyond that later is cut off.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from musicgen_bento.engine.compiled import CompiledWeights
from musicgen_bento.engine.compiled_decoder import CompiledDecoder
from musicgen_bento.engine.integers import LEVELS
from musicgen_bento.engine.kv_cache import KVCache

HEARD = 32  # positions
PROMPT, LOUD = 16, 0.2  # T5 tokens, and their standard deviation
MARGIN = 1.75
# A scale is the next of four to an octave, so that what two machines round differently hardly ever makes a difference.
OCTAVE = 4


@torch.inference_mode()
def calibrated(weights: CompiledWeights) -> CompiledWeights:
    """The same with scales that fit; as it is where keys and values are floats."""
    if weights.scales is None:
        return weights
    shape, dice = weights.shape, torch.Generator().manual_seed(0)
    last = shape.pattern.last_position(shape.window)
    heard = min(HEARD, last)
    decoder = CompiledDecoder(weights, seats=1)
    states = LOUD * torch.randn(PROMPT, weights.text_weight.shape[1], generator=dice)
    sequence = decoder.open(F.linear(states, weights.text_weight, weights.text_bias), guided=True, positions=heard)
    if (prefix := decoder.prefix(sequence)).shape[1]:
        decoder.prefill(sequence, prefix)
    begin = sequence.cache.length
    x = decoder.embed(torch.randint(shape.card, (shape.codebooks, heard), generator=dice))
    # as if they were all over the window: keys know where they are
    x += decoder.sinusoids(torch.linspace(begin, begin + last, heard)) - decoder.sinusoids(begin + torch.arange(heard))
    decoder.prefill(sequence, x.expand(sequence.rows, -1, -1))
    assert isinstance(sequence.cache, KVCache)
    remembered = sequence.cache.both[..., : sequence.cache.length, :]
    farthest = remembered.float().abs().amax(dim=(2, 4))[:, :, None, :, None].clamp(min=1) * weights.scales
    return replace(weights, scales=2 ** ((MARGIN / LEVELS * farthest).log2() * OCTAVE).ceil().div(OCTAVE))
