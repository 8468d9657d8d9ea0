"""Compiles the C kernel (musicgen_bento/native) when the package is built. pyproject.toml configures the rest.

Each build compiles the variants for all supported processors: zig's C compiler cross-compiles, and it targets a C
library of 2012. So one build runs on all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import setup
from setuptools.command.build_py import build_py

NATIVE = Path(__file__).parent / "musicgen_bento" / "native"
VARIANTS = {  # target and processor of each variant; musicgen_bento/native/bindings.py selects one by name
    "x86_64-avx512": ("x86_64-linux-gnu.2.17", "x86_64_v4+avx512vnni"),
    "x86_64-avx2": ("x86_64-linux-gnu.2.17", "x86_64_v3"),
    "aarch64-dotprod": ("aarch64-linux-gnu.2.17", "generic+dotprod"),
}
# -ffp-contract=on fuses a product and a sum of one expression into one operation, which rounds once. It does so
# wherever the expression stands, so that the same expression rounds in the same way everywhere.
COMPILE_FLAGS = ("-O3", "-ffp-contract=on", "-fno-math-errno", "-Wall", "-Wextra", "-Werror")
LINK_FLAGS = ("-shared", "-fPIC", "-pthread", "-s", "-lm")


def compile_kernel() -> None:
    """Compile each variant and write it beside the sources."""
    sources = sorted(NATIVE.glob("*.c"))
    if not sources:
        raise SystemExit(f"The sources of the C kernel are missing: {NATIVE}/*.c")
    with TemporaryDirectory() as folder:
        caches = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        compiler = [sys.executable, "-m", "ziglang", "cc"]
        for name, (target, processor) in VARIANTS.items():
            compile_options = ["-target", target, f"-mcpu={processor}", *COMPILE_FLAGS]
            output = Path(folder) / f"{name}.so"
            command = [*compiler, *compile_options, *sources, *LINK_FLAGS, "-o", output]
            subprocess.run(command, check=True, env=os.environ | caches)
            # Replace the file instead of writing to it: processes that have loaded the old one keep it.
            (NATIVE / f".{output.name}").write_bytes(output.read_bytes())
            (NATIVE / f".{output.name}").replace(NATIVE / output.name)


class BuildWithKernel(build_py):
    """The build step of setuptools, with the kernel."""

    def run(self) -> None:
        """Compile the kernel, then copy the package's files."""
        compile_kernel()
        super().run()


setup(cmdclass={"build_py": BuildWithKernel})
