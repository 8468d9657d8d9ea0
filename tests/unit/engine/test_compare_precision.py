"""The distance of a precision from float32, and the command `verify`."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.cli.program import PROGRAM
from musicgen_bento.engine import compare_precision
from musicgen_bento.lm import packed_weights
from musicgen_bento.lm.linear import DenseLinear, Linear
from musicgen_bento.native import bindings
from musicgen_bento.precision import FLOAT16_WEIGHTS, FLOAT32_NATIVE, INT8
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import MONO, PREPEND, STEREO, folder


@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_distance_is_zero_for_float32_and_grows_with_fewer_bits(recipe: RandomModelConfig) -> None:
    files = loading.open_files(Source("tiny", folder(recipe)))
    distances = list(compare_precision.measure_distances(files, [FLOAT32_NATIVE, FLOAT16_WEIGHTS, INT8], seconds=0.2))
    assert [distance.contexts for distance in distances] == ["greedy", "sampled"] * 3
    assert [distance.precision for distance in distances[::2]] == ["float32", "float16", "int8"]
    codebooks = 8 if recipe.stereo else 4
    for same, half, int8 in zip(distances[:2], distances[2:4], distances[4:], strict=True):
        assert (
            same.distributions
            == half.distributions
            == int8.distributions
            == 10 * codebooks * len(compare_precision.PROMPTS)
        )
        assert same.kl < 1e-7
        assert same.agreement == 1
        assert same.is_close
        assert same.kl <= half.kl < int8.kl <= int8.kl_99


def test_wrong_weights_are_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    files = loading.open_files(Source("tiny", folder(MONO)))
    pack = packed_weights._Packer.pack

    def pack_reversed(self: packed_weights._Packer, linear: Linear) -> bindings.Matrix:
        return pack(self, DenseLinear(linear.weight.flip(0).contiguous()))

    monkeypatch.setattr(packed_weights._Packer, "pack", pack_reversed)
    assert not any(distance.is_close for distance in compare_precision.measure_distances(files, [INT8], seconds=0.2))


def test_verify_prints_a_table_and_a_verdict() -> None:
    command = ["verify", str(folder(MONO)), "-p", "float16", "--seconds", "0.2"]
    result = CliRunner().invoke(PROGRAM, command, catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["precision", "contexts"]
    assert [line.split()[:2] for line in lines[1:3]] == [["float16", "greedy"], ["float16", "sampled"]]
    assert {line.split()[-1] for line in lines[1:3]} == {str(10 * 4 * len(compare_precision.PROMPTS))}
    assert lines[3].startswith("float16: as good as float32 for ")
