"""The documents say what the code does: tables, names, paths and links."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import documents

ROOT = documents.ROOT
DOCUMENTS = [
    documents.README,
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TABLES = {
    "settings.md": documents.settings_table,
    "http.md": documents.error_table,
    "models.md": documents.model_table,
}


@pytest.mark.parametrize("document", TABLES)
def test_tables_match_the_code(document: str) -> None:
    expected = TABLES[document]()
    assert expected + "\n" in (ROOT / "docs" / document).read_text(), (
        f"docs/{document} must have this table:\n{expected}"
    )


def test_generated_documents_match_the_code() -> None:
    command = [sys.executable, "-m", "docs", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_package_order_names_existing_files_with_descriptions() -> None:
    for path, description in documents.package_order().items():
        assert (ROOT / path).exists(), path
        assert description, path


def test_readme_lists_every_package_in_package_order() -> None:
    """README's table begins with the highest package; packages without Python files (the demo model) are not listed."""
    readme_packages = re.findall(r"^\| `(\w+)` \|", documents.README.read_text(), re.M)
    packages = [Path(path).name for path in documents.package_order() if any((ROOT / path).glob("__init__.py"))]
    assert sorted(readme_packages) == sorted(packages)
    assert [name for name in reversed(packages) if name != "client"] == [
        name for name in readme_packages if name != "client"
    ]


def test_readme_has_at_most_250_lines() -> None:
    assert len(documents.README.read_text().splitlines()) <= 250


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_goals_that_are_named_exist(document: Path) -> None:
    goals = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert (
        set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", document.read_text(), re.M))
        - {pair for goal in goals for pair in ((goal, ""), ("", goal))}
        == set()
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_existing_files_and_headings(document: Path) -> None:
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
    """Names in backticks with a known ending: from the root, or from the package."""
    of_users = {"state_dict.bin", "compression_state_dict.bin"}
    for name in set(re.findall(r"`([\w./-]+\.(?:py|md|yaml|txt|in|lock|toml|bin))`", document.read_text())) - of_users:
        assert any((ROOT / folder / name).exists() for folder in ("", "musicgen_bento")), name


@pytest.mark.parametrize("package", [path for path in documents.package_order() if path.endswith("/")])
def test_package_docstrings_list_every_module(package: str) -> None:
    folder = ROOT / package
    if not (folder / "__init__.py").exists():
        return
    text = (folder / "__init__.py").read_text()
    modules = {path.name for path in folder.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert [name for name in sorted(modules) if not re.search(rf"\b{re.escape(name)}", text)] == []
    named = set(re.findall(r"^([a-z]\w*\.py)\b", text, re.M))
    assert [name for name in sorted(named) if name not in modules] == []


def test_every_invariant_names_its_tests() -> None:
    rows = re.findall(r"^\| (\d)\. .+? \| (.+) \|$", documents.ARCHITECTURE.read_text(), re.M)
    assert [number for number, _ in rows] == list("12345678")
    for number, tests in rows:
        paths = re.findall(r"`(tests/[\w./]+)`", tests)
        assert paths, number
        assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_test_of_an_invariant_is_named() -> None:
    text = documents.ARCHITECTURE.read_text()
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "invariants").glob("test_*.py")]
    assert [file for file in files if f"`{file}`" not in text] == []


def test_the_changelog_has_an_unreleased_section() -> None:
    assert re.search(r"^## \[Unreleased\]$", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_the_changelog_describes_this_version() -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "musicgen_bento" / "__init__.py").read_text())
    assert version
    assert f"## [{version[1]}] - " in (ROOT / "CHANGELOG.md").read_text()
