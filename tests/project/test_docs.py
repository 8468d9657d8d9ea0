"""The documents say what the code does: tables, names, paths and links."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import documents

ROOT = documents.ROOT
TEXT = documents.README.read_text()
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = [documents.README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("table", [documents.settings_table, documents.error_table, documents.catalogue_table])
def test_a_table_is_what_the_code_says(table: object) -> None:
    expected = table()  # type: ignore[operator]
    assert expected + "\n" in TEXT, f"README.md must have this table:\n{expected}"


def test_the_generated_documents_are_what_the_code_says() -> None:
    command = [sys.executable, "-m", "docs", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_map_names_what_is_there() -> None:
    for path, about in documents.code_map().items():
        assert (ROOT / path).exists(), path
        assert about or path == "musicgen_bento/", path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_goals_that_are_named_exist(document: Path) -> None:
    goals = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert (
        set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", document.read_text(), re.M))
        - {pair for goal in goals for pair in ((goal, ""), ("", goal))}
        == set()
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    """Names in backticks with a known ending: from the root, from the package, or from its engine."""
    written = {"state_dict.bin", "compression_state_dict.bin"}  # a user's own
    for name in set(re.findall(r"`([\w./-]+\.(?:py|md|yaml|txt|in|lock|toml|bin))`", document.read_text())) - written:
        assert any((ROOT / folder / name).exists() for folder in ("", "musicgen_bento")), name


def test_every_law_names_its_tests() -> None:
    rows = re.findall(r"^\| (\d)\. .+? \| (.+) \|$", ARCHITECTURE.read_text(), re.M)
    assert [number for number, _ in rows] == list("12345678")
    for number, tests in rows:
        paths = re.findall(r"`(tests/[\w./]+)`", tests)
        assert paths, number
        assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_test_of_a_law_is_named() -> None:
    told = ARCHITECTURE.read_text()
    assert [
        p.name for p in (ROOT / "tests" / "invariants").glob("test_*.py") if f"`tests/invariants/{p.name}`" not in told
    ] == []


def test_the_changelog_has_a_place_for_what_comes() -> None:
    assert re.search(r"^## Unreleased$", (ROOT / "CHANGELOG.md").read_text(), re.M)
