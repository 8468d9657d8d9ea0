"""The kernel in C: each kind of it that this machine runs, part by part, and who takes which."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from musicgen_bento.checkpoint.lm_state_dict import read_weights
from musicgen_bento.checkpoint.loading import open_files
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.codec import native_ops
from musicgen_bento.codec.native_ops import NativeOps
from musicgen_bento.codec.torch_ops import CodecOps, TorchOps
from musicgen_bento.lm.cpu_decoder import CpuDecoder
from musicgen_bento.lm.linear import DenseLinear
from musicgen_bento.lm.packed_weights import pack_weights
from musicgen_bento.lm.sampling import SamplingParams
from musicgen_bento.native import bindings
from musicgen_bento.precision import FLOAT32_NATIVE, INT8, Precision
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import CPU, MONO, folder

# More inputs than tiles go through at a time, and no even number of sixteens of outputs (native/product.h). Of 13 clips
# two hear a prompt that is not folded, 20 have more than 32 rows.
WIDE = replace(MONO, dim=336, heads=7)

HERE = [
    name
    for kinds in bindings.VARIANTS.values()
    for name, needs in kinds
    if needs <= bindings._processor_features() and (bindings.FOLDER / f"{name}.so").is_file()
]


@pytest.fixture(params=HERE)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One after the other in place of the best."""
    library = bindings.load_library(bindings.FOLDER / f"{request.param}.so")
    monkeypatch.setattr(bindings, "library", lambda: library)
    return library


def test_it_was_compiled() -> None:
    """For all kinds of processors, and this one has one."""
    names = {name for kinds in bindings.VARIANTS.values() for name, _ in kinds}
    assert {path.stem for path in bindings.FOLDER.glob("*.so")} == names
    assert HERE
    assert bindings.available()


def test_the_best_that_a_processor_has() -> None:
    x86 = bindings.VARIANTS["x86_64"]
    newer, older = x86[0][1], x86[1][1]
    assert bindings.select_variant(newer | older | {"sse2"}, x86) == "x86_64-avx512"
    assert bindings.select_variant(older | {"avx512f"}, x86) == "x86_64-avx2"
    assert bindings.select_variant({"sse2"}, x86) is None


@pytest.mark.parametrize("how", [INT8, FLOAT32_NATIVE], ids=lambda how: how.name)
@pytest.mark.parametrize(
    ("recipe", "clips"),
    [(MONO, 1), (MONO, 2), (MONO, 3), (MONO, 4), (MONO, 9), (MONO, 20), (WIDE, 3), (WIDE, 13), (WIDE, 20)],
)
def test_all_kinds_say_the_same_of_any_number_of_clips(
    kind: Any, recipe: RandomModelConfig, clips: int, how: Precision
) -> None:
    """Each of them to the bit as alone: with few rows and many, which other products are for."""
    files = open_files(Source("tiny", folder(recipe)))
    decoder = CpuDecoder(
        pack_weights(read_weights(files.source, files.shape, files.state, CPU, how)), 20, bindings.ThreadPool(2)
    )
    torch.manual_seed(clips)
    texts = [torch.randn(4 + 2 * n, files.shape.dim) for n in range(clips)]  # some are folded in int8
    read = torch.randint(files.shape.codebook_size, (6, clips, 4))
    cfg = torch.linspace(2.0, 4.0, clips)

    def said(which: list[int]) -> torch.Tensor:
        some = [decoder.open(texts[n], n % 3 != 2, 50) for n in which]
        found = torch.stack([decoder.step(some, tokens[which], cfg[which]) for tokens in read])
        for sequence in some:
            decoder.close(sequence)
        return found

    together = said(list(range(clips)))
    for n in range(clips):
        assert torch.equal(said([n])[:, 0], together[:, n])


def test_the_codecs_operations(kind: Any) -> None:
    ours, theirs = NativeOps(bindings.ThreadPool(2)), TorchOps()
    torch.manual_seed(0)
    for inputs, outputs, taps, dilation, positions in [
        (5, 33, 7, 1, 40),
        (64, 1, 7, 1, 130),
        (32, 48, 3, 2, 9),
        (3, 4, 1, 1, 1),
    ]:
        weight, bias = torch.randn(outputs, inputs, taps), torch.randn(outputs)
        x = torch.randn(3, positions, inputs)
        both = [how.conv1d(weight, bias, dilation, 1)(x) for how in (ours, theirs)]
        torch.testing.assert_close(*both, atol=1e-4, rtol=1e-5)
        alone = ours.conv1d(weight, bias, dilation, 1)(x[1:2, : taps * dilation + 1])
        assert torch.equal(alone[0], both[0][1, : alone.shape[1]])
    x = torch.randn(2, 13, 7) * 3
    activate, before = ours.activation(torch.nn.ELU()), torch.randn(2, 3, 7)
    torch.testing.assert_close(activate(x, None), F.elu(x), atol=1e-6, rtol=1e-6)
    assert torch.equal(activate(x, before), torch.cat([before, activate(x, None)], dim=1))


def test_an_lstm(kind: Any) -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(48, 48)
    with torch.no_grad():  # to what 16 bits can hold
        weight = lstm.weight_hh_l0
        step = weight.abs().amax(dim=1, keepdim=True) / (2**15 - 1)
        weight.copy_((weight / step).round() * step)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer = NativeOps(bindings.ThreadPool(2)).lstm(*(getattr(lstm, name).detach() for name in names))
    x = torch.randn(5, 9, 48)
    with torch.no_grad():
        expected, _ = lstm(x.transpose(0, 1))
    state = (torch.zeros(5, 48), torch.zeros(5, 48))
    first, state = layer(x[:, :4], state)
    second, _ = layer(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected.transpose(0, 1), atol=1e-6, rtol=1e-5)
    assert torch.equal(layer(x[2:3, :4], (torch.zeros(1, 48), torch.zeros(1, 48)))[0], first[2:3])


def test_what_the_kernel_does_not_have_is_torchs() -> None:
    ours: CodecOps = NativeOps(bindings.ThreadPool(1))
    x, weight = torch.randn(1, 10, 4), torch.randn(4, 1, 3)
    grouped = ours.conv1d(weight, None, 1, 4)(x)
    assert torch.equal(grouped, TorchOps().conv1d(weight, None, 1, 4)(x))
    assert torch.equal(ours.activation(torch.nn.Tanh())(x, x), torch.cat([x, x.tanh()], dim=1))
    assert native_ops.create_ops(None).batch_all_layers


def test_threads_end_with_their_team() -> None:
    before = threads()
    team = bindings.ThreadPool(4)
    assert threads() == before + 3
    del team
    assert threads() == before


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_numbers_that_do_not_fit_are_nobodys(kind: Any) -> None:
    """A row of zeros, and one of numbers beyond what a float's square holds."""
    files = open_files(Source("tiny", folder(MONO)))
    decoder = CpuDecoder(
        pack_weights(read_weights(files.source, files.shape, files.state, CPU, INT8)), 2, bindings.ThreadPool(1)
    )
    pair = [decoder.open(torch.zeros(1, files.shape.dim), False, 30) for _ in range(2)]
    inputs = torch.zeros(1, 1, files.shape.dim)
    decoder.prefill(pair[0], inputs)
    decoder.prefill(pair[1], inputs + 3e38)
    rows = SamplingParams.from_lists([0, 0], [0.0, 0.0], [0, 0], [0.0, 0.0], CPU)
    drawn = decoder.step_and_sample(pair, [[0] * 4] * 2, torch.ones(2), rows, [0, 0])
    assert min(drawn[0]) >= 0


def test_calls_from_several_threads_have_their_own_teams() -> None:
    found: list[torch.Tensor] = []

    def work() -> None:
        layer = NativeOps(bindings.ThreadPool(2)).conv1d(torch.ones(16, 4, 3), None, 1, 1)
        found.extend(layer(torch.ones(1, 64, 4)) for _ in range(50))

    several = [threading.Thread(target=work) for _ in range(4)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert len(found) == 200
    assert all((each == 12).all() for each in found)


def test_a_kernel_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their fields are named twice, in C and in Python; and what cannot be loaded is as if it were not there."""
    bindings.library.cache_clear()
    with monkeypatch.context() as patch:
        sizes = bindings._LAYOUTS["decoder_layout"]
        grown = [size + 8 * (size == ctypes.sizeof(bindings.SequenceStep)) for size in sizes]
        assert grown != sizes
        patch.setitem(bindings._LAYOUTS, "decoder_layout", grown)
        assert bindings.library() is None
    bindings.library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(bindings, "FOLDER", tmp_path)
        assert bindings.library() is None
    bindings.library.cache_clear()
    assert bindings.library() is not None


def test_a_matrix_with_what_is_no_number_is_seen(kind: Any) -> None:
    files = open_files(Source("tiny", folder(MONO)))
    weights = read_weights(files.source, files.shape, files.state, CPU, INT8)
    layer = weights.layers[1].linear1
    assert isinstance(layer, DenseLinear)
    layer.weight = layer.weight.clone()
    layer.weight[5, 3] = torch.nan
    decoder = CpuDecoder(pack_weights(weights), 1, bindings.ThreadPool(1))
    one = decoder.open(torch.zeros(1, files.shape.dim), False, 30)
    assert decoder.step([one], torch.zeros(1, 4, dtype=torch.int64), torch.ones(1)).isnan().all()
