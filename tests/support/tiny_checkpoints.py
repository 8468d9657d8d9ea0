"""Writes random checkpoints in AudioCraft's released format, tiny by default; the production loader reads them."""

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
class RandomModelConfig:
    """Sizes and kind of a random MusicGen. The defaults give files of a few hundred kilobytes.

    Attributes:
        window: seconds that the model reads in one sequence.
        prepend: whether the text goes before the audio tokens instead of through cross-attention.
        half: whether the language model's file is in float16.
        half_codec: whether the codec's file is in float16.
    """

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


# The sizes of facebook/musicgen-small, with EnCodec and T5 at their released sizes: 2 GB.
SMALL = RandomModelConfig(
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


def write_checkpoint(folder: Path, model: RandomModelConfig = RandomModelConfig()) -> Path:
    """Write `state_dict.bin`, `compression_state_dict.bin` and `t5/` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(model.seed)
    write_t5(folder / "t5", model)
    T5Conditioner.MODELS.append(str(folder / "t5"))
    T5Conditioner.MODELS_DIMS[str(folder / "t5")] = model.text_dim
    config = audiocraft_config(model, str(folder / "t5"))
    lm, codec = builders.get_lm_model(config), build_codec(config)
    released.pack(lm.state_dict(), config, folder / "state_dict.bin", half=model.half)
    released.pack(codec.state_dict(), config, folder / "compression_state_dict.bin", half=model.half_codec)
    return folder


def build_codec(config: Any) -> Any:
    """Build a random codec with random codebooks; AudioCraft's are zeros until k-means initializes them."""
    codec = builders.get_compression_model(config)
    for module in codec.modules():
        if hasattr(module, "embed") and hasattr(module, "inited"):
            module.embed.data.normal_()
            module.inited.data.fill_(1)
    return codec


def write_hub_cache(cache: Path, repo: str, model: RandomModelConfig) -> None:
    """Write a model into a hub cache under the name of a repository, and its T5 as t5-base."""
    folder = write_checkpoint(snapshot_folder(cache, repo), model)
    move_t5_to_hub(folder, snapshot_folder(cache, "t5-base"))


def move_t5_to_hub(folder: Path, t5_folder: Path) -> None:
    """Move a checkpoint's `t5` folder to where the hub's t5-base lies, and name t5-base in the checkpoint."""
    shutil.move(folder / "t5", t5_folder)
    package = torch.load(folder / "state_dict.bin", weights_only=True)
    package["xp.cfg"] = package["xp.cfg"].replace(str(folder / "t5"), "t5-base")
    torch.save(package, folder / "state_dict.bin")


def snapshot_folder(cache: Path, repo: str) -> Path:
    """Create a repository in a hub cache; return the folder in which the hub's client looks for its files."""
    repo_folder = cache / f"models--{repo.replace('/', '--')}"
    (repo_folder / "refs").mkdir(parents=True)
    (repo_folder / "refs" / "main").write_text("0123456789abcdef")
    (repo_folder / "snapshots").mkdir()
    return repo_folder / "snapshots" / "0123456789abcdef"


def write_t5(folder: Path, model: RandomModelConfig) -> None:
    """Write a small T5 encoder with a tokenizer trained on a few lines."""
    folder.mkdir(parents=True, exist_ok=True)
    text.unigram(PROMPTS * 20, 100).save_pretrained(folder)
    config = T5Config(
        vocab_size=model.text_vocab,
        d_model=model.text_dim,
        d_kv=model.text_dim // model.text_heads,
        d_ff=model.text_hidden,
        num_layers=model.text_layers,
        num_heads=model.text_heads,
    )
    T5EncoderModel(config).save_pretrained(folder)


def audiocraft_config(model: RandomModelConfig, t5: str) -> Any:
    """Return AudioCraft's configuration of the released text-to-music models; other values come from training's."""
    plan = Plan(
        dim=model.dim,
        heads=model.heads,
        layers=model.layers,
        filters=model.filters,
        latent=model.latent,
        lm_seconds=model.window,
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
        stereo if model.stereo else {},
        {"fuser": {"prepend": ["description"], "cross": []}} if model.prepend else {},
    )


if __name__ == "__main__":
    # writes a random model with the file format of the built-in one
    write_checkpoint(Path(sys.argv[1]), RandomModelConfig(latent=32, half=True, half_codec=True, seed=1))
