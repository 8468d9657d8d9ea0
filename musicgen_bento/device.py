"""The device that runs the models, and its slots, precision and memory according to the settings."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch

from musicgen_bento.config import Settings
from musicgen_bento.errors import LoadFailed, ModelTooLarge
from musicgen_bento.model_catalog import find_model
from musicgen_bento.precision import Precision, default_precision, supported_precisions
from musicgen_bento.units import format_bytes

DEFAULT_MAX_SLOTS = {"cpu": 16, "cuda": 64}
FREE_MEMORY_FRACTION = 0.8

# The memory limit of a container, its use, and the statistic of reclaimable file cache: control groups 2 and 1.
CGROUP_MEMORY_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        "total_inactive_file",
    ),
)


def max_slots(device: torch.device, settings: Settings) -> int:
    """Return the number of requests that one engine runs at once."""
    return settings.max_slots or DEFAULT_MAX_SLOTS[device.type]


def select_precision(device: torch.device, settings: Settings) -> Precision:
    """Return the precision of language models on a device.

    Raises:
        LoadFailed: the device does not support the precision that is set.
    """
    if settings.precision == "auto":
        return default_precision(device)
    supported = supported_precisions(device)
    try:
        return supported[settings.precision]
    except KeyError:
        hint = f"Set MUSICGEN_PRECISION to one of: {', '.join(['auto', *supported])}."
        required = "a CPU that the C kernel supports" if settings.precision == "int8" else "an x86 CPU or a GPU"
        raise LoadFailed(f"{settings.precision} requires {required}; the device is {device}.", hint=hint) from None


def resolve_device(name: str) -> torch.device:
    """Return the device that `MUSICGEN_DEVICE` names, without checking that it exists."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def memory_budget(device: torch.device, settings: Settings) -> int:
    """Return the bytes that models and requests may use together: the setting, or 80% of the free memory."""
    return settings.memory_budget or int(FREE_MEMORY_FRACTION * free_memory(device))


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device, on a CPU within the container's limit; 0 for a GPU that does not exist."""
    if device.type == "cuda":
        try:
            return torch.cuda.mem_get_info(device)[0]
        except (RuntimeError, AssertionError):
            return 0
    free: int = psutil.virtual_memory().available
    for limit, current, cached in CGROUP_MEMORY_FILES:
        with suppress(OSError, ValueError, KeyError):  # there is no such file, or it contains "max": no limit
            statistics = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
            free = min(free, int(limit.read_text()) - int(current.read_text()) + int(statistics[cached]))
    return free


def check_fits_budget(model_names: str, required_bytes: int, budget_bytes: int) -> None:
    """Check that models fit into the memory budget.

    Args:
        model_names: for the message.
        required_bytes: memory of all these models, each with one request.
        budget_bytes: the memory budget.

    Raises:
        ModelTooLarge: the models do not fit.
    """
    if required_bytes > budget_bytes:
        raise ModelTooLarge(
            f"{model_names} needs {format_bytes(required_bytes)} of memory with one request; "
            f"the memory budget is {format_bytes(budget_bytes)}.",
            hint="Choose a smaller model, or raise MUSICGEN_MEMORY_BUDGET if the machine has more memory.",
            field="model",
        )


def check_preloaded_fit_budget(settings: Settings) -> None:
    """Check by the catalogue, without opening files, that the preloaded models fit into the memory budget together.

    Raises:
        ModelTooLarge: the models do not fit.
    """
    models = {model.id: model for name in settings.preload if (model := find_model(name))}
    device = resolve_device(settings.device)
    if budget_bytes := memory_budget(device, settings):
        precision = select_precision(device, settings)
        required_bytes = sum(model.memory_bytes(precision, settings.max_duration) for model in models.values())
        check_fits_budget(f"MUSICGEN_PRELOAD ({', '.join(models)})", required_bytes, budget_bytes)


def describe(device: torch.device, settings: Settings) -> str:
    """Return a line for the log: the device, its hardware, the precision and the number of slots."""
    precision = select_precision(device, settings).name
    return f"running on {device} ({_describe_hardware(device)}), {precision}, {max_slots(device, settings)} slots"


def _describe_hardware(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{torch.get_num_threads()} threads"
    try:
        properties = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError):  # no such device, or the driver does not respond
        return "not available"
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
