"""The manifests as data: rendered by kubectl, or read as they are where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).parent / "kubernetes"
NAMESPACE = "musicgen"


def overlays() -> list[Path]:
    """What can be deployed, and the base."""
    return [ROOT / "base", *sorted(path.parent for path in (ROOT / "overlays").rglob("kustomization.yaml"))]


def kubectl() -> str | None:
    """The system's, or the one that `deploy/kubectl.txt` put into the environment."""
    beside = Path(sys.executable).parent / "kubectl"
    return shutil.which("kubectl") or (str(beside) if os.access(beside, os.X_OK) else None)


def render(program: str, folder: Path) -> list[Manifest]:
    """What `kubectl apply -k FOLDER` would send; no cluster is asked.

    Raises:
        ValueError: kustomize refuses the folder.
    """
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.strip() or f"{program} ended with status {done.returncode}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def written() -> list[Manifest]:
    """The base and the components' own resources as they are written, without patches and generated names."""
    documents: list[Manifest] = []
    for file in sorted(ROOT.glob("*/**/kustomization.yaml")):
        if file.parent.name == "base" or "components" in file.parts:
            for name in yaml.safe_load(file.read_text()).get("resources", []):
                documents += yaml.safe_load_all((file.parent / name).read_text())
    settings = [line for line in (ROOT / "base/settings.env").read_text().splitlines() if line and line[0] != "#"]
    documents.append(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "musicgen-settings"},
            "data": dict(line.split("=", 1) for line in settings),
        }
    )
    for document in documents:
        if document["kind"] != "Namespace":
            document["metadata"]["namespace"] = NAMESPACE
    return documents
