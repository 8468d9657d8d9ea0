"""The catalogue contains every released MusicGen, by every name that documents use."""

from __future__ import annotations

import pytest

from musicgen_bento.model_catalog import CATALOG, ModelCard, find_model

RELEASED = {  # name on the hub: (channels, accepts a melody)
    "facebook/musicgen-small": (1, False),
    "facebook/musicgen-medium": (1, False),
    "facebook/musicgen-large": (1, False),
    "facebook/musicgen-melody": (1, True),
    "facebook/musicgen-melody-large": (1, True),
    "facebook/musicgen-stereo-small": (2, False),
    "facebook/musicgen-stereo-medium": (2, False),
    "facebook/musicgen-stereo-large": (2, False),
    "facebook/musicgen-stereo-melody": (2, True),
    "facebook/musicgen-stereo-melody-large": (2, True),
}


def test_the_catalogue_contains_every_released_model() -> None:
    assert {card.id for card in CATALOG} == {"demo", *RELEASED}
    for name, (channels, melody) in RELEASED.items():
        card = find_model(name)
        assert card is not None
        assert (card.id, card.channels, "melody" in card.conditioning) == (name, channels, melody)
        assert (card.sample_rate, card.window, card.license) == (32_000, 30.0, "CC-BY-NC 4.0")


@pytest.mark.parametrize(
    ("alias", "model_id"),
    [
        ("facebook/musicgen-small-stereo", "facebook/musicgen-stereo-small"),
        ("facebook/musicgen-medium-stereo", "facebook/musicgen-stereo-medium"),
        ("facebook/musicgen-large-stereo", "facebook/musicgen-stereo-large"),
        ("facebook/musicgen-melody-stereo", "facebook/musicgen-stereo-melody"),
        ("facebook/musicgen-melody-large-stereo", "facebook/musicgen-stereo-melody-large"),
        ("musicgen-small", "facebook/musicgen-small"),
        ("small", "facebook/musicgen-small"),
        ("stereo-large", "facebook/musicgen-stereo-large"),
        ("melody", "facebook/musicgen-melody"),
        (" Facebook/MusicGen-Small ", "facebook/musicgen-small"),
        ("DEMO", "demo"),
    ],
)
def test_aliases_resolve_to_the_hub_name(alias: str, model_id: str) -> None:
    card = find_model(alias)
    assert card is not None
    assert card.id == model_id


@pytest.mark.parametrize("name", ["", " ", "facebook/musicgen", "facebook/musicgen-tiny", "../demo", "demo/", "\x00"])
def test_unknown_names_are_not_found(name: str) -> None:
    assert find_model(name) is None


def test_names_are_unique() -> None:
    names = [name.lower() for card in CATALOG for name in (card.id, *card.aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("card", CATALOG, ids=lambda card: card.id)
def test_every_model_card_has_parameters_licence_and_download_size(card: ModelCard) -> None:
    assert card.parameters > 0
    assert card.license
    assert "text" in card.conditioning
    if card.folder is None:
        # float16 weights, and the codec and T5, which have 1.13 GB together
        assert 1.1e9 + 2 * card.parameters < card.download_bytes < 1.2e9 + 2 * card.parameters
    else:
        assert card.download_bytes == 0
        assert card.note


def _parameters(dim: int, layers: int, codebooks: int, *, melody: bool) -> int:
    """Count the parameters of AudioCraft's configuration of a size."""
    attention = 4 * dim * dim
    block = attention + 8 * dim * dim + 4 * dim  # feed-forward of four times the width; two norms
    if not melody:
        block += attention + 2 * dim  # cross-attention and its norm
    inputs = codebooks * (2048 + 1) * dim
    outputs = codebooks * 2048 * dim + 2 * dim
    conditions = 768 * dim + dim + ((12 * dim + dim) if melody else 0)
    return layers * block + inputs + outputs + conditions


@pytest.mark.parametrize("name", list(RELEASED))
def test_parameters_equal_those_of_the_architecture(name: str) -> None:
    card = find_model(name)
    assert card is not None
    melody = "melody" in name
    size = "large" if "large" in name else "medium" if melody or "medium" in name else "small"
    dim, layers = {"small": (1024, 24), "medium": (1536, 48), "large": (2048, 48)}[size]
    assert card.parameters == _parameters(dim, layers, 4 * card.channels, melody=melody)
