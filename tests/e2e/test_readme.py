"""README.md's code blocks, run as they are written.

Three things are replaced: the address by the test server's, every model by `demo`, and every duration over 2 s by 2 s.
A block that is not run says why in a comment above it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.support.documents import Block, blocks
from tests.support.server import Server

SECONDS = 2
RUN = [block for block in blocks() if block.language in ("bash", "python") and not block.why_not]


def adapted(code: str, url: str) -> str:
    code = code.replace("http://localhost:8000", url.rstrip("/"))
    code = re.sub(r"facebook/musicgen-[\w-]+", "demo", code)
    return re.sub(
        r'(--duration |"duration": |\bduration=)(\d+(?:\.\d+)?)',
        lambda found: found[1] + (found[2] if float(found[2]) < SECONDS else str(SECONDS)),
        code,
    )


def written(code: str) -> list[str]:
    names = re.findall(r"--output ([^-\s]\S*)|open\(\"(.+?)\", \"wb\"\)|\.save\(\"(.+?)\"\)", code)
    return ["".join(found) for found in names]


def run(block: Block, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = adapted(block.code, url)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-euo", "pipefail", "-c", code] if block.language == "bash" else [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.heading}-{block.language}")
def test_a_block_does_what_it_says(block: Block, server: Server, tmp_path: Path) -> None:
    if "curl" in block.code and not shutil.which("curl"):
        pytest.skip("there is no curl")
    done = run(block, server.url, tmp_path)
    assert done.returncode == 0, done.stderr
    for name in written(block.code):
        wav = soundfile.info(tmp_path / name)
        assert (wav.format, wav.subtype, wav.samplerate) == ("WAV", "PCM_16", 32_000)
        assert wav.frames == pytest.approx(SECONDS * 32_000, abs=640)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written(block.code))


def test_the_forms_that_people_use_are_there() -> None:
    """curl with --output, and requests with json=payload and response.content."""
    code = "\n".join(block.code for block in RUN)
    payload = '{"model": "facebook/musicgen-medium", "prompt": "orchestral cinematic score", "duration": 60}'
    for form in (
        payload,
        "--output music.wav",
        "requests.post(url, json=payload)",
        "f.write(response.content)",
        'musicgen-bento --prompt "ambient cinematic music" --duration 20 --output output.wav',
    ):
        assert form in code


def test_every_block_is_run_or_says_why_not() -> None:
    left_out = [block for block in blocks() if block not in RUN]
    assert {block.language for block in left_out if not block.why_not} <= {"text"}


def test_what_is_replaced() -> None:
    code = '"duration": 60, "duration": 0.5, duration=9, --duration 20 facebook/musicgen-stereo-small http://localhost:8000/generate'
    assert adapted(code, "http://127.0.0.1:1/") == (
        '"duration": 2, "duration": 0.5, duration=2, --duration 2 demo http://127.0.0.1:1/generate'
    )
