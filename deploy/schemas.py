"""Every field of every manifest: Kubernetes' own schemas, and this project's for custom resources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

import kubernetes_validate
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import SchemaNotFoundError
from referencing import Registry, Resource

from deploy.manifests import ROOT, Manifest

VERSIONS = ("1.28", "1.37")  # of Kubernetes: the oldest that these manifests are meant for, and a new one


@cache
def _custom() -> dict[str, Draft202012Validator]:
    """Kind, in small letters → what validates it."""
    schemas = {file.stem: json.loads(file.read_text()) for file in (ROOT / "schemas").glob("*.json")}
    common = Registry().with_resource("common.json", Resource.from_contents(schemas.pop("common")))
    return {kind: Draft202012Validator(schema, registry=common) for kind, schema in schemas.items()}


def problems(document: Manifest) -> tuple[str, ...]:
    """What is wrong with one manifest: an unknown field, a wrong type, something missing, an unknown kind."""
    return _problems(json.dumps(document))


@cache  # the overlays have most of their manifests in common
def _problems(text: str) -> tuple[str, ...]:
    return tuple(_found(json.loads(text)))


def _found(document: Manifest) -> Iterator[str]:
    kind = str(document.get("kind", "")).lower()
    if validator := _custom().get(kind):
        for error in validator.iter_errors(document):
            yield f"{error.json_path}: {error.message}"
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message} (Kubernetes {version})"
            return
        except SchemaNotFoundError as error:
            yield f"{error.message}; a custom resource needs deploy/kubernetes/schemas/{kind}.json"
            return
