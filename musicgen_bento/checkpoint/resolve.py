"""From the name a client or an operator uses to where the model's files are."""

from __future__ import annotations

import re
from pathlib import Path

from musicgen_bento.checkpoint.source import Source
from musicgen_bento.errors import InvalidRequest, UnknownModel
from musicgen_bento.model_catalog import CATALOG, find_model

_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_HUB_ID = re.compile(f"{_PART}/{_PART}")


def resolve_model(model: str, *, any_model: bool = False, folders: bool = False) -> Source:
    """The source of a model.

    Args:
        model: an id or alias of the catalogue; else, where that is allowed, a folder or a repository.
        any_model: whether it may be any repository on the hub.
        folders: whether it may be a folder of this machine.

    Raises:
        UnknownModel: it is none of these.
        InvalidRequest: it needs a melody, which is not served yet.
    """
    card = find_model(model)
    if card is not None:
        if "melody" in card.conditioning:
            raise InvalidRequest(
                f"{card.id} follows a melody, which this version does not serve yet.",
                hint="Take a model conditioned on text alone, such as facebook/musicgen-medium.",
                field="model",
            )
        return Source(card.id, card.folder or card.id)
    if folders and Path(model).is_dir():
        # by its own name alone: where an operator keeps it is nobody's business
        return Source(Path(model).resolve().name, Path(model))
    if any_model and _HUB_ID.fullmatch(model):
        return Source(model, model)
    raise UnknownModel(
        f"There is no model named {model[:100]!r} here.",
        hint=f"Take one of {', '.join(card.id for card in CATALOG)}.",
        field="model",
    )
