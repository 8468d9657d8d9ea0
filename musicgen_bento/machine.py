"""What the runner found: one line for the log."""

from __future__ import annotations

import torch

from musicgen_bento.config import Settings
from musicgen_bento.engine.pool import SLOTS


def describe(device: torch.device, settings: Settings) -> str:
    """The device, its name and memory, and how it will be used."""
    slots = settings.max_slots or SLOTS.get(device.type, 0)
    precision = settings.precision
    if precision == "auto":
        precision = "float16" if device.type == "cuda" else "float32"
    return f"running on {device} ({_about(device)}), {precision}, {slots} slots"


def _about(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{torch.get_num_threads()} threads"
    try:
        found = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError):  # not there, or the driver does not answer
        return "which is not there"
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
