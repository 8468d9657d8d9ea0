"""Writes random checkpoints in AudioCraft's released format, tiny by default, for the real loader to load."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from audiocraft.models import builders
from audiocraft.modules.conditioners import T5Conditioner
from omegaconf import OmegaConf
from transformers import T5Config, T5EncoderModel

from training import released, text
from training.plan import Plan

PROMPTS = [
    "epic orchestral cinematic score",
    "dark ambient techno loop with heavy bass",
    "lofi hip hop beat calm piano",
]


@dataclass(frozen=True)
class Recipe:
    """What kind of MusicGen to write. The defaults make one of a few hundred kilobytes."""

    dim: int = 64
    heads: int = 4
    layers: int = 2
    filters: int = 4
    latent: int = 128
    text_dim: int = 64
    text_layers: int = 2
    text_heads: int = 4
    text_hidden: int = 128
    text_vocab: int = 128
    window: float = 30
    stereo: bool = False
    prepend: bool = False
    half: bool = False
    half_codec: bool = False
    seed: int = 0


# As large as facebook/musicgen-small, with EnCodec and T5 at their released sizes: 2 GB.
SMALL = Recipe(
    dim=1024,
    heads=16,
    layers=24,
    filters=64,
    text_dim=768,
    text_layers=12,
    text_heads=12,
    text_hidden=3072,
    text_vocab=32128,
    half=True,
)


def write(folder: Path, recipe: Recipe = Recipe()) -> Path:
    """Write `state_dict.bin`, `compression_state_dict.bin` and `t5/` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    write_t5(folder / "t5", recipe)
    T5Conditioner.MODELS.append(str(folder / "t5"))
    T5Conditioner.MODELS_DIMS[str(folder / "t5")] = recipe.text_dim
    config = configuration(recipe, str(folder / "t5"))
    lm, codec = builders.get_lm_model(config), build_codec(config)
    released.pack(lm.state_dict(), config, folder / "state_dict.bin", half=recipe.half)
    released.pack(codec.state_dict(), config, folder / "compression_state_dict.bin", half=recipe.half_codec)
    return folder


def build_codec(config: Any) -> Any:
    """A random codec, as if k-means had run: codebooks start at zero unless it has."""
    codec = builders.get_compression_model(config)
    for module in codec.modules():
        if hasattr(module, "embed") and hasattr(module, "inited"):
            module.embed.data.normal_()
            module.inited.data.fill_(1)
    return codec


def write_hub_cache(cache: Path, repo: str, recipe: Recipe) -> None:
    """Write a model into a hub cache under its name there, and T5 as t5-base."""
    folder = write(snapshot(cache, repo), recipe)
    shutil.move(folder / "t5", snapshot(cache, "t5-base"))
    package = torch.load(folder / "state_dict.bin", weights_only=True)
    package["xp.cfg"] = package["xp.cfg"].replace(str(folder / "t5"), "t5-base")
    torch.save(package, folder / "state_dict.bin")


def snapshot(cache: Path, repo: str) -> Path:
    """Where the hub's client looks for a repository's files."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0123456789abcdef")
    (home / "snapshots").mkdir()
    return home / "snapshots" / "0123456789abcdef"


def write_t5(folder: Path, recipe: Recipe) -> None:
    """A small T5 encoder with a tokenizer trained on a few lines."""
    folder.mkdir(parents=True, exist_ok=True)
    text.unigram(PROMPTS * 20, 100).save_pretrained(folder)
    config = T5Config(
        vocab_size=recipe.text_vocab,
        d_model=recipe.text_dim,
        d_kv=recipe.text_dim // recipe.text_heads,
        d_ff=recipe.text_hidden,
        num_layers=recipe.text_layers,
        num_heads=recipe.text_heads,
    )
    T5EncoderModel(config).save_pretrained(folder)


def configuration(recipe: Recipe, t5: str) -> Any:
    """The released text-to-music values: training's, where it has no others of its own."""
    plan = Plan(
        dim=recipe.dim,
        heads=recipe.heads,
        layers=recipe.layers,
        filters=recipe.filters,
        latent=recipe.latent,
        lm_seconds=recipe.window,
    )
    stereo = {
        "channels": 2,
        "codebooks_pattern": {"delay": {"delays": [0, 0, 1, 1, 2, 2, 3, 3]}},
        "transformer_lm": {"n_q": 8},
        "interleave_stereo_codebooks": {"use": True},
    }
    return OmegaConf.merge(
        released.configuration(plan),
        {
            "transformer_lm": {"card": 2048},
            "classifier_free_guidance": {"training_dropout": 0.3},
            "conditioners": {"description": {"t5": {"name": t5, "word_dropout": 0.3}}},
            "seanet": {"encoder": {"lstm": 2}},
            "rvq": {"bins": 2048, "decay": 0.99, "threshold_ema_dead_code": 2},
        },
        stereo if recipe.stereo else {},
        {"fuser": {"prepend": ["description"], "cross": []}} if recipe.prepend else {},
    )


if __name__ == "__main__":
    # the built-in model, until one is trained
    write(Path(sys.argv[1]), Recipe(latent=32, half=True, half_codec=True, seed=1))
