"""The device a model runs on, and what the settings leave to it: slots and precision."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch

from musicgen_bento.config import Settings
from musicgen_bento.errors import LoadFailed, ModelTooLarge
from musicgen_bento.model_catalog import find_model
from musicgen_bento.precision import Precision, default_precision, supported_precisions

SLOTS = {"cpu": 16, "cuda": 64}
FREE_SHARE = 0.8

# A container's limit and what it has taken of it, where the kernel says so: control groups 2 and 1.
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        "total_inactive_file",
    ),
)


def max_slots(device: torch.device, settings: Settings) -> int:
    """Clips made together."""
    return settings.max_slots or SLOTS[device.type]


def select_precision(device: torch.device, settings: Settings) -> Precision:
    """What language models' numbers are held in.

    Raises:
        LoadFailed: this device has no such precision.
    """
    if settings.precision == "auto":
        return default_precision(device)
    try:
        return supported_precisions(device)[settings.precision]
    except KeyError:
        hint = f"Set MUSICGEN_PRECISION to one of: {', '.join(['auto', *supported_precisions(device)])}."
        kind = "a CPU that the kernel runs on" if settings.precision == "int8" else "an x86 CPU or a GPU"
        raise LoadFailed(f"{settings.precision} is for {kind}, not for {device}.", hint=hint) from None


def resolve_device(name: str) -> torch.device:
    """The device that MUSICGEN_DEVICE means; whether it is there is another question."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def memory_budget(device: torch.device, settings: Settings) -> int:
    """Bytes that models and clips may take together: as set, or most of what is free now."""
    return settings.memory_budget or int(FREE_SHARE * free_memory(device))


def free_memory(device: torch.device) -> int:
    """Bytes of the device that nobody uses; on a CPU no more than the container is allowed. 0: it is not there."""
    if device.type == "cuda":
        try:
            return torch.cuda.mem_get_info(device)[0]
        except (RuntimeError, AssertionError):
            return 0
    free: int = psutil.virtual_memory().available
    for limit, current, cached in CGROUPS:
        with suppress(OSError, ValueError, KeyError):  # no such file, or "max": no limit
            figures = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
            free = min(free, int(limit.read_text()) - int(current.read_text()) + int(figures[cached]))
    return free


def check_fits_budget(names: str, size: int, budget: int) -> None:
    """Make sure that models go into the budget.

    Args:
        names: of the models, for the message.
        size: bytes of all of them, each with one clip.
        budget: bytes that they may take.

    Raises:
        ModelTooLarge: they do not fit.
    """
    if size > budget:
        raise ModelTooLarge(
            f"{names} takes {format_bytes(size)} of memory with one clip, and models may take {format_bytes(budget)}.",
            hint="Take a smaller model, or raise MUSICGEN_MEMORY_BUDGET where there is more memory.",
            field="model",
        )


def check_preloaded_fit_budget(settings: Settings) -> None:
    """Make sure, without a look at their files, that the preloaded models go into the budget together.

    Raises:
        ModelTooLarge: they do not fit.
    """
    cards = {card.id: card for name in settings.preload if (card := find_model(name))}
    device = resolve_device(settings.device)
    if budget := memory_budget(device, settings):
        size = sum(
            card.memory_bytes(select_precision(device, settings), settings.max_duration) for card in cards.values()
        )
        check_fits_budget(f"MUSICGEN_PRELOAD ({', '.join(cards)})", size, budget)


def format_bytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def describe(device: torch.device, settings: Settings) -> str:
    """One line for the log: the device, its name and memory, and how it will be used."""
    how = select_precision(device, settings).name
    return f"running on {device} ({_about(device)}), {how}, {max_slots(device, settings)} slots"


def _about(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{torch.get_num_threads()} threads"
    try:
        found = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError):  # not there, or the driver does not answer
        return "which is not there"
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
