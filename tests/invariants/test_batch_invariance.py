"""Invariant: batch composition does not change the output of a request, by the kernel or with `deterministic`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import GenerationParams
from musicgen_bento.precision import FLOAT32, FLOAT32_NATIVE, INT8, Precision
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import MONO, PREPEND, STEREO, EventLog, create_engine, params, run_request, tokens_of

SHORT_WINDOW = replace(MONO, window=2, seed=5)  # in seconds; requests need several windows
BATCH_INVARIANT_PRECISIONS = pytest.mark.parametrize(
    "precision", [FLOAT32_NATIVE, INT8, FLOAT32], ids=["float32", "int8", "float32 by torch"]
)


def batch_invariant_engine(config: RandomModelConfig, precision: Precision, slots: int = 3) -> Engine:
    return create_engine(config, max_slots=slots, deterministic=not precision.native_kernel, precision=precision)


@cache
def run_alone(
    config: RandomModelConfig, precision: Precision, request: GenerationParams
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    result = run_request(batch_invariant_engine(config, precision), request)
    return result.tokens, result.events.audio


requests = st.builds(
    params,
    prompt=st.sampled_from(["calm piano", "epic orchestral cinematic score", "techno", "word " * 80]),
    duration=st.sampled_from([0.1, 0.3, 0.5, 0.8]),
    seed=st.sampled_from([0, 7, 2**32 - 1]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 20, 250]),
    top_p=st.sampled_from([0.0, 0.9]),
    cfg_coef=st.sampled_from([1.0, 3.0]),
)


@BATCH_INVARIANT_PRECISIONS
@settings(max_examples=25, deadline=None)
@given(
    config=st.sampled_from([MONO, STEREO, PREPEND]),
    script=st.lists(st.tuples(requests, st.integers(0, 30), st.one_of(st.none(), st.integers(0, 40))), max_size=9),
)
def test_batch_composition_does_not_change_output(
    precision: Precision, config: RandomModelConfig, script: list[Any]
) -> None:
    """A script is a list of (request, step at which it is added, steps until it is aborted)."""
    engine = batch_invariant_engine(config, precision)
    logs = [EventLog() for _ in script]
    tokens: dict[int, NDArray[np.int64]] = {}
    for step in range(1_000):
        for number, (request, added_at, steps_until_abort) in enumerate(script):
            if step == added_at:
                engine.add_request(str(number), request, logs[number])
                tokens[number] = tokens_of(engine, str(number))
            if steps_until_abort is not None and step == added_at + steps_until_abort:
                engine.abort(str(number))
        if not engine.step() and step > 80:
            break
    for number, (request, _, _) in enumerate(script):
        expected_tokens, expected_audio = run_alone(config, precision, request)
        audio = logs[number].audio
        if audio.size:
            assert np.array_equal(audio, expected_audio[:, : audio.shape[1]])  # also before an abort
        if logs[number].end is not None:
            assert np.array_equal(tokens[number], expected_tokens)
            assert audio.shape == expected_audio.shape


@BATCH_INVARIANT_PRECISIONS
def test_batch_composition_does_not_change_output_beyond_the_first_window(precision: Precision) -> None:
    engine = batch_invariant_engine(SHORT_WINDOW, precision)
    long, other = params(duration=4.0, seed=3), params("techno", duration=3.0, seed=4)
    logs = {"long": EventLog(), "other": EventLog()}
    engine.add_request("long", long, logs["long"])
    for _ in range(70):
        engine.step()
    engine.add_request("other", other, logs["other"])
    while engine.step():
        pass
    assert np.array_equal(logs["long"].audio, run_alone(SHORT_WINDOW, precision, long)[1])
    assert np.array_equal(logs["other"].audio, run_alone(SHORT_WINDOW, precision, other)[1])


@pytest.mark.parametrize("config", [MONO, STEREO, PREPEND])
def test_torch_without_deterministic_is_batch_invariant_up_to_rounding(config: RandomModelConfig) -> None:
    """In a batch the products round differently, which does not change the tokens of this greedy request."""
    engine = create_engine(config, max_slots=4, precision=FLOAT32)
    logs = [EventLog() for _ in range(4)]
    for number, log in enumerate(logs):
        engine.add_request(str(number), params(duration=0.3, seed=number, temperature=0), log)
    while engine.step():
        pass
    for log in logs:
        expected = run_request(
            create_engine(config, precision=FLOAT32), params(duration=0.3, temperature=0)
        ).events.audio
        np.testing.assert_allclose(log.audio, expected, atol=1e-5)
