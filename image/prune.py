"""Remove what the server does not need from the image's environment. Dockerfile.override runs it after the install.

The server needs the packages of pyproject.toml (the extra `serve`) and their requirements. The other packages of
requirements.lock are for tests and checks. Of the remaining packages it removes files for building and testing.
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

# Triton compiles at run time with a C compiler, which the image does not have. torch runs without it.
UNUSED_PACKAGES = {"triton"}
# Headers, static libraries and tests; tools to compile and profile; libraries that torch is not linked to.
UNUSED_FILES = (
    *("**/*.a", "**/*.lib", "**/tests/", "torch/include/", "torch/share/", "nvidia/**/include/", "nvidia/**/*.bc"),
    *("torch/bin/protoc*", "torch/bin/ptxas", "nvidia/**/libnvperf_*", "nvidia/**/libcusolverMg.*"),
    *("nvidia/**/libnvrtc.alt.*", "nvidia/**/libnvrtc-builtins.alt.*"),
)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(package: Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    """Yield the requirements of a package on this machine, with some of its extras."""
    for line in package.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            yield requirement


def required_packages(roots: list[str]) -> set[str]:
    """Return the installed packages that these requirements need, directly or through others."""
    todo = [Requirement(root) for root in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name, extras = canonical(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen or name in UNUSED_PACKAGES:
            continue
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:  # excluded from the lock on purpose: see excludes.txt
            continue
        seen.add((name, extras))
        todo += requirements_of(package, extras)
    return {name for name, _ in seen}


def main() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    # AudioCraft's own requirements are from 2023; the extra has the packages that it imports.
    roots = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    required = required_packages(roots) | {"audiocraft"}
    unused = sorted({canonical(package.name) for package in distributions()} - required)
    print("removed:", *unused)
    subprocess.run(["uv", "pip", "uninstall", "--quiet", *unused], check=True)
    site = Path(sysconfig.get_path("purelib"))
    for pattern in UNUSED_FILES:
        for path in list(site.glob(pattern.rstrip("/"))):
            if path.is_dir() and pattern.endswith("/"):
                shutil.rmtree(path)
            elif path.is_file() and not pattern.endswith("/"):
                path.unlink()


if __name__ == "__main__":
    main()
