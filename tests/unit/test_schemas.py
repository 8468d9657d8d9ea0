"""What clients may send: the limits of every field, and rejected values."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from musicgen_bento import audio
from musicgen_bento.engine.types import GenerationParams
from musicgen_bento.errors import MusicGenError, QueueFull
from musicgen_bento.schemas import MAX_SEED, ErrorBody, GenerationRequest, ModelInfo

DEFAULTS = {
    "prompt": "x",
    "model": None,
    "duration": 30.0,
    "seed": None,
    "temperature": 1.0,
    "top_k": 250,
    "top_p": 0.0,
    "cfg_coef": 3.0,
    "normalize": "loudness",
}


def test_only_the_prompt_is_required() -> None:
    assert GenerationRequest(prompt="x").model_dump() == DEFAULTS


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x" * 2000},
        {"prompt": "two\nlines,\r\na tab\t"},
        {"prompt": "日本の琴 🎻 مقام"},
        {"prompt": " x "},
        {"model": "facebook/musicgen-medium"},
        {"model": "m" * 200},
        {"duration": 0.1},
        {"duration": 60},
        {"duration": 1e6},  # the server checks the maximum, the schema does not
        {"seed": 0},
        {"seed": MAX_SEED},
        {"temperature": 0},
        {"temperature": 10},
        {"top_k": 0},
        {"top_k": 10_000},
        {"top_p": 0},
        {"top_p": 1},
        {"cfg_coef": 0},
        {"cfg_coef": 1},
        {"cfg_coef": 20},
        *({"normalize": strategy} for strategy in ("loudness", "peak", "rms", "clip", "none")),
    ],
)
def test_values_at_the_limits_are_accepted(fields: dict[str, Any]) -> None:
    body = json.dumps(DEFAULTS | fields)
    assert GenerationRequest.model_validate_json(body).model_dump() == DEFAULTS | fields


NUMERIC_FIELDS = ("duration", "temperature", "top_p", "cfg_coef")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", "   \n"),
        ("prompt", "x" * 2001),
        ("prompt", None),
        ("prompt", 7),
        ("prompt", ["x"]),
        *(("prompt", f"a{chr(code)}b") for code in [*range(9), 11, 12, *range(14, 32), 127]),
        ("model", ""),
        ("model", "m" * 201),
        ("model", 1),
        ("duration", 0.0999),
        ("duration", 0),
        ("duration", -1),
        ("duration", "long"),
        ("duration", None),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("seed", 1.5),
        ("temperature", -0.1),
        ("temperature", 10.1),
        ("top_k", -1),
        ("top_k", 10_001),
        ("top_k", 2.5),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("cfg_coef", -0.1),
        ("cfg_coef", 20.1),
        ("normalize", "loud"),
        ("normalize", None),
        ("durration", 10),
        ("format", "mp3"),
        *((field, value) for field in NUMERIC_FIELDS for value in (float("nan"), float("inf"), float("-inf"))),
    ],
)
def test_the_error_of_a_rejected_value_names_the_field(field: str, value: object) -> None:
    body = {"prompt": "x", field: value}
    for parse in (
        lambda: GenerationRequest.model_validate(body),
        lambda: GenerationRequest.model_validate_json(json.dumps(body)),  # NaN and Infinity as Python writes them
    ):
        with pytest.raises(ValidationError) as caught:
            parse()
        assert caught.value.errors()[0]["loc"][0] == field


def test_the_prompt_is_required() -> None:
    with pytest.raises(ValidationError):
        GenerationRequest.model_validate({"duration": 10})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*DEFAULTS, "other"]), json_values))
def test_every_accepted_body_is_within_the_ranges(body: dict[str, Any]) -> None:
    try:
        request = GenerationRequest.model_validate(body)
    except ValidationError:
        return
    assert 1 <= len(request.prompt) <= 2000
    assert request.prompt.strip()
    assert 0.1 <= request.duration < float("inf")
    assert request.seed is None or 0 <= request.seed <= MAX_SEED
    assert 0 <= request.temperature <= 10
    assert 0 <= request.top_p <= 1
    assert 0 <= request.cfg_coef <= 20


def test_every_field_is_described_for_the_openapi_document() -> None:
    for model in (GenerationRequest, ModelInfo):
        assert all(field.description for field in model.model_fields.values())


def test_the_schema_equals_the_parameters_of_the_code() -> None:
    assert GenerationRequest.model_fields["normalize"].annotation == get_type_hints(audio.normalize)["strategy"]
    params = GenerationParams("x", 1.0, 0)
    for name in ("temperature", "top_k", "top_p", "cfg_coef"):
        assert GenerationRequest.model_fields[name].default == getattr(params, name)


@pytest.mark.parametrize("error", [MusicGenError("Broken."), QueueFull("Full.", hint="Wait.", retry_after=3.0)])
def test_every_error_has_the_documented_body(error: MusicGenError) -> None:
    assert ErrorBody.model_validate(error.to_dict()).error.code == error.code
