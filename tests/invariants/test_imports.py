"""Imports follow the order of packages. The order is in docs/architecture.md, and only there."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import package_order

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "musicgen_bento"

# musicgen_bento.pipeline() imports the highest package, but inside the function: importing musicgen_bento does not.
LAZY = ("musicgen_bento/__init__.py", "musicgen_bento/pipelines.py")
STDLIB = set(sys.stdlib_module_names)
FILES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
ORDER = list(package_order())


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(file): file for file in FILES}


def imported_modules(file: str) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, at its top or in a function, as (dotted name, line)."""
    package_parts = module_name(file).split(".")
    package = package_parts if file.endswith("__init__.py") else package_parts[:-1]
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # `from package import module` imports the module
                name = f"{base}.{alias.name}"
                yield (name if name in MODULES else base, node.lineno)


def project_imports(file: str) -> Iterator[tuple[str, int]]:
    imports = ((MODULES[name], line) for name, line in imported_modules(file) if name in MODULES)
    return ((below, line) for below, line in imports if (file, below) != LAZY)


def transitive_imports(file: str) -> set[str]:
    """The files that a file imports, directly or through other files, itself included."""
    seen: set[str] = set()
    todo = [file]
    while todo:
        if (here := todo.pop()) not in seen:
            seen.add(here)
            todo += [below for below, _ in project_imports(here)]
    return seen


def entry_of(file: str) -> str:
    """The entry of the package order that contains a file: the file itself, or its folder below musicgen_bento/."""
    parts = file.split("/")
    return file if len(parts) == 2 else f"{parts[0]}/{parts[1]}/"


def third_party(file: str) -> set[str]:
    tops = {name.split(".")[0] for name, _ in imported_modules(file)}
    return tops - set(sys.stdlib_module_names) - {"musicgen_bento"}


def modules_loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in result.stdout.split()}


def test_every_file_belongs_to_an_entry_of_the_order() -> None:
    assert {entry_of(file) for file in FILES} - {"musicgen_bento/__init__.py"} == {
        entry for entry in ORDER if entry.endswith(".py") or any((ROOT / entry).glob("*.py"))
    }


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_package_order(file: str) -> None:
    rank = {name: number for number, name in enumerate(ORDER)}  # the package itself is below all
    importing_entry = entry_of(file)
    wrong = [
        f"{file}:{line} imports {below}"
        for below, line in project_imports(file)
        if entry_of(below) != importing_entry and rank.get(entry_of(below), -1) >= rank.get(importing_entry, 0)
    ]
    assert not wrong


@pytest.mark.parametrize("file", FILES)
def test_no_file_imports_itself_through_others(file: str) -> None:
    """There is no import cycle, not even within a package."""
    through = {below for below, _ in project_imports(file)} - {file}
    assert not [below for below in through if file in transitive_imports(below)]


def test_only_audiocraft_codec_imports_audiocraft() -> None:
    assert [file for file in FILES if "audiocraft" in third_party(file)] == [
        "musicgen_bento/checkpoint/audiocraft_codec.py"
    ]


@pytest.mark.parametrize("name", ["engine.scheduler", "model_pool.memory_budget", "lm.delay_pattern"])
def test_scheduling_and_eviction_need_no_torch(name: str) -> None:
    file = f"musicgen_bento/{name.replace('.', '/')}.py"
    assert not [below for below in transitive_imports(file) if "torch" in third_party(below)]
    assert "torch" not in modules_loaded_by(f"import musicgen_bento.{name}")


def test_importing_the_package_imports_the_standard_library_only() -> None:
    assert not modules_loaded_by("import musicgen_bento") - modules_loaded_by("pass") - {"musicgen_bento"} - STDLIB


@pytest.mark.parametrize("name", ["errors.py", "schemas.py", "client/__init__.py"])
def test_the_client_needs_pydantic_and_requests_only(name: str) -> None:
    file = f"musicgen_bento/{name}"
    needs = set().union(*(third_party(below) for below in transitive_imports(file)))
    assert needs <= {"pydantic", "requests", "urllib3"}  # requests requires urllib3
    heavy = {"torch", "numpy", "bentoml", "transformers"}
    assert not modules_loaded_by(f"import {module_name(file)}") & heavy


def test_import_analysis_includes_functions_and_package_members() -> None:
    """Relative imports, imports in functions, modules imported from a package."""
    assert ("musicgen_bento/engine/types.py", 16) not in set(project_imports("musicgen_bento/errors.py"))
    assert "musicgen_bento/errors.py" in {below for below, _ in project_imports("musicgen_bento/engine/types.py")}
    assert {"numpy", "pyloudnorm", "soundfile"} <= third_party("musicgen_bento/audio.py")
