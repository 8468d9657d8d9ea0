"""Resolves a model's name to the location of its files."""

from __future__ import annotations

import re
from pathlib import Path

from musicgen_bento.checkpoint.source import Source, melody_not_supported
from musicgen_bento.errors import UnknownModel
from musicgen_bento.model_catalog import CATALOG, find_model

_NAME_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_HUB_ID = re.compile(f"{_NAME_PART}/{_NAME_PART}")


def resolve_model(model: str, *, any_model: bool = False, folders: bool = False) -> Source:
    """Return the source of a model.

    Args:
        model: an id or alias of the catalogue; or, if allowed, a folder or a repository.
        any_model: whether the model may be any repository on the hub.
        folders: whether the model may be a folder on this machine.

    Raises:
        UnknownModel: the name is none of these.
        InvalidRequest: the model needs a melody, which is not supported yet.
    """
    card = find_model(model)
    if card is not None:
        if "melody" in card.conditioning:
            raise melody_not_supported(card.id)
        return Source(card.id, card.folder or card.id)
    if folders and Path(model).is_dir():
        # The model's name is the folder's name only: responses must not contain paths of the server.
        return Source(Path(model).resolve().name, Path(model))
    if any_model and _HUB_ID.fullmatch(model):
        return Source(model, model)
    raise UnknownModel(
        f"There is no model named {model[:100]!r}.",
        hint=f"Use one of {', '.join(card.id for card in CATALOG)}.",
        field="model",
    )
