"""Validates every field of a manifest against Kubernetes' schemas, or this project's schemas of custom resources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

import kubernetes_validate
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import SchemaNotFoundError
from referencing import Registry, Resource

from deploy.manifests import ROOT, Manifest

KUBERNETES_VERSIONS = ("1.28", "1.37")  # the oldest supported version, and a recent one


@cache
def _custom_validators() -> dict[str, Draft202012Validator]:
    """Return the validators of custom resources by kind, in lower case."""
    schemas = {file.stem: json.loads(file.read_text()) for file in (ROOT / "schemas").glob("*.json")}
    common = Registry().with_resource("common.json", Resource.from_contents(schemas.pop("common")))
    return {kind: Draft202012Validator(schema, registry=common) for kind, schema in schemas.items()}


def find_problems(document: Manifest) -> tuple[str, ...]:
    """Return the problems of one manifest: unknown fields, wrong types, missing fields, or an unknown kind."""
    return _cached_problems(json.dumps(document))


@cache  # the overlays have most of their manifests in common
def _cached_problems(text: str) -> tuple[str, ...]:
    return tuple(_validate(json.loads(text)))


def _validate(document: Manifest) -> Iterator[str]:
    kind = str(document.get("kind", "")).lower()
    if validator := _custom_validators().get(kind):
        for error in validator.iter_errors(document):
            yield f"{error.json_path}: {error.message}"
        return
    for version in KUBERNETES_VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message} (Kubernetes {version})"
            return
        except SchemaNotFoundError as error:
            yield f"{error.message}; a custom resource needs deploy/kubernetes/schemas/{kind}.json"
            return
