"""The metadata of the package: a client without torch, a server without AudioCraft's old pins."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from musicgen_bento import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE: list[str] = PROJECT["dependencies"]
SERVE: list[str] = PROJECT["optional-dependencies"]["serve"]

CAPTURE_TEXT: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
HIDE_PACKAGES = """
import importlib.machinery, sys
hidden = set({})
class VisiblePackages(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)
sys.meta_path[:] = [VisiblePackages if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_versions() -> dict[str, str]:
    """Return the versions of the packages that the lock installs on this machine."""
    versions = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if match := re.match(r"([\w.-]+)==(\S+)(?: ; (.*?))? \\$", line):
            name, version, marker = match.groups()
            if marker is None or Requirement(f"x; {marker}").marker.evaluate():  # type: ignore[union-attr]
                versions[canonical(name)] = version
    return versions


def with_dependencies(requirements: list[str]) -> set[str]:
    """Return the packages that pip would install, by the metadata of the installed packages."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(Requirement(text), frozenset[str]()) for text in requirements]
    while todo:
        requirement, parent_extras = todo.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in parent_extras | {""}):
            continue
        name, extras = canonical(requirement.name), frozenset(requirement.extras)
        if (name, extras) not in seen:
            seen.add((name, extras))
            todo += [(Requirement(text), extras) for text in metadata.requires(name) or []]
    return {name for name, _ in seen}


def test_the_base_install_has_few_packages() -> None:
    assert {canonical(Requirement(text).name) for text in BASE} == {"click", "pydantic", "requests"}
    assert len(with_dependencies(BASE)) < 15


def run_with(packages: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code that can import only these packages."""
    distributions = metadata.packages_distributions()
    hidden = [module for module, names in distributions.items() if not {canonical(name) for name in names} & packages]
    assert {"pytest", "hypothesis", "demucs"} <= set(hidden)
    return subprocess.run([sys.executable, "-c", HIDE_PACKAGES.format(json.dumps(hidden)) + code], **CAPTURE_TEXT)


@pytest.mark.parametrize(
    "code",
    [
        "from musicgen_bento.client import AsyncMusicGenClient, MusicGenClient; MusicGenClient()",
        "from musicgen_bento.cli import main; main(['--help'])",
        "from musicgen_bento.cli import main; main(['models', '--help'])",
    ],
)
def test_the_base_install_runs_the_client_and_its_commands(code: str) -> None:
    result = run_with(with_dependencies(BASE) | {"musicgen-bento"}, code)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_base_install_names_the_missing_extra() -> None:
    result = run_with(
        with_dependencies(BASE) | {"musicgen-bento"},
        "from musicgen_bento.cli import main; main(['--prompt', 'x', '--output', 'x.wav'])",
    )
    assert result.returncode == 1
    assert 'pip install "musicgen-bento[serve]"' in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_extra_does_not_pin_the_torch_of_audiocraft() -> None:
    assert not with_dependencies(BASE + SERVE) & {"audiocraft", "torchvision", "torchtext", "gradio"}


@pytest.mark.parametrize("text", BASE + SERVE)
def test_the_lock_agrees_with_the_metadata(text: str) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(locked_versions()[canonical(requirement.name)])


def test_the_environment_equals_the_lock() -> None:
    assert {name: metadata.version(name) for name in locked_versions()} == locked_versions()


def test_the_lock_has_hashes_and_no_urls() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") >= len(re.findall(r"^[\w.-]+==", text, re.MULTILINE))


def test_the_extra_has_all_imports_of_audiocraft() -> None:
    code = "import audiocraft.models.builders, audiocraft.models.encodec\nfrom audiocraft.models import MusicGen"
    result = run_with(with_dependencies(BASE + SERVE) | {"audiocraft"}, code)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_changelog_has_the_version() -> None:
    assert metadata.version("musicgen-bento") == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{__version__}]" in changelog or "## [Unreleased]" in changelog
