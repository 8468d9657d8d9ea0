"""Models to measure: random weights in a released size, or a model of the catalogue.

A random model has AudioCraft's file format in a hub cache of its own, so the service and the baselines read it like
Meta's: `state_dict.bin` in float16, `compression_state_dict.bin`, and a T5 of t5-base's size (110 M parameters,
float32) whose tokenizer is trained on three lines. Speed and memory do not depend on the values of the weights.

`python -m bench.models SIZE FOLDER` writes a random model. It runs as a process, so that its memory is freed.
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
    from tests.support.tiny_checkpoints import RandomModelConfig

SIZES = ("tiny", "small", "medium", "large")  # tiny is for tests of the benchmark
WRITE_TIMEOUT_SECONDS = 1800


def recipe(size: str) -> RandomModelConfig:
    """Return the sizes of a random model."""
    from tests.support.tiny_checkpoints import SMALL, RandomModelConfig

    released = {
        "small": SMALL,
        "medium": replace(SMALL, dim=1536, heads=24, layers=48),
        "large": replace(SMALL, dim=2048, heads=32, layers=48),
    }
    return released.get(size) or RandomModelConfig(half=True)


@dataclass(frozen=True)
class Model:
    """A model that all backends can load.

    Attributes:
        id: name of the model in a request.
        size: name of the model in the tables.
        environment: variables with which a process finds the model's files.
    """

    id: str
    size: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def source(self) -> Source:
        """The model's files, for a process with `environment`."""
        return resolve_model(self.id, any_model=True)

    @cached_property
    def shape(self) -> LMShape:
        """Sizes of the language model."""
        return read_shape(self.source, released_config(self.source)[0])

    @cached_property
    def num_params(self) -> int:
        """Number of parameters of the language model."""
        return sum(tensor.numel() for tensor in released_config(self.source)[1].values())


def released_config(source: Source) -> tuple[Any, dict[str, torch.Tensor]]:
    """Open `state_dict.bin`: the configuration, and the tensors, memory-mapped."""
    from omegaconf import OmegaConf

    package = torch.load(source.fetch_file("state_dict.bin"), map_location="cpu", weights_only=True, mmap=True)
    return OmegaConf.create(package["xp.cfg"]), package["best_state"]


def random_model(size: str, folder: Path) -> Model:
    """Write a random model and set the environment variables with which this process and its children find it.

    Raises:
        OSError: the model cannot be written.
    """
    command = [sys.executable, "-W", "ignore", "-m", "bench.models", size, str(folder)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=WRITE_TIMEOUT_SECONDS
    )
    if result.returncode:
        raise OSError(f"the model could not be written:\n{result.stderr}")
    environment = {"AUDIOCRAFT_CACHE_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    os.environ.update(environment)
    return Model(f"random/musicgen-{size}", size, environment)


def known_model(name: str) -> Model:
    """Return a model of the catalogue whose files are in the package or in the hub cache."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    source = resolve_model(name)
    return Model(source.name, source.name, {"HF_HUB_OFFLINE": "1"})


def empty_lm(config: Any) -> Any:
    """Build AudioCraft's language model on the meta device, without its text encoder."""
    from audiocraft.models import builders
    from omegaconf import OmegaConf

    config = OmegaConf.merge(config, {"device": "meta"})
    config.conditioners = {}
    with torch.device("meta"):
        return builders.get_lm_model(config)


def write(size: str, cache: Path) -> None:
    """Write a random model of a size into a hub cache."""
    from tests.support.tiny_checkpoints import audiocraft_config, build_codec, snapshot_folder, write_t5
    from training.released import pack

    sizes = recipe(size)
    torch.manual_seed(sizes.seed)
    write_t5(snapshot_folder(cache, "t5-base"), sizes)
    folder = snapshot_folder(cache, f"random/musicgen-{size}")
    folder.mkdir()
    config = audiocraft_config(sizes, "t5-base")
    pack(build_codec(config).state_dict(), config, folder / "compression_state_dict.bin", half=False)
    pack(_random_lm(config, sizes), config, folder / "state_dict.bin")


def _random_lm(config: Any, recipe: RandomModelConfig) -> dict[str, torch.Tensor]:
    """Return random tensors of the language model by name, scaled so that activations stay near 1."""
    shapes = {name: tensor.shape for name, tensor in empty_lm(config).state_dict().items()}
    projection = "condition_provider.conditioners.description.output_proj"
    shapes[f"{projection}.weight"] = torch.Size((recipe.dim, recipe.text_dim))
    shapes[f"{projection}.bias"] = torch.Size((recipe.dim,))
    state = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            state[name] = torch.full(shape, float("norm" in name and name.endswith("weight")), dtype=torch.float16)
        else:
            state[name] = torch.empty(shape).normal_(std=shape[-1] ** -0.5).half()
    return state


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
