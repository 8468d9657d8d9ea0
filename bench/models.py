"""What is measured: a model of a released size with random weights, made on the spot, or one of the catalogue.

Its files are the released format's, in a hub cache of its own, so that service and peers read them as they would read
Meta's: `state_dict.bin` in float16, `compression_state_dict.bin`, and a T5 of t5-base's size (110 M numbers, float32)
whose tokenizer is trained on three lines. Speed and memory depend on none of the values.

`python -m bench.models SIZE FOLDER` writes one; in a process of its own, which takes its memory along when it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.machine import ROOT
from musicgen_bento.checkpoint.lm_state_dict import read_shape
from musicgen_bento.checkpoint.resolve import resolve_model
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.lm.weights import LMShape

if TYPE_CHECKING:
    from tests.support.tiny_checkpoints import Recipe

SIZES = ("tiny", "small", "medium", "large")  # tiny is for trying the bench
WRITING = 1800  # seconds, at most


def recipe(size: str) -> Recipe:
    """What a model of a size is made of."""
    from tests.support.tiny_checkpoints import SMALL, Recipe

    released = {
        "small": SMALL,
        "medium": replace(SMALL, dim=1536, heads=24, layers=48),
        "large": replace(SMALL, dim=2048, heads=32, layers=48),
    }
    return released.get(size) or Recipe(half=True)


@dataclass(frozen=True)
class Model:
    """One that all contestants can load.

    Attributes:
        id: its name in a request.
        size: what it is called in the tables.
        environment: what a process needs to find its files.
    """

    id: str
    size: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def source(self) -> Source:
        """Where its files are, for a process that has `environment`."""
        return resolve_model(self.id, any_model=True)

    @cached_property
    def shape(self) -> LMShape:
        """Of its language model."""
        return read_shape(self.source, released_config(self.source)[0])

    @cached_property
    def numbers(self) -> int:
        """Of its language model."""
        return sum(tensor.numel() for tensor in released_config(self.source)[1].values())


def released_config(source: Source) -> tuple[Any, dict[str, torch.Tensor]]:
    """What `state_dict.bin` holds: the configuration, and the tensors, mapped and not read."""
    from omegaconf import OmegaConf

    package = torch.load(source.file("state_dict.bin"), map_location="cpu", weights_only=True, mmap=True)
    return OmegaConf.create(package["xp.cfg"]), package["best_state"]


def random_model(size: str, folder: Path) -> Model:
    """Write a model of a size, and lead this process and those that it starts to its files.

    Raises:
        OSError: it cannot be made.
    """
    command = [sys.executable, "-W", "ignore", "-m", "bench.models", size, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=WRITING)
    if done.returncode:
        raise OSError(f"the model could not be made:\n{done.stderr}")
    environment = {"AUDIOCRAFT_CACHE_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    os.environ.update(environment)
    return Model(f"random/musicgen-{size}", size, environment)


def known_model(name: str) -> Model:
    """A model of the catalogue, whose files are in the package or in the hub's cache."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    source = resolve_model(name)
    return Model(source.name, source.name, {"HF_HUB_OFFLINE": "1"})


def empty_lm(config: Any) -> Any:
    """AudioCraft's language model without its text encoder, built by AudioCraft, on the meta device."""
    from audiocraft.models import builders
    from omegaconf import OmegaConf

    config = OmegaConf.merge(config, {"device": "meta"})
    config.conditioners = {}
    with torch.device("meta"):
        return builders.get_lm_model(config)


def write(size: str, cache: Path) -> None:
    """Write a random model of a size into a hub cache."""
    from tests.support.tiny_checkpoints import build_codec, configuration, snapshot, write_t5
    from training.released import pack

    made = recipe(size)
    torch.manual_seed(made.seed)
    write_t5(snapshot(cache, "t5-base"), made)
    folder = snapshot(cache, f"random/musicgen-{size}")
    folder.mkdir()
    config = configuration(made, "t5-base")
    pack(build_codec(config).state_dict(), config, folder / "compression_state_dict.bin", half=False)
    pack(_random_lm(config, made), config, folder / "state_dict.bin")


def _random_lm(config: Any, made: Recipe) -> dict[str, torch.Tensor]:
    """The language model's tensors by name, such that activations stay near 1."""
    sizes = {name: tensor.shape for name, tensor in empty_lm(config).state_dict().items()}
    projection = "condition_provider.conditioners.description.output_proj"
    sizes[f"{projection}.weight"] = torch.Size((made.dim, made.text_dim))
    sizes[f"{projection}.bias"] = torch.Size((made.dim,))
    state = {}
    for name, size in sizes.items():
        if len(size) == 1:
            state[name] = torch.full(size, float("norm" in name and name.endswith("weight")), dtype=torch.float16)
        else:
            state[name] = torch.empty(size).normal_(std=size[-1] ** -0.5).half()
    return state


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
