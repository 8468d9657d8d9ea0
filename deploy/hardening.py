"""The rule of user, capabilities and writable folders of the pods."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.manifests import Manifest, ManifestSet, containers

USER_ID = 1034


def hardening(manifests: ManifestSet) -> Iterator[str]:
    """Pods run unprivileged and can write to /tmp and the cache only."""
    for pod in manifests.pods():
        context = pod.get("securityContext", {})
        required = {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for name, value in required.items():
            if context.get(name) != value:
                yield f"the pod's {name} must be {value}"
        if pod.get("automountServiceAccountToken") is not False:
            yield "the pod must have no token"
        for index, container in enumerate(containers(pod)):
            yield from _container_privileges(container, is_first=index == 0)
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in container["volumeMounts"]}
            if not mounts.get("/tmp", {}).get("emptyDir", {}).get("sizeLimit"):
                yield f"{container['name']} must have a /tmp of a limited size"
            environment = manifests.environment(container)
            if not environment.get("BENTOML_HOME", "").startswith("/tmp/"):
                yield "BENTOML_HOME must be under /tmp"
            if environment.get("HF_HOME") not in mounts and environment.get("HF_HUB_OFFLINE") != "1":
                yield "HF_HOME is not a mounted folder"


def _container_privileges(container: Manifest, is_first: bool) -> Iterator[str]:
    """Check the user and the capabilities. Only `chown-cache` may run as root, to change the owner of the cache."""
    context = container.get("securityContext", {})
    capabilities = {"drop": ["ALL"]}
    if container["name"] == "chown-cache":
        capabilities["add"] = ["CHOWN"]
        if not is_first:
            yield "chown-cache must be the first container: the others write to the folder whose owner it changes"
    elif context.get("runAsNonRoot") is False or context.get("runAsUser", USER_ID) != USER_ID:
        yield f"{container['name']} runs as another user"
    if context.get("capabilities") != capabilities or context.get("allowPrivilegeEscalation") is not False:
        yield f"{container['name']} has more privileges than it needs"
    if context.get("readOnlyRootFilesystem") is not True or context.get("privileged"):
        yield f"{container['name']} can write to its root file system"
