"""The code of docs/sdk.md and docs/cli.md, run as it is written; what is replaced is what test_readme replaces."""

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
RUN = [(name, block) for name, found in GUIDES.items() for block in found if not block.why_not]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.mark.parametrize(("name", "block"), RUN, ids=lambda each: getattr(each, "heading", each))
def test_a_block_does_what_it_says(name: str, block: Block, server: Server, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("calm piano\nwild drums\n")
    done = run(block, server.url, tmp_path)
    assert done.returncode == 0, done.stderr
    made = sorted(tmp_path.glob("*.wav"))
    assert made or "Cancelled" in block.code or not re.search(r"\.save\(|--output", block.code)
    for file in made:
        wav = soundfile.info(file)
        assert (wav.format, wav.subtype, wav.samplerate) == ("WAV", "PCM_16", 32_000)
        assert wav.frames == pytest.approx(MAX_DURATION_SECONDS * 32_000, abs=640)


def test_there_is_something_to_run() -> None:
    assert {block.language for _, block in RUN} == {"python", "bash"}
    assert len(RUN) >= 9
