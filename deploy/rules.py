"""What no schema says: that the manifests fit together, and fit the service."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy import promql
from deploy.manifests import NAMESPACE, Manifest
from musicgen_bento.config import Settings
from musicgen_bento.model_catalog import find_model

PACKAGE = Path(__file__).parent.parent / "musicgen_bento"
PORT = 8000
USER = 1034
OTHER_VARIABLES = {
    "HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "BENTOML_HOME", "BENTOML_DO_NOT_TRACK", "HOME",
    "NUMBA_CACHE_DIR", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
}  # fmt: skip


class Set:
    """The manifests of one rendering, by kind."""

    def __init__(self, documents: list[Manifest]) -> None:
        self.documents = documents

    def __getitem__(self, kind: str) -> list[Manifest]:
        return [document for document in self.documents if document["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {document["metadata"]["name"] for document in self[kind]}

    def pods(self) -> list[Manifest]:
        """The Deployments' pod specs."""
        return [document["spec"]["template"]["spec"] for document in self["Deployment"]]

    def labels(self) -> list[dict[str, str]]:
        """The Deployments' pods' labels."""
        return [document["spec"]["template"]["metadata"]["labels"] for document in self["Deployment"]]

    def environment(self, container: Manifest) -> dict[str, str]:
        """What a container is given by ConfigMaps; the values of other sources are empty."""
        given: dict[str, str] = {}
        for source in container.get("envFrom", []):
            for document in self["ConfigMap"]:
                if document["metadata"]["name"] == source.get("configMapRef", {}).get("name"):
                    given |= document["data"]
        return given | {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def containers(pod: Manifest) -> list[Manifest]:
    """All of a pod's, in the order they run."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def names(found: Set) -> Iterator[str]:
    """One namespace, no name twice, and every name that is used is there."""
    for (kind, name), times in Counter((d["kind"], d["metadata"]["name"]) for d in found.documents).items():
        if times > 1:
            yield f"{kind} {name} is there {times} times"
    for document in found.documents:
        if document["kind"] != "Namespace" and document["metadata"].get("namespace") != NAMESPACE:
            yield f"{document['kind']} {document['metadata']['name']} is not in the namespace {NAMESPACE}"
    for pod in found.pods():
        used = [("ServiceAccount", pod["serviceAccountName"])]
        for volume in pod.get("volumes", []):
            used += [("ConfigMap", volume["configMap"]["name"])] if "configMap" in volume else []
            claim = volume.get("persistentVolumeClaim")
            used += [("PersistentVolumeClaim", claim["claimName"])] if claim else []
        for container in containers(pod):
            used += [("ConfigMap", source["configMapRef"]["name"]) for source in container.get("envFrom", [])]
        yield from (f"there is no {kind} {name}" for kind, name in used if name not in found.names(kind))
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in containers(pod):
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{container['name']} mounts {mount['name']}, which is no volume"


def settings(found: Set) -> Iterator[str]:
    """Every MUSICGEN_ variable is one of Settings, with a value that it takes; other variables are known ones."""
    for pod in found.pods():
        for container in containers(pod):
            given = found.environment(container)
            ours = {name: value for name, value in given.items() if name.startswith("MUSICGEN_")}
            fields = {name.removeprefix("MUSICGEN_").lower(): value for name, value in ours.items()}
            if unknown := fields.keys() - Settings.model_fields.keys():
                yield f"no such setting: {', '.join(f'MUSICGEN_{name.upper()}' for name in sorted(unknown))}"
            try:
                chosen = Settings(**{name: fields[name] for name in fields.keys() & Settings.model_fields.keys()})  # type: ignore[arg-type]
            except ValidationError as error:
                yield from (f"MUSICGEN_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
                continue
            if not chosen.allow_any_model:
                models = (chosen.default_model, *chosen.preload)
                yield from (f"there is no model {name}" for name in models if find_model(name) is None)
            if unknown := given.keys() - ours.keys() - OTHER_VARIABLES:
                yield f"{container['name']}: what is {', '.join(sorted(unknown))} for?"


def constant(file: str, name: str) -> float:
    """A number that a module of the service is written with; importing it would start too much."""
    for node in ast.parse((PACKAGE / file).read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return float(ast.literal_eval(node.value))
    raise LookupError(f"{name} is not in musicgen_bento/{file} any more")


def way_out(found: Set) -> Iterator[str]:
    """A clip can finish: the grace period is longer than all that is waited for."""
    answers = constant("server/shutdown.py", "LAST_ANSWERS")
    outlives = constant("server/service.py", "RUNNER_OUTLIVES")
    default = Settings.model_fields["drain_seconds"].default
    for pod in found.pods():
        if pod.get("restartPolicy", "Always") != "Always":
            yield "restartPolicy must be Always: BentoML does not start a dead runner again"
        for container in pod["containers"]:
            drain = float(found.environment(container).get("MUSICGEN_DRAIN_SECONDS", default))
            command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            if not (len(command) == 2 and command[0] == "sleep" and float(command[1]) > 0):
                yield f"{container['name']} has no preStop that sleeps"
                continue
            needed = float(command[1]) + drain + outlives + 2 * answers
            if (grace := pod.get("terminationGracePeriodSeconds", 30)) <= needed:
                yield f"terminationGracePeriodSeconds {grace} is not longer than {needed:g}, preStop to last answers"


def ports(found: Set) -> Iterator[str]:
    """Probes, Services, NetworkPolicies and ServiceMonitors name ports and paths that are there."""
    there: set[Any] = set()
    for pod in found.pods():
        for container in pod["containers"]:
            own = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
            there |= own.keys() | set(own.values())
            if PORT not in own.values():
                yield f"{container['name']} does not say its port, {PORT}"
            for probe, path in {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}.items():
                get = container.get(f"{probe}Probe", {}).get("httpGet", {})
                if get.get("path") != path or (own.get(get.get("port"), get.get("port")) != PORT):
                    yield f"the {probe}Probe must ask {path} on {PORT}"
    if not there:
        return
    for service in found["Service"]:
        for port in service["spec"]["ports"]:
            if port.get("targetPort", port["port"]) not in there:
                yield f"Service {service['metadata']['name']}: no container has the port {port.get('targetPort')}"
    for policy in found["NetworkPolicy"]:
        for rule in policy["spec"].get("ingress", []):
            if unknown := {port["port"] for port in rule.get("ports", [])} - there:
                yield f"NetworkPolicy: no container has the port {unknown}"
    served = {port.get("name") for service in found["Service"] for port in service["spec"]["ports"]}
    for monitor in found["ServiceMonitor"]:
        if unknown := {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} - served:
            yield f"ServiceMonitor: no Service has the port {unknown}"


def selectors(found: Set) -> Iterator[str]:
    """What selects pods or Services finds them, and the pods of one Deployment only; a client stays with its pod."""

    def finds(selector: dict[str, str], labels: dict[str, str]) -> bool:
        return bool(selector) and selector.items() <= labels.items()

    if not found["Deployment"]:
        return
    for deployment in found["Deployment"]:
        template = deployment["spec"]["template"]
        labels, constraints = template["metadata"]["labels"], template["spec"].get("topologySpreadConstraints", [])
        own = [deployment["spec"].get("selector", {}), *(constraint["labelSelector"] for constraint in constraints)]
        if not all(finds(selector.get("matchLabels", {}), labels) for selector in own):
            yield f"Deployment {deployment['metadata']['name']} has a selector that does not find its pods"
    for service in found["Service"]:
        if service["spec"].get("sessionAffinity") != "ClientIP":
            yield f"Service {service['metadata']['name']} must keep a client at its pod: that has its jobs"
    others = [(service, service["spec"].get("selector", {})) for service in found["Service"]]
    others += [(d, d["spec"].get("selector", {}).get("matchLabels", {})) for d in found["PodDisruptionBudget"]]
    others += [(d, d["spec"].get("podSelector", {}).get("matchLabels", {})) for d in found["NetworkPolicy"]]
    others += [(d, d["spec"]["selector"].get("matchLabels", {})) for d in found["Deployment"]]
    for document, selector in others:
        if (number := sum(finds(selector, labels) for labels in found.labels())) != 1:
            yield f"{document['kind']} {document['metadata']['name']} selects the pods of {number} Deployments"
    for monitor in found["ServiceMonitor"]:
        selector = monitor["spec"]["selector"]["matchLabels"]
        if not all(finds(selector, service["metadata"].get("labels", {})) for service in found["Service"]):
            yield "the ServiceMonitor does not find every Service"


def hardening(found: Set) -> Iterator[str]:
    """Nobody is root, nothing is writable but /tmp and the cache. One exception, `own-cache`, may change owners."""
    for pod in found.pods():
        context = pod.get("securityContext", {})
        wanted: dict[str, Any] = {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER}
        wanted["seccompProfile"] = {"type": "RuntimeDefault"}
        yield from (f"the pod's {name} must be {value}" for name, value in wanted.items() if context.get(name) != value)
        if pod.get("automountServiceAccountToken") is not False:
            yield "the pod must have no token"
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for place, container in enumerate(containers(pod)):
            own = container.get("securityContext", {})
            capabilities = {"drop": ["ALL"]}
            if container["name"] == "own-cache":
                capabilities["add"] = ["CHOWN"]
                if place:
                    yield "own-cache must be the first container: the others write what it gives them"
            elif own.get("runAsNonRoot") is False or own.get("runAsUser", USER) != USER:
                yield f"{container['name']} runs as another user"
            if own.get("capabilities") != capabilities or own.get("allowPrivilegeEscalation") is not False:
                yield f"{container['name']} may do more than it must"
            if own.get("readOnlyRootFilesystem") is not True or own.get("privileged"):
                yield f"{container['name']} can write its root"
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in container["volumeMounts"]}
            if not mounts.get("/tmp", {}).get("emptyDir", {}).get("sizeLimit"):
                yield f"{container['name']} must have a /tmp of a limited size"
            given = found.environment(container)
            if not given.get("BENTOML_HOME", "").startswith("/tmp/"):
                yield "BENTOML_HOME must be under /tmp"
            if given.get("HF_HOME") not in mounts and given.get("HF_HUB_OFFLINE") != "1":
                yield "HF_HOME is no mounted folder"


def resources(found: Set) -> Iterator[str]:
    """Every container says what it needs and has one image with a tag."""
    for pod in found.pods():
        images = {container["image"] for container in containers(pod)}
        if len(images) != 1 or not re.search(r"(:[\w][\w.-]*|@sha256:[0-9a-f]{64})$", min(images)):
            yield f"the containers must have one image with a tag: {', '.join(sorted(images))}"
        for container in containers(pod):
            for part in ("requests", "limits"):
                if missing := {"cpu", "memory"} - container.get("resources", {}).get(part, {}).keys():
                    yield f"{container['name']} has no {part} for {', '.join(sorted(missing))}"


def queries(found: Set) -> Iterator[str]:
    """Alerts and triggers name metrics, labels and error codes that are there."""
    for rule in found["PrometheusRule"]:
        alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
        for name, times in Counter(alert["alert"] for alert in alerts).items():
            if times > 1:
                yield f"{name} is there {times} times"
        for alert in alerts:
            yield from (f"{alert['alert']}: {problem}" for problem in promql.problems(alert["expr"]))
    for scaled in found["ScaledObject"]:
        for trigger in scaled["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            yield from (f"trigger {trigger['name']}: {problem}" for problem in promql.problems(query))
            for label, expected in (("service", found.names("Service")), ("namespace", {NAMESPACE})):
                if set(re.findall(rf'{label}="([^"]*)"', query)) - expected:
                    yield f"trigger {trigger['name']} asks for a {label} that is not there: {query}"


def scaling(found: Set) -> Iterator[str]:
    """An autoscaler has a Deployment, which has no number of its own; it grows before the slots are full."""
    for scaled in found["ScaledObject"]:
        target = scaled["spec"]["scaleTargetRef"]["name"]
        for deployment in found["Deployment"]:
            if deployment["metadata"]["name"] == target:
                if "replicas" in deployment["spec"]:
                    yield f"Deployment {target} has replicas, which an apply would set the autoscaler back to"
                given = found.environment(deployment["spec"]["template"]["spec"]["containers"][0])
                for trigger in scaled["spec"]["triggers"]:
                    slots = float(given.get("MUSICGEN_MAX_SLOTS", "inf"))
                    if trigger["name"] == "slots" and float(trigger["metadata"]["threshold"]) >= slots:
                        yield f"trigger slots: {trigger['metadata']['threshold']} is all of MUSICGEN_MAX_SLOTS or more"
                break
        else:
            yield f"the ScaledObject scales {target}, which is no Deployment here"


def routes(found: Set) -> Iterator[str]:
    """A route leads to Services that are there."""
    served = {(d["metadata"]["name"], port["port"]) for d in found["Service"] for port in d["spec"]["ports"]}
    for route in found["HTTPRoute"]:
        for backend in (backend for rule in route["spec"]["rules"] for backend in rule["backendRefs"]):
            if (backend["name"], backend.get("port")) not in served:
                yield f"the route leads to {backend['name']}:{backend.get('port')}, which is no Service"


ALL: tuple[Callable[[Set], Iterator[str]], ...] = (
    names, settings, way_out, ports, selectors, hardening, resources, queries, scaling, routes,
)  # fmt: skip
