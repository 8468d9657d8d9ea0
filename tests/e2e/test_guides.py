"""Runs the code blocks of docs/sdk.md and docs/cli.md with the replacements of tests/support/run_documents.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from tests.support.documents import ROOT, Block, blocks
from tests.support.run_documents import MAX_DURATION_SECONDS, run
from tests.support.server import Server

GUIDES = {name: blocks(ROOT / "docs" / name) for name in ("sdk.md", "cli.md")}
EXECUTED = [
    (name, block) for name, guide_blocks in GUIDES.items() for block in guide_blocks if not block.reason_not_run
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.mark.parametrize(("name", "block"), EXECUTED, ids=lambda value: getattr(value, "heading", value))
def test_code_block_runs_and_writes_its_files(name: str, block: Block, server: Server, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("calm piano\nwild drums\n")
    result = run(block, server.url, tmp_path)
    assert result.returncode == 0, result.stderr
    wav_files = sorted(tmp_path.glob("*.wav"))
    assert wav_files or "Cancelled" in block.code or not re.search(r"\.save\(|--output", block.code)
    for file in wav_files:
        wav = soundfile.info(file)
        assert (wav.format, wav.subtype, wav.samplerate) == ("WAV", "PCM_16", 32_000)
        assert wav.frames == pytest.approx(MAX_DURATION_SECONDS * 32_000, abs=640)


def test_guides_contain_code_blocks() -> None:
    assert {block.language for _, block in EXECUTED} == {"python", "bash"}
    assert len(EXECUTED) >= 9
