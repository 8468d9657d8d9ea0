"""The package's own metadata: a client without torch, a server without AudioCraft's old pins."""

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

AS_TEXT: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
HIDE = """
import importlib.machinery, sys
hidden = set({})
class Visible(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)
sys.meta_path[:] = [Visible if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    """Package → version, of those lines of the lock that hold on this machine."""
    versions = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if found := re.match(r"([\w.-]+)==(\S+)(?: ; (.*?))? \\$", line):
            name, version, marker = found.groups()
            if marker is None or Requirement(f"x; {marker}").marker.evaluate():  # type: ignore[union-attr]
                versions[canonical(name)] = version
    return versions


def closure(requirements: list[str]) -> set[str]:
    """What pip would install for these, as the installed packages' metadata says."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(Requirement(text), frozenset[str]()) for text in requirements]
    while todo:
        need, asked = todo.pop()
        if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in asked | {""}):
            continue
        here = (canonical(need.name), frozenset(need.extras))
        if here not in seen:
            seen.add(here)
            todo += [(Requirement(text), here[1]) for text in metadata.requires(here[0]) or []]
    return {name for name, _ in seen}


def test_the_client_is_small() -> None:
    assert {canonical(Requirement(text).name) for text in BASE} == {"click", "pydantic", "requests"}
    assert len(closure(BASE)) < 15


def run_with(packages: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code that cannot import anything but this package and these."""
    homes = metadata.packages_distributions()
    hidden = [top for top, names in homes.items() if not {canonical(name) for name in names} & packages]
    assert {"pytest", "hypothesis", "demucs"} <= set(hidden)
    return subprocess.run([sys.executable, "-c", HIDE.format(json.dumps(hidden)) + code], **AS_TEXT)


@pytest.mark.parametrize(
    "code",
    [
        "from musicgen_bento.client import AsyncMusicGenClient, MusicGenClient; MusicGenClient()",
        "from musicgen_bento.cli import main; main(['--help'])",
        "from musicgen_bento.cli import main; main(['models', '--help'])",
    ],
)
def test_the_base_install_is_enough_for_the_client_and_its_command_line(code: str) -> None:
    done = run_with(closure(BASE) | {"musicgen-bento"}, code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_the_base_install_cannot_do_says_what_to_install() -> None:
    done = run_with(
        closure(BASE) | {"musicgen-bento"},
        "from musicgen_bento.cli import main; main(['--prompt', 'x', '--output', 'x.wav'])",
    )
    assert done.returncode == 1
    assert 'pip install "musicgen-bento[serve]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_extra_leads_into_none_of_audiocrafts_pins() -> None:
    assert not closure(BASE + SERVE) & {"audiocraft", "torchvision", "torchtext", "gradio"}


@pytest.mark.parametrize("text", BASE + SERVE)
def test_the_lock_agrees_with_the_metadata(text: str) -> None:
    need = Requirement(text)
    assert need.specifier.contains(locked()[canonical(need.name)])


def test_the_environment_is_the_lock() -> None:
    assert {name: metadata.version(name) for name in locked()} == locked()


def test_the_lock_has_hashes_and_no_addresses() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") >= len(re.findall(r"^[\w.-]+==", text, re.MULTILINE))


def test_the_extra_and_audiocraft_are_enough_to_import_audiocraft() -> None:
    code = "import audiocraft.models.builders, audiocraft.models.encodec\nfrom audiocraft.models import MusicGen"
    done = run_with(closure(BASE + SERVE) | {"audiocraft"}, code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_version() -> None:
    assert metadata.version("musicgen-bento") == __version__
    assert f"## {__version__}" in (text := (ROOT / "CHANGELOG.md").read_text()) or "## Unreleased" in text
