"""Leaves in the image's environment what the service needs: run by Dockerfile.override after the lock is installed.

What the service needs is what pyproject.toml says (the extra `serve`) and what that requires in turn; the rest of the
lock is for tests and checks. Of the packages that stay, files go that only serve to build or test something.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

# Triton compiles at run time, with a C compiler that the image does not have; torch does without it.
USELESS = {"triton"}
# Headers, static libraries, tests; tools to compile and to profile; what no library of torch is linked to.
FILES = (
    *("**/*.a", "**/*.lib", "**/tests/", "torch/include/", "torch/share/", "nvidia/**/include/", "nvidia/**/*.bc"),
    *("torch/bin/protoc*", "torch/bin/ptxas", "nvidia/**/libnvperf_*", "nvidia/**/libcusolverMg.*"),
    *("nvidia/**/libnvrtc.alt.*", "nvidia/**/libnvrtc-builtins.alt.*"),
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(found: Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    for line in found.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            yield requirement


def needed(roots: list[str]) -> set[str]:
    """The installed packages that these requirements reach."""
    todo = [Requirement(root) for root in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        here = (normal(requirement.name), frozenset(requirement.extras))
        if here in seen or here[0] in USELESS:
            continue
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:  # left out of the lock on purpose: see excludes.txt
            continue
        seen.add(here)
        todo += required(found, here[1])
    return {name for name, _ in seen}


def main() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    # AudioCraft's own requirements are those of 2023; the extra brings what it imports.
    keep = needed([*project["dependencies"], *project["optional-dependencies"]["serve"]]) | {"audiocraft"}
    gone = sorted({normal(each.name) for each in distributions()} - keep)
    print("left out:", *gone)
    subprocess.run(["uv", "pip", "uninstall", "--quiet", *gone], check=True)
    site = Path(sysconfig.get_path("purelib"))
    for pattern in FILES:
        for path in list(site.glob(pattern.rstrip("/"))):
            if path.is_dir() and pattern.endswith("/"):
                shutil.rmtree(path)
            elif path.is_file() and not pattern.endswith("/"):
                path.unlink()


if __name__ == "__main__":
    main()
