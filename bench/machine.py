"""Description of the machine and of the code version of a run, without anything that identifies the owner."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).parent.parent
# CPU features that decide the speed of int8 and bfloat16 products.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
PACKAGES = ("torch", "transformers", "audiocraft", "bentoml")
BUSY_LOAD_PER_CORE = 0.3  # load average above which a machine counts as busy


def device() -> torch.device:
    """Return the device that all backends use."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe() -> dict[str, Any]:
    """Return the hardware, the software versions, the commit and the load, which are reported with the results."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit() -> str | None:
    """Return the checked-out commit, with `+` if tracked files differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def peak_gb(process: int | str = "self") -> float:
    """Return the peak resident memory of a process in GB, mapped files included."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def _git(*arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo, or nothing if there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
