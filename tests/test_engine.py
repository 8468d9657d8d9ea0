"""One model's engine, step by step."""

from __future__ import annotations

from musicgen_bento.engine.engine import ModelEngine
from musicgen_bento.engine.types import Started
from tests.models import Story, engine, params


def test_prompts_do_not_stop_the_sound_of_those_who_play() -> None:
    """T5 may take longer for a crowd's prompts than a clip has sound ahead: one joins in each step."""
    model, crowd = engine(slots=5), [Story() for _ in range(4)]
    player = Story()
    model.submit("player", params(duration=2.0), player)
    model.step()
    for number, story in enumerate(crowd):
        model.submit(f"crowd-{number}", params(), story)
    for joined in range(1, 5):
        before = position(model)
        model.step()
        assert sum(any(isinstance(event, Started) for event in story.events) for story in crowd) == joined
        assert position(model) == before + 1


def position(model: ModelEngine) -> int:
    """How far the player is."""
    return next(slot.clip.position for slot in model._running if slot.ticket == "player")
