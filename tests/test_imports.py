"""Law 8: imports go down only. The order is the map of the code in README.md, and there alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.readme import code_map

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "musicgen_bento"

# The package's door to its last rooms: opened when somebody knocks, as test_the_package_is_light sees.
DOOR = ("musicgen_bento/__init__.py", "musicgen_bento/pipelines.py")
STDLIB = set(sys.stdlib_module_names)
ORDER = [name for name in code_map() if name.endswith(".py")]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(file): file for file in FILES}


def imported(file: str) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, at its top or in a function, as (dotted name, line)."""
    here = module_name(file).split(".")
    package = here if file.endswith("__init__.py") else here[:-1]
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # `from package import module` imports the module
                name = f"{base}.{alias.name}"
                yield (name if name in MODULES else base, node.lineno)


def own(file: str) -> Iterator[tuple[str, int]]:
    found = ((MODULES[name], line) for name, line in imported(file) if name in MODULES)
    return ((below, line) for below, line in found if (file, below) != DOOR)


def everything_below(file: str) -> set[str]:
    """The files that importing one can bring in, itself included."""
    seen: set[str] = set()
    todo = [file]
    while todo:
        if (here := todo.pop()) not in seen:
            seen.add(here)
            todo += [below for below, _ in own(here)]
    return seen


def third_party(file: str) -> set[str]:
    tops = {name.split(".")[0] for name, _ in imported(file)}
    return tops - set(sys.stdlib_module_names) - {"musicgen_bento"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_every_file_has_its_place() -> None:
    inits = {file for file in FILES if file.endswith("__init__.py")}
    assert sorted(ORDER) == sorted(set(FILES) - inits)


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down(file: str) -> None:
    place = {name: number for number, name in enumerate(ORDER)}  # an __init__ imports nothing and is above all
    wrong = [
        f"{file}:{line} imports {below}" for below, line in own(file) if place.get(below, -1) >= place.get(file, 0)
    ]
    assert not wrong


def test_one_file_imports_audiocraft() -> None:
    assert [file for file in FILES if "audiocraft" in third_party(file)] == ["musicgen_bento/engine/checkpoint.py"]


@pytest.mark.parametrize("name", ["scheduler", "budget", "delay"])
def test_who_is_next_is_decided_without_torch(name: str) -> None:
    file = f"musicgen_bento/engine/{name}.py"
    assert not [below for below in everything_below(file) if "torch" in third_party(below)]
    assert "torch" not in modules_after(f"import musicgen_bento.engine.{name}")


def test_the_package_is_light() -> None:
    assert not modules_after("import musicgen_bento") - modules_after("pass") - {"musicgen_bento"} - STDLIB


@pytest.mark.parametrize("name", ["errors", "schemas", "client"])
def test_the_client_needs_pydantic_and_requests_alone(name: str) -> None:
    file = f"musicgen_bento/{name}.py"
    needs = set().union(*(third_party(below) for below in everything_below(file)))
    assert needs <= {"pydantic", "requests", "urllib3"}  # which is requests' own
    assert not modules_after(f"import musicgen_bento.{name}") & {"torch", "numpy", "bentoml", "transformers"}


def test_what_carries_the_laws_is_seen() -> None:
    """The walk itself: relative imports, imports in functions, modules imported from a package."""
    assert ("musicgen_bento/engine/types.py", 16) not in set(own("musicgen_bento/errors.py"))
    assert "musicgen_bento/errors.py" in {below for below, _ in own("musicgen_bento/engine/types.py")}
    assert {"numpy", "pyloudnorm", "soundfile"} <= third_party("musicgen_bento/audio.py")
