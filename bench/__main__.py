"""The service under mixed clients: `make bench`, or `python -m bench --model MODEL`.

Starts a server of its own on a free port and asks it for 16 clips of 2 to 20 s, first one after the other, then all
at once. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import requests

from tests.server import Server

DURATIONS = (2, 20, 3, 16, 5, 12, 8, 2, 18, 4, 6, 10, 14, 7, 9, 2)


def ask(server: Server, model: str, duration: float, seed: int) -> float:
    """Seconds until the whole clip is there."""
    began = time.perf_counter()
    payload = {"model": model, "prompt": "calm piano over a slow beat", "duration": duration, "seed": seed}
    answer = requests.post(f"{server.url}/generate", json=payload, timeout=None)
    answer.raise_for_status()
    return time.perf_counter() - began


def peak_memory(server: Server) -> float:
    """Most memory the runner has had, in GB."""
    status = Path(f"/proc/{server.worker('MusicGenRunner').pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def measure(model: str, scale: float) -> dict[str, object]:
    durations = [duration * scale for duration in DURATIONS]
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        loading = ask(server, model, 0.1, 0)
        alone = [ask(server, model, duration, seed) for seed, duration in enumerate(durations)]
        began = time.perf_counter()
        with ThreadPoolExecutor(len(durations)) as clients:
            together = list(clients.map(lambda job: ask(server, model, job[1], job[0]), enumerate(durations)))
        wall = time.perf_counter() - began
        memory = peak_memory(server)
    print(f"{'clip':>6} {'alone':>9} {'together':>9} {'per audio second':>17}")
    for duration, one, company in sorted(zip(durations, alone, together, strict=True)):
        print(f"{duration:5.1f}s {one:8.2f}s {company:8.2f}s {company / duration:16.2f}s")
    return {
        "model": model,
        "first_clip_s": round(loading, 2),
        "x_realtime_alone": round(sum(durations) / sum(alone), 2),
        "clients16_audio_s_per_s": round(sum(durations) / wall, 2),
        "together_over_alone": round(sum(alone) / wall, 2),
        "slowest_over_mean": round(
            max(t / d for t, d in zip(together, durations, strict=True)) * len(durations)
            / sum(t / d for t, d in zip(together, durations, strict=True)), 2
        ),
        "runner_peak_gb": round(memory, 2),
    }  # fmt: skip


def machine() -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "commit": commit.stdout.strip() or None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--model", default="demo", help="a model of the catalogue; its files must be in the hub's cache"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the clips' durations of 2 to 20 s")
    options = parser.parse_args()
    print(json.dumps({**measure(options.model, options.scale), **machine()}))


if __name__ == "__main__":
    main()
