"""The sources of the image, without building it; `make image-check` builds and runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from musicgen_bento.config import Settings

ROOT = Path(__file__).parents[2]
TEMPLATE = (ROOT / "Dockerfile.override").read_text()
BENTO: dict[str, Any] = yaml.safe_load((ROOT / "bentofile.yaml").read_text())


def test_makefile_and_image_use_the_same_uv() -> None:
    [version] = re.findall(r"^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.M)
    assert f"uv=={version} " in TEMPLATE


def test_the_bento_installs_exactly_the_lock() -> None:
    assert BENTO["docker"]["dockerfile_template"] == "Dockerfile.override"
    assert BENTO["python"] == {"requirements_txt": "requirements.lock", "lock_packages": False, "pip_args": "--no-deps"}
    assert "--no-deps --require-hashes -r requirements.lock" in TEMPLATE
    assert [name for name in BENTO["include"] if not (ROOT / name).exists()] == []


def test_the_variables_of_the_image_are_settings() -> None:
    variables = dict(re.findall(r"^\s+MUSICGEN_(\w+)=(\S+) ", TEMPLATE, re.M))
    assert variables == {"ALLOW_ANONYMOUS": "1", "DEFAULT_MODEL": "facebook/musicgen-small", "PRELOAD": "demo"}
    assert {name.lower() for name in variables} <= set(Settings.model_fields)


def test_scripts_are_executable() -> None:
    assert [
        path.name for path in (ROOT / "image").iterdir() if path.suffix == "" and not os.access(path, os.X_OK)
    ] == []


def test_a_model_outside_the_cache_is_one_error_line(tmp_path: Path) -> None:
    command = [sys.executable, "image/bake.py", "--check", "facebook/musicgen-small"]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: compression_state_dict.bin, state_dict.bin of facebook/musicgen-small")
    assert result.stderr.count("\n") == 1
