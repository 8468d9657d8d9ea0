"""The device a model runs on, and what the settings leave to it: slots and precision."""

from __future__ import annotations

import torch

from musicgen_bento.config import Settings

SLOTS = {"cpu": 16, "cuda": 64}


def max_slots(device: torch.device, settings: Settings) -> int:
    """Clips made together."""
    return settings.max_slots or SLOTS[device.type]


def precision(device: torch.device, settings: Settings) -> str:
    """What the language model computes in: the name of a torch dtype."""
    if settings.precision != "auto":
        return settings.precision
    return "float16" if device.type == "cuda" else "float32"


def describe(device: torch.device, settings: Settings) -> str:
    """One line for the log: the device, its name and memory, and how it will be used."""
    how = precision(device, settings)
    return f"running on {device} ({_about(device)}), {how}, {max_slots(device, settings)} slots"


def _about(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{torch.get_num_threads()} threads"
    try:
        found = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError):  # not there, or the driver does not answer
        return "which is not there"
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
