"""Law 2. A clip is bit-equal alone, in any company, and whoever joins or leaves: by the kernel or `deterministic`."""

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
from tests.support.tiny_checkpoints import Recipe
from tests.support.tiny_models import MONO, PREPEND, STEREO, EventLog, engine, make_one, params

SHORT_WINDOW = replace(MONO, window=2, seed=5)  # so short that clips leave it
EXACT = pytest.mark.parametrize("how", [FLOAT32_NATIVE, INT8, FLOAT32], ids=["float32", "int8", "float32 by torch"])


def exact(recipe: Recipe, how: Precision, slots: int = 3) -> Engine:
    return engine(recipe, slots=slots, deterministic=not how.native_kernel, how=how)


@cache
def alone(recipe: Recipe, how: Precision, request: GenerationParams) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    result = make_one(exact(recipe, how), request)
    return result.tokens, result.story.audio


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


@EXACT
@settings(max_examples=25, deadline=None)
@given(
    recipe=st.sampled_from([MONO, STEREO, PREPEND]),
    script=st.lists(st.tuples(requests, st.integers(0, 30), st.one_of(st.none(), st.integers(0, 40))), max_size=9),
)
def test_whoever_joins_leaves_or_is_cancelled(how: Precision, recipe: Recipe, script: list[Any]) -> None:
    """A script is a list of (request, step at which it joins, steps after which it is cancelled)."""
    model = exact(recipe, how)
    stories = [EventLog() for _ in script]
    tokens: dict[int, NDArray[np.int64]] = {}
    for step in range(1_000):
        for number, (request, joins, leaves) in enumerate(script):
            if step == joins:
                model.add_request(str(number), request, stories[number])
                tokens[number] = model._requests[str(number)].tokens.tokens
            if leaves is not None and step == joins + leaves:
                model.abort(str(number))
        if not model.step() and step > 80:
            break
    for number, (request, _, _) in enumerate(script):
        expected_tokens, expected_audio = alone(recipe, how, request)
        heard = stories[number].audio
        if heard.size:
            assert np.array_equal(heard, expected_audio[:, : heard.shape[1]])  # what came before a cancel, too
        if stories[number].end is not None:
            assert np.array_equal(tokens[number], expected_tokens)
            assert heard.shape == expected_audio.shape


@EXACT
def test_past_the_window_in_company(how: Precision) -> None:
    model = exact(SHORT_WINDOW, how)
    long, other = params(duration=4.0, seed=3), params("techno", duration=3.0, seed=4)
    stories = {"long": EventLog(), "other": EventLog()}
    model.add_request("long", long, stories["long"])
    for _ in range(70):
        model.step()
    model.add_request("other", other, stories["other"])
    while model.step():
        pass
    assert np.array_equal(stories["long"].audio, alone(SHORT_WINDOW, how, long)[1])
    assert np.array_equal(stories["other"].audio, alone(SHORT_WINDOW, how, other)[1])


@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_without_it_rows_are_independent_up_to_rounding(recipe: Recipe) -> None:
    """In a batch the products round differently; what is heard before the first different token does not."""
    crowd = engine(recipe, slots=4, how=FLOAT32)
    stories = [EventLog() for _ in range(4)]
    for number, story in enumerate(stories):
        crowd.add_request(str(number), params(duration=0.3, seed=number, temperature=0), story)
    while crowd.step():
        pass
    for story in stories:
        expected = make_one(engine(recipe, how=FLOAT32), params(duration=0.3, temperature=0)).story.audio
        np.testing.assert_allclose(story.audio, expected, atol=1e-5)
