"""Export of a trained model in AudioCraft's released format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from training import text
from training.network import Network
from training.plan import Plan
from training.released import configuration, pack

MAX_BYTES = 24_000_000  # of all files together


def write(plan: Plan, codec: Any, network: Network, encoder: Any, tokenizer: Any, folder: Path) -> int:
    """Write the model's files and return their size in bytes.

    Raises:
        ValueError: the files are larger than the repository allows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration(plan)
    pack(network.released(plan.temperatures), config, folder / "state_dict.bin")
    pack(amplify(codec.state_dict(), plan.gain_db), config, folder / "compression_state_dict.bin")
    text.save(tokenizer, encoder, folder / "t5")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"The model has {size} bytes, more than {MAX_BYTES}.")
    return size


def amplify(codec: dict[str, Tensor], decibels: float) -> dict[str, Tensor]:
    """Return a codec's tensors with a gain in the decoder's last convolution."""
    *_, last = (name.removesuffix("weight_g") for name in codec if name.startswith("decoder.") and "weight_g" in name)
    return codec | {last + part: codec[last + part] * 10 ** (decibels / 20) for part in ("weight_g", "bias")}
