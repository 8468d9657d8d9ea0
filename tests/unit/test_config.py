"""Settings from MUSICGEN_* variables: defaults, accepted values, rejected values."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from musicgen_bento.config import Settings
from musicgen_bento.model_catalog import find_model


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("MUSICGEN_"):
            monkeypatch.delenv(name)


def test_default_settings_are_the_documented_values() -> None:
    settings = Settings()
    assert settings.default_model == "demo"
    assert settings.preload == ("demo",)
    assert (settings.max_queue, settings.max_duration, settings.max_slots) == (64, 300.0, None)
    assert not any((settings.deterministic, settings.allow_any_model, settings.allow_anonymous))
    assert find_model(settings.default_model) is not None


def test_a_variable_sets_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "default_model": ("facebook/musicgen-small", "facebook/musicgen-small"),
        "preload": ("demo, facebook/musicgen-small,", ("demo", "facebook/musicgen-small")),
        "device": ("cuda:1", "cuda:1"),
        "precision": ("float16", "float16"),
        "memory_budget": ("6GB", 6_000_000_000),
        "max_slots": ("8", 8),
        "max_queue": ("0", 0),
        "max_duration": ("60.5", 60.5),
        "deterministic": ("1", True),
        "allow_any_model": ("true", True),
        "allow_anonymous": ("yes", True),
        "job_megabytes": ("64", 64),
        "response_buffer_megabytes": ("65", 65),
        "job_minutes": ("2.5", 2.5),
        "drain_seconds": ("5", 5.0),
    }
    untested = set(Settings.model_fields) - set(values)
    assert not untested
    for name, (text, _) in values.items():
        monkeypatch.setenv(f"MUSICGEN_{name.upper()}", text)
    settings = Settings()
    assert {name: getattr(settings, name) for name in values} == {name: value for name, (_, value) in values.items()}


@pytest.mark.parametrize("text", ["", " ", ","])
def test_an_empty_preload_loads_nothing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MUSICGEN_PRELOAD", text)
    assert Settings().preload == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MAX_QUEUE", "-1"),
        ("MAX_QUEUE", "many"),
        ("MEMORY_BUDGET", "0"),
        ("MEMORY_BUDGET", "-1"),
        ("MEMORY_BUDGET", "lots"),
        ("MAX_SLOTS", "0"),
        ("MAX_SLOTS", "257"),
        ("MAX_DURATION", "0"),
        ("MAX_DURATION", "nan"),
        ("MAX_DURATION", "inf"),
        ("PRECISION", "float8"),
        ("DETERMINISTIC", "perhaps"),
        ("DRAIN_SECONDS", "-1"),
        ("DRAIN_SECONDS", "nan"),
    ],
)
def test_the_error_of_a_value_out_of_range_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(f"MUSICGEN_{name}", text)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert name.lower() in str(caught.value)


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().max_queue = 1  # type: ignore[misc]


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())
