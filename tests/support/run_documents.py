"""Runs the code blocks of the documents as they are written, against a test server.

Three things are replaced: the address by the test server's, every model by `demo`, and every duration over 2 s by 2 s.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.documents import Block

MAX_DURATION_SECONDS = 2


def adapt(code: str, url: str) -> str:
    """Return the code with the server's address, `demo` for every model, and durations of at most 2 s."""
    code = code.replace("http://localhost:8000", url.rstrip("/"))
    code = re.sub(r"facebook/musicgen-[\w-]+", "demo", code)
    return re.sub(
        r'(--duration |"duration": |\bduration=)(\d+(?:\.\d+)?)',
        lambda match: match[1] + (match[2] if float(match[2]) < MAX_DURATION_SECONDS else str(MAX_DURATION_SECONDS)),
        code,
    )


def run(block: Block, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block of bash or Python in a folder, with this environment's commands first in PATH."""
    code = adapt(block.code, url)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-euo", "pipefail", "-c", code] if block.language == "bash" else [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
