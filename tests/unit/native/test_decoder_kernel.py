"""The decoder step of each kernel variant: batch invariance, and values that are not finite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from musicgen_bento.checkpoint.lm_state_dict import read_weights
from musicgen_bento.checkpoint.loading import open_files
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.lm.cpu_decoder import CpuDecoder
from musicgen_bento.lm.linear import DenseLinear
from musicgen_bento.lm.packed_weights import pack_weights
from musicgen_bento.lm.sampling import SamplingParams
from musicgen_bento.native import bindings
from musicgen_bento.precision import FLOAT32_NATIVE, INT8, Precision
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import CPU, MONO, folder

# More inputs than AMX processes at a time, and an odd number of groups of 16 outputs (native/gemm.h). Of 13 sequences
# two have a prompt that is not fused; 20 sequences have more than 32 rows.
WIDE = replace(MONO, dim=336, heads=7)


@pytest.mark.parametrize("precision", [INT8, FLOAT32_NATIVE], ids=lambda precision: precision.name)
@pytest.mark.parametrize(
    ("config", "batch_size"),
    [(MONO, 1), (MONO, 2), (MONO, 3), (MONO, 4), (MONO, 9), (MONO, 20), (WIDE, 3), (WIDE, 13), (WIDE, 20)],
)
def test_logits_do_not_depend_on_the_batch(
    kernel: Any, config: RandomModelConfig, batch_size: int, precision: Precision
) -> None:
    """Each sequence has bit-equal logits alone and in a batch; few and many rows use different products."""
    files = open_files(Source("tiny", folder(config)))
    weights = read_weights(files.source, files.shape, files.state, CPU, precision)
    decoder = CpuDecoder(pack_weights(weights), 20, bindings.ThreadPool(2))
    torch.manual_seed(batch_size)
    prompts = [torch.randn(4 + 2 * n, files.shape.dim) for n in range(batch_size)]  # in int8 some are fused
    columns = torch.randint(files.shape.codebook_size, (6, batch_size, 4))
    cfg_coef = torch.linspace(2.0, 4.0, batch_size)

    def logits_of(members: list[int]) -> torch.Tensor:
        sequences = [decoder.open_sequence(prompts[n], n % 3 != 2, 50) for n in members]
        logits = torch.stack([decoder.step(sequences, tokens[members], cfg_coef[members]) for tokens in columns])
        for sequence in sequences:
            decoder.close_sequence(sequence)
        return logits

    batched = logits_of(list(range(batch_size)))
    for n in range(batch_size):
        assert torch.equal(logits_of([n])[:, 0], batched[:, n])


def test_an_overflow_does_not_change_a_row_of_zeros(kernel: Any) -> None:
    """The inputs of one sequence are zeros; those of the other are so large that their squares overflow float32."""
    files = open_files(Source("tiny", folder(MONO)))
    weights = read_weights(files.source, files.shape, files.state, CPU, INT8)
    decoder = CpuDecoder(pack_weights(weights), 2, bindings.ThreadPool(1))
    zero, overflowing = (decoder.open_sequence(torch.zeros(1, files.shape.dim), False, 30) for _ in range(2))
    inputs = torch.zeros(1, 1, files.shape.dim)
    decoder.prefill(zero, inputs)
    decoder.prefill(overflowing, inputs + 3e38)
    sampling = SamplingParams.from_lists([0, 0], [0.0, 0.0], [0, 0], [0.0, 0.0], CPU)
    sampled = decoder.step_and_sample([zero, overflowing], [[0] * 4] * 2, torch.ones(2), sampling, [0, 0])
    assert min(sampled[0]) >= 0


def test_a_nan_weight_makes_the_logits_nan(kernel: Any) -> None:
    files = open_files(Source("tiny", folder(MONO)))
    weights = read_weights(files.source, files.shape, files.state, CPU, INT8)
    layer = weights.layers[1].linear1
    assert isinstance(layer, DenseLinear)
    layer.weight = layer.weight.clone()
    layer.weight[5, 3] = torch.nan
    decoder = CpuDecoder(pack_weights(weights), 1, bindings.ThreadPool(1))
    sequence = decoder.open_sequence(torch.zeros(1, files.shape.dim), False, 30)
    assert decoder.step([sequence], torch.zeros(1, 4, dtype=torch.int64), torch.ones(1)).isnan().all()
