"""One error tree: every leaf has its status and code, and survives pickling and JSON."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_bento import errors
from musicgen_bento.errors import InvalidRequest, MusicGenError, QueueFull

TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MusicGenError)]

made = st.builds(
    lambda kind, *args: kind(args[0], hint=args[1], field=args[2], retry_after=args[3]),
    st.sampled_from(TREE),
    st.text(),
    st.text(),
    st.none() | st.text(min_size=1),
    st.none() | st.floats(0, 1e6),
)


@given(made)
def test_an_error_survives_pickle_and_json(error: MusicGenError) -> None:
    for copy in (
        pickle.loads(pickle.dumps(error)),
        MusicGenError.from_dict(json.loads(json.dumps(error.to_dict()))),
    ):
        assert type(copy) is type(error)
        assert copy.status == error.status
        assert vars(copy) == vars(error)
        assert str(copy) == str(error)


def test_the_shape_of_an_answer() -> None:
    assert InvalidRequest("Bad.", hint="Do better.", field="top_k").to_dict() == {
        "error": {"code": "invalid", "message": "Bad.", "hint": "Do better.", "field": "top_k"}
    }
    assert QueueFull("Full.", retry_after=2.5).to_dict()["error"]["retry_after"] == 2.5


def test_a_code_of_a_newer_version_is_a_plain_error() -> None:
    error = MusicGenError.from_dict({"error": {"code": "on_the_moon", "message": "Far."}})
    assert type(error) is MusicGenError
    assert (error.message, error.hint, error.field, error.retry_after) == ("Far.", "", None, None)


def test_codes_are_unique_and_stable_words() -> None:
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch("[a-z_]+", code) for code in codes)


@pytest.mark.parametrize("kind", TREE)
def test_status(kind: type[MusicGenError]) -> None:
    assert kind.status in {400, 404, 405, 408, 409, 413, 415, 429, 500, 503}
    parent = kind.__mro__[1]
    if parent not in (MusicGenError, Exception):
        assert kind.status == parent.status  # type: ignore[attr-defined]


def test_the_tree_that_is_drawn_is_the_tree() -> None:
    drawn = re.findall(r"(\w+) +(\d{3}) (\w+)", errors.__doc__ or "")
    assert {(kind.__name__, str(kind.status), kind.code) for kind in TREE} == set(drawn)


def test_an_error_reads_as_a_sentence_and_its_hint() -> None:
    assert str(InvalidRequest("Bad.", hint="Do better.")) == "Bad. Do better."
    assert str(InvalidRequest("Bad.")) == "Bad."
