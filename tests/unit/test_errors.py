"""Every error of the tree has a status and a code, and survives pickling and JSON."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_bento import errors
from musicgen_bento.errors import InvalidRequest, MusicGenError, QueueFull

ERROR_TYPES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, MusicGenError)]

errors_of_any_type = st.builds(
    lambda error_type, *args: error_type(args[0], hint=args[1], field=args[2], retry_after=args[3]),
    st.sampled_from(ERROR_TYPES),
    st.text(),
    st.text(),
    st.none() | st.text(min_size=1),
    st.none() | st.floats(0, 1e6),
)


@given(errors_of_any_type)
def test_an_error_survives_pickle_and_json(error: MusicGenError) -> None:
    for copy in (
        pickle.loads(pickle.dumps(error)),
        MusicGenError.from_dict(json.loads(json.dumps(error.to_dict()))),
    ):
        assert type(copy) is type(error)
        assert copy.status == error.status
        assert vars(copy) == vars(error)
        assert str(copy) == str(error)


def test_error_body_has_code_message_hint_field_and_retry_time() -> None:
    assert InvalidRequest("Bad.", hint="Do better.", field="top_k").to_dict() == {
        "error": {"code": "invalid", "message": "Bad.", "hint": "Do better.", "field": "top_k"}
    }
    assert QueueFull("Full.", retry_after=2.5).to_dict()["error"]["retry_after"] == 2.5


def test_an_unknown_code_becomes_a_plain_error() -> None:
    error = MusicGenError.from_dict({"error": {"code": "on_the_moon", "message": "Far."}})
    assert type(error) is MusicGenError
    assert (error.message, error.hint, error.field, error.retry_after) == ("Far.", "", None, None)


def test_codes_are_unique_lower_case_words() -> None:
    codes = [error_type.code for error_type in ERROR_TYPES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch("[a-z_]+", code) for code in codes)


@pytest.mark.parametrize("error_type", ERROR_TYPES)
def test_an_error_has_the_status_of_its_base_class(error_type: type[MusicGenError]) -> None:
    assert error_type.status in {400, 404, 405, 408, 409, 413, 415, 429, 500, 503}
    parent = error_type.__mro__[1]
    if parent not in (MusicGenError, Exception):
        assert error_type.status == parent.status  # type: ignore[attr-defined]


def test_the_docstring_lists_every_error_with_status_and_code() -> None:
    documented = re.findall(r"(\w+) +(\d{3}) (\w+)", errors.__doc__ or "")
    assert {(error_type.__name__, str(error_type.status), error_type.code) for error_type in ERROR_TYPES} == set(
        documented
    )


def test_the_text_of_an_error_is_its_message_and_hint() -> None:
    assert str(InvalidRequest("Bad.", hint="Do better.")) == "Bad. Do better."
    assert str(InvalidRequest("Bad.")) == "Bad."


def test_shutting_down_has_a_default_message_and_time() -> None:
    error = errors.ShuttingDown()
    assert str(error) == "The server is shutting down. Retry in a few seconds."
    assert error.retry_after == 5.0
    assert vars(MusicGenError.from_dict(error.to_dict())) == vars(error)
