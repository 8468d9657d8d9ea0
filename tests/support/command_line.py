"""Run the command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "musicgen_bento.cli"]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("MUSICGEN_", "BENTOML_"))},
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
}


def run(*args: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with further environment variables."""
    return subprocess.run(
        [*COMMAND, *args], cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=120
    )


def error_line(result: subprocess.CompletedProcess[str], status: int) -> str:
    """Check the exit status of a failed command, and return its only line of output."""
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr
