"""The code blocks of README.md, docs/http.md, docs/models.md and docs/docker.md run as they are written.

tests/support/run_documents.py describes what is replaced. A comment above a block that is not run gives the reason.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import soundfile

from tests.support.documents import GUIDES, Block, blocks
from tests.support.run_documents import MAX_DURATION_SECONDS, adapt, run
from tests.support.server import Server

BLOCKS = [(document.name, block) for document in GUIDES for block in blocks(document)]
RUN = [(name, block) for name, block in BLOCKS if block.language in ("bash", "python") and not block.reason_not_run]


def output_files(code: str) -> list[str]:
    names = re.findall(r"--output ([^-\s]\S*)|open\(\"(.+?)\", \"wb\"\)|\.save\(\"(.+?)\"\)", code)
    return ["".join(groups) for groups in names]


@pytest.mark.parametrize(
    ("document", "block"), RUN, ids=[f"{name}-{block.heading}-{block.language}" for name, block in RUN]
)
def test_block_runs_and_writes_the_files_that_it_names(
    document: str, block: Block, server: Server, tmp_path: Path
) -> None:
    if "curl" in block.code and not shutil.which("curl"):
        pytest.skip("there is no curl")
    result = run(block, server.url, tmp_path)
    assert result.returncode == 0, result.stderr
    for name in output_files(block.code):
        wav = soundfile.info(tmp_path / name)
        assert (wav.format, wav.subtype, wav.samplerate) == ("WAV", "PCM_16", 32_000)
        assert wav.frames == pytest.approx(MAX_DURATION_SECONDS * 32_000, abs=640)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(output_files(block.code))


def test_readme_shows_curl_python_and_the_command_line() -> None:
    assert {(block.heading, block.language) for name, block in RUN if name == "README.md"} == {
        ("curl", "bash"),
        ("Python", "python"),
        ("Command line", "bash"),
    }


def test_documents_show_the_forms_that_users_copy() -> None:
    """curl with --output, and requests with json=payload and response.content."""
    code = "\n".join(block.code for _, block in RUN)
    payload = '{"model": "facebook/musicgen-medium", "prompt": "orchestral cinematic score", "duration": 60}'
    for form in (
        payload,
        "--output music.wav",
        "requests.post(url, json=payload)",
        "f.write(response.content)",
        'musicgen-bento --prompt "ambient cinematic music" --duration 20 --output output.wav',
    ):
        assert form in code


def test_every_block_that_is_not_run_has_a_reason() -> None:
    assert {
        block.language for entry in BLOCKS if entry not in RUN for block in entry[1:] if not block.reason_not_run
    } <= {"text"}


def test_adapt_replaces_address_model_and_duration_only() -> None:
    code = (
        '"duration": 60, "duration": 0.5, duration=9, --duration 20 facebook/musicgen-stereo-small '
        "http://localhost:8000/generate"
    )
    assert adapt(code, "http://127.0.0.1:1/") == (
        '"duration": 2, "duration": 0.5, duration=2, --duration 2 demo http://127.0.0.1:1/generate'
    )
