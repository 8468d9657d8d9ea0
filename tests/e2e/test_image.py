"""What the image is built from, read without building it: `make image-check` does that."""

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


def test_one_uv() -> None:
    [version] = re.findall(r"^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.M)
    assert f"uv=={version} " in TEMPLATE


def test_the_bento_takes_the_lock_as_it_is() -> None:
    assert BENTO["docker"]["dockerfile_template"] == "Dockerfile.override"
    assert BENTO["python"] == {"requirements_txt": "requirements.lock", "lock_packages": False, "pip_args": "--no-deps"}
    assert "--no-deps --require-hashes -r requirements.lock" in TEMPLATE
    assert [name for name in BENTO["include"] if not (ROOT / name).exists()] == []


def test_the_images_settings_are_settings() -> None:
    found = dict(re.findall(r"^\s+MUSICGEN_(\w+)=(\S+) ", TEMPLATE, re.M))
    assert found == {"ALLOW_ANONYMOUS": "1", "DEFAULT_MODEL": "facebook/musicgen-small", "PRELOAD": "demo"}
    assert {name.lower() for name in found} <= set(Settings.model_fields)


def test_scripts_may_be_run() -> None:
    assert [
        path.name for path in (ROOT / "image").iterdir() if path.suffix == "" and not os.access(path, os.X_OK)
    ] == []


def test_a_model_that_is_not_cached_cannot_be_put_into_an_image(tmp_path: Path) -> None:
    command = [sys.executable, "image/bake.py", "--check", "facebook/musicgen-small"]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: compression_state_dict.bin, state_dict.bin of facebook/musicgen-small")
    assert done.stderr.count("\n") == 1
