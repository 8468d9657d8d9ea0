"""The manifests as Python data, rendered by kubectl or read from the files."""

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


class ManifestSet:
    """The manifests of one overlay, by kind."""

    def __init__(self, documents: list[Manifest]) -> None:
        self.documents = documents

    def __getitem__(self, kind: str) -> list[Manifest]:
        return [document for document in self.documents if document["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        """Return the names of the manifests of a kind."""
        return {document["metadata"]["name"] for document in self[kind]}

    def pods(self) -> list[Manifest]:
        """Return the pod specs of the Deployments."""
        return [document["spec"]["template"]["spec"] for document in self["Deployment"]]

    def pod_labels(self) -> list[dict[str, str]]:
        """Return the pod labels of the Deployments."""
        return [document["spec"]["template"]["metadata"]["labels"] for document in self["Deployment"]]

    def environment(self, container: Manifest) -> dict[str, str]:
        """Return a container's environment variables. Values of other sources than ConfigMaps are empty."""
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            for document in self["ConfigMap"]:
                if document["metadata"]["name"] == source.get("configMapRef", {}).get("name"):
                    variables |= document["data"]
        return variables | {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def containers(pod: Manifest) -> list[Manifest]:
    """Return all containers of a pod spec, in the order in which they start."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def overlays() -> list[Path]:
    """Return the folders of the base and of all overlays."""
    return [ROOT / "base", *sorted(path.parent for path in (ROOT / "overlays").rglob("kustomization.yaml"))]


def find_kubectl() -> str | None:
    """Return the path of the system's kubectl, else of the kubectl of `deploy/kubectl.txt`; None without both."""
    in_environment = Path(sys.executable).parent / "kubectl"
    return shutil.which("kubectl") or (str(in_environment) if os.access(in_environment, os.X_OK) else None)


def render(kubectl: str, folder: Path) -> list[Manifest]:
    """Return what `kubectl apply -k FOLDER` would send to a cluster. No cluster is contacted.

    Raises:
        ValueError: kustomize refuses the folder.
    """
    result = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(result.stderr.strip() or f"{kubectl} ended with status {result.returncode}")
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def unrendered() -> list[Manifest]:
    """Return the resources of the base and of the components from their files, without patches or generated names."""
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
