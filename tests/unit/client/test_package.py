"""The client as an installed package: it imports no large package, its error codes are distinct, and it has types."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pydantic
import pytest

from musicgen_bento.client import (
    Cancelled,
    InvalidResponse,
    StreamTruncated,
    TimedOut,
    Unreachable,
)

ROOT = Path(__file__).parents[3]


def test_importing_the_client_imports_no_heavy_package() -> None:
    code = """
    import json, sys
    import musicgen_bento
    from musicgen_bento.client import AsyncMusicGenClient, MusicGenClient
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "scipy", "bentoml", "starlette", "transformers", "click", "pydantic_settings"}
    assert not heavy & set(json.loads(result.stdout))


def test_client_errors_have_status_0_and_distinct_codes() -> None:
    error_types = (Unreachable, TimedOut, InvalidResponse, StreamTruncated, Cancelled)
    assert {error.status for error in error_types} == {0}
    assert len({error.code for error in error_types}) == len(error_types)


PROGRAM = """
import asyncio
from musicgen_bento import pipeline
from musicgen_bento.client import AsyncMusicGenClient, Clip, MusicGenClient, MusicGenError, Progress

def show(progress: Progress) -> None:
    print(progress.state, progress.position, progress.audio_seconds, progress.duration)

def main() -> int:
    client = MusicGenClient("http://localhost:8000", timeout=60)
    try:
        clip: Clip = client.generate("calm", model="demo", duration=2, seed=7, normalize="peak", progress=show)
    except MusicGenError as error:
        print(error.code, error.hint, error.field)
        return 1
    clip.save("calm.wav")
    names: list[str] = [model.id for model in client.list_models()]
    out = pipeline("demo")(["calm", "wild"], duration=1, top_k=10)
    rate: int = out.sample_rate
    length: int = out.audios[0].shape[1]
    return len(clip.audio) + rate + length + len(names)

async def later() -> Clip:
    async with AsyncMusicGenClient() as client:
        return await client.generate("calm", progress=show)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the package as pip installs it: mypy reads its types only if it has a py.typed."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [site] = (folder / "lib").glob("python*/site-packages")
    (site / "musicgen_bento").symlink_to(ROOT / "musicgen_bento")
    (site / "dependencies.pth").write_text(f"{Path(pydantic.__file__).parent.parent}\n")
    return folder


@pytest.mark.parametrize(
    ("program", "output"),
    [
        (PROGRAM, "Success"),
        ("from musicgen_bento.client import MusicGenClient\nMusicGenClient().generate(5, top_k='9')", "str"),
    ],
    ids=["correct", "wrong"],
)
def test_type_checker_accepts_correct_and_rejects_wrong_use(
    environment: Path, program: str, output: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(program)
    python, cache = environment / "bin" / "python", environment / "cache"
    options = ["--strict", f"--python-executable={python}", f"--cache-dir={cache}", "--config-file=", "program.py"]
    command = [sys.executable, "-m", "mypy", *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert output in result.stdout, result.stdout + result.stderr
    assert "import-untyped" not in result.stdout
    assert (result.returncode == 0) == (program is PROGRAM)
