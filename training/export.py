"""From what was trained to the folder that `demo` is: AudioCraft's released format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from training import text
from training.network import Network
from training.plan import Plan
from training.released import configuration, pack

LARGEST = 24_000_000  # bytes, of all files together


def write(plan: Plan, codec: Any, network: Network, encoder: Any, tokenizer: Any, folder: Path) -> int:
    """Write the model's files; gives their size in bytes.

    Raises:
        ValueError: they are larger than a repository should hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration(plan)
    pack(network.released(plan.temperatures), config, folder / "state_dict.bin")
    pack(louder(codec.state_dict(), plan.louder), config, folder / "compression_state_dict.bin")
    text.save(tokenizer, encoder, folder / "t5")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > LARGEST:
        raise ValueError(f"The model is {size} bytes, more than {LARGEST}.")
    return size


def louder(codec: dict[str, Tensor], decibels: float) -> dict[str, Tensor]:
    """A codec's tensors, its decoder's last convolution so much louder."""
    *_, last = (name.removesuffix("weight_g") for name in codec if name.startswith("decoder.") and "weight_g" in name)
    return codec | {last + part: codec[last + part] * 10 ** (decibels / 20) for part in ("weight_g", "bias")}
