"""Compiles the kernel (musicgen_bento/native) wherever the package is built; the rest is in pyproject.toml.

For every kind of processor that it knows, whatever it is compiled on: zig's C compiler compiles for others too, and for
a C library of 2012, so that one build serves all.
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
KINDS = {  # as musicgen_bento/native/bindings.py names them
    "x86_64-avx512": ("x86_64-linux-gnu.2.17", "x86_64_v4+avx512vnni"),
    "x86_64-avx2": ("x86_64-linux-gnu.2.17", "x86_64_v3"),
    "aarch64-dotprod": ("aarch64-linux-gnu.2.17", "generic+dotprod"),
}
# A product and a sum in one expression are one operation, which rounds once: wherever the expression stands, so that no
# two places round differently.
FLAGS = ("-O3", "-ffp-contract=on", "-fno-math-errno", "-Wall", "-Wextra", "-Werror")
LIBRARY = ("-shared", "-fPIC", "-pthread", "-s", "-lm")


def compile_kernel() -> None:
    """Each kind of it, beside its sources."""
    sources = sorted(NATIVE.glob("*.c"))
    if not sources:
        raise SystemExit(f"The kernel's sources are missing: {NATIVE}/*.c")
    with TemporaryDirectory() as folder:
        caches = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        for name, (target, processor) in KINDS.items():
            command = [sys.executable, "-m", "ziglang", "cc", "-target", target, f"-mcpu={processor}", *FLAGS, *sources]
            made = Path(folder) / f"{name}.so"
            subprocess.run([*command, *LIBRARY, "-o", made], check=True, env=os.environ | caches)
            # whoever has the old one open keeps it
            (NATIVE / f".{made.name}").write_bytes(made.read_bytes())
            (NATIVE / f".{made.name}").replace(NATIVE / made.name)


class Build(build_py):
    """The package's files, the kernel among them."""

    def run(self) -> None:
        """See build_py."""
        compile_kernel()
        super().run()


setup(cmdclass={"build_py": Build})
