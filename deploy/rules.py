"""Rules that no schema contains: manifests must be consistent with each other and with the service.

Each rule takes a ManifestSet and yields a message for each problem.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy import promql
from deploy.hardening import hardening
from deploy.manifests import NAMESPACE, Manifest, ManifestSet, containers
from musicgen_bento.config import Settings
from musicgen_bento.model_catalog import find_model

PACKAGE = Path(__file__).parent.parent / "musicgen_bento"
PORT = 8000
PROBE_PATHS = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
SELECTOR_FIELDS = {"PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector", "Deployment": "selector"}
OTHER_VARIABLES = {
    "HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "BENTOML_HOME", "BENTOML_DO_NOT_TRACK", "HOME",
    "NUMBA_CACHE_DIR", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
}  # fmt: skip


def names(manifests: ManifestSet) -> Iterator[str]:
    """Every manifest is in the namespace, no name is used twice, and every referenced name exists."""
    counts = Counter((document["kind"], document["metadata"]["name"]) for document in manifests.documents)
    for (kind, name), count in counts.items():
        if count > 1:
            yield f"{kind} {name} is defined {count} times"
    for document in manifests.documents:
        if document["kind"] != "Namespace" and document["metadata"].get("namespace") != NAMESPACE:
            yield f"{document['kind']} {document['metadata']['name']} is not in the namespace {NAMESPACE}"
    for pod in manifests.pods():
        for kind, name in _references(pod):
            if name not in manifests.names(kind):
                yield f"there is no {kind} {name}"
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in containers(pod):
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{container['name']} mounts {mount['name']}, which is not a volume"


def _references(pod: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the kind and the name of each manifest that a pod refers to."""
    yield "ServiceAccount", pod["serviceAccountName"]
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"]
    for container in containers(pod):
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"]


def settings(manifests: ManifestSet) -> Iterator[str]:
    """Every MUSICGEN_ variable is a field of Settings with a valid value; all other variables are known."""
    for pod in manifests.pods():
        for container in containers(pod):
            environment = manifests.environment(container)
            service_variables = {name: value for name, value in environment.items() if name.startswith("MUSICGEN_")}
            values = {name.removeprefix("MUSICGEN_").lower(): value for name, value in service_variables.items()}
            if unknown := values.keys() - Settings.model_fields.keys():
                yield f"no such setting: {', '.join(f'MUSICGEN_{name.upper()}' for name in sorted(unknown))}"
            known_values: dict[str, Any] = {name: values[name] for name in values.keys() & Settings.model_fields.keys()}
            try:
                parsed = Settings(**known_values)
            except ValidationError as error:
                yield from (f"MUSICGEN_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
                continue
            if not parsed.allow_any_model:
                models = (parsed.default_model, *parsed.preload)
                yield from (f"there is no model {name}" for name in models if find_model(name) is None)
            if unknown := environment.keys() - service_variables.keys() - OTHER_VARIABLES:
                yield f"{container['name']}: unknown variable {', '.join(sorted(unknown))}"


def read_constant(file: str, name: str) -> float:
    """Return a number that a module of the service assigns to a name, without importing the module.

    Raises:
        LookupError: the module does not assign the name.
    """
    for node in ast.parse((PACKAGE / file).read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return float(ast.literal_eval(node.value))
    raise LookupError(f"{name} is not in musicgen_bento/{file}")


def shutdown(manifests: ManifestSet) -> Iterator[str]:
    """The grace period is longer than the sum of all shutdown phases, so that running requests finish."""
    flush_seconds = read_constant("server/shutdown.py", "FLUSH_SECONDS")
    runner_extra_seconds = read_constant("server/service.py", "RUNNER_EXTRA_DRAIN_SECONDS")
    default_drain_seconds = Settings.model_fields["drain_seconds"].default
    for pod in manifests.pods():
        if pod.get("restartPolicy", "Always") != "Always":
            yield "restartPolicy must be Always: BentoML does not restart a dead runner"
        for container in pod["containers"]:
            environment = manifests.environment(container)
            drain_seconds = float(environment.get("MUSICGEN_DRAIN_SECONDS", default_drain_seconds))
            command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            if not (len(command) == 2 and command[0] == "sleep" and float(command[1]) > 0):
                yield f"{container['name']} has no preStop that sleeps"
                continue
            needed_seconds = float(command[1]) + drain_seconds + runner_extra_seconds + 2 * flush_seconds
            grace_seconds = pod.get("terminationGracePeriodSeconds", 30)
            if grace_seconds <= needed_seconds:
                yield (
                    f"terminationGracePeriodSeconds {grace_seconds} is not longer than {needed_seconds:g}, "
                    "the time from preStop to the last response"
                )


def ports(manifests: ManifestSet) -> Iterator[str]:
    """Probes, Services, NetworkPolicies and ServiceMonitors name existing ports and paths."""
    container_ports: set[Any] = set()
    for pod in manifests.pods():
        for container in pod["containers"]:
            numbers = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
            container_ports |= numbers.keys() | set(numbers.values())
            if PORT not in numbers.values():
                yield f"{container['name']} does not declare the port {PORT}"
            for probe, path in PROBE_PATHS.items():
                get = container.get(probe, {}).get("httpGet", {})
                if get.get("path") != path or numbers.get(get.get("port"), get.get("port")) != PORT:
                    yield f"the {probe} must get {path} on port {PORT}"
    if not container_ports:
        return
    for service in manifests["Service"]:
        for port in service["spec"]["ports"]:
            if port.get("targetPort", port["port"]) not in container_ports:
                yield f"Service {service['metadata']['name']}: no container has the port {port.get('targetPort')}"
    for policy in manifests["NetworkPolicy"]:
        for rule in policy["spec"].get("ingress", []):
            if unknown := {port["port"] for port in rule.get("ports", [])} - container_ports:
                yield f"NetworkPolicy: no container has the port {unknown}"
    service_ports = {port.get("name") for service in manifests["Service"] for port in service["spec"]["ports"]}
    for monitor in manifests["ServiceMonitor"]:
        if unknown := {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} - service_ports:
            yield f"ServiceMonitor: no Service has the port {unknown}"


def selectors(manifests: ManifestSet) -> Iterator[str]:
    """Every selector matches the pods of exactly one Deployment, and a Service keeps a client at one pod."""
    if not manifests["Deployment"]:
        return
    for deployment in manifests["Deployment"]:
        template = deployment["spec"]["template"]
        constraints = template["spec"].get("topologySpreadConstraints", [])
        own_selectors = [deployment["spec"].get("selector", {}), *(entry["labelSelector"] for entry in constraints)]
        pod_labels = template["metadata"]["labels"]
        if not all(_matches(selector.get("matchLabels", {}), pod_labels) for selector in own_selectors):
            yield f"Deployment {deployment['metadata']['name']} has a selector that does not match its pods"
    for service in manifests["Service"]:
        if service["spec"].get("sessionAffinity") != "ClientIP":
            yield f"Service {service['metadata']['name']} must keep a client at one pod, which stores its jobs"
    pod_selectors = [(document, document["spec"].get("selector", {})) for document in manifests["Service"]]
    for kind, field in SELECTOR_FIELDS.items():
        pod_selectors += [(d, d["spec"].get(field, {}).get("matchLabels", {})) for d in manifests[kind]]
    for document, selector in pod_selectors:
        count = sum(_matches(selector, labels) for labels in manifests.pod_labels())
        if count != 1:
            yield f"{document['kind']} {document['metadata']['name']} selects the pods of {count} Deployments"
    for monitor in manifests["ServiceMonitor"]:
        selector = monitor["spec"]["selector"]["matchLabels"]
        if not all(_matches(selector, service["metadata"].get("labels", {})) for service in manifests["Service"]):
            yield "the ServiceMonitor does not select every Service"


def _matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def resources(manifests: ManifestSet) -> Iterator[str]:
    """Every container has requests and limits, and all containers of a pod use one image with a tag."""
    for pod in manifests.pods():
        images = {container["image"] for container in containers(pod)}
        if len(images) != 1 or not re.search(r"(:[\w][\w.-]*|@sha256:[0-9a-f]{64})$", min(images)):
            yield f"the containers must have one image with a tag: {', '.join(sorted(images))}"
        for container in containers(pod):
            for part in ("requests", "limits"):
                if missing := {"cpu", "memory"} - container.get("resources", {}).get(part, {}).keys():
                    yield f"{container['name']} has no {part} for {', '.join(sorted(missing))}"


def queries(manifests: ManifestSet) -> Iterator[str]:
    """Alerts and autoscaling triggers name existing metrics, labels and error codes."""
    for rule in manifests["PrometheusRule"]:
        alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
        for name, count in Counter(alert["alert"] for alert in alerts).items():
            if count > 1:
                yield f"{name} is defined {count} times"
        for alert in alerts:
            yield from (f"{alert['alert']}: {problem}" for problem in promql.find_problems(alert["expr"]))
    for scaled_object in manifests["ScaledObject"]:
        for trigger in scaled_object["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            yield from (f"trigger {trigger['name']}: {problem}" for problem in promql.find_problems(query))
            for label, existing in (("service", manifests.names("Service")), ("namespace", {NAMESPACE})):
                if set(re.findall(rf'{label}="([^"]*)"', query)) - existing:
                    yield f"trigger {trigger['name']} names a {label} that does not exist: {query}"


def scaling(manifests: ManifestSet) -> Iterator[str]:
    """An autoscaler scales a Deployment without `replicas`, and adds a pod before all slots are in use."""
    deployments = {document["metadata"]["name"]: document for document in manifests["Deployment"]}
    for scaled_object in manifests["ScaledObject"]:
        target = scaled_object["spec"]["scaleTargetRef"]["name"]
        deployment = deployments.get(target)
        if deployment is None:
            yield f"the ScaledObject scales {target}, which is not a Deployment"
            continue
        if "replicas" in deployment["spec"]:
            yield f"Deployment {target} has replicas, so each apply would override the autoscaler"
        environment = manifests.environment(deployment["spec"]["template"]["spec"]["containers"][0])
        max_slots = float(environment.get("MUSICGEN_MAX_SLOTS", "inf"))
        for trigger in scaled_object["spec"]["triggers"]:
            threshold = trigger["metadata"]["threshold"]
            if trigger["name"] == "slots" and float(threshold) >= max_slots:
                yield f"trigger slots: the threshold {threshold} is not below MUSICGEN_MAX_SLOTS"


def routes(manifests: ManifestSet) -> Iterator[str]:
    """Every route leads to the port of an existing Service."""
    service_ports = {
        (service["metadata"]["name"], port["port"])
        for service in manifests["Service"]
        for port in service["spec"]["ports"]
    }
    for route in manifests["HTTPRoute"]:
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                if (backend["name"], backend.get("port")) not in service_ports:
                    yield f"the route leads to {backend['name']}:{backend.get('port')}, which is not a Service"


ALL_RULES: tuple[Callable[[ManifestSet], Iterator[str]], ...] = (
    names, settings, shutdown, ports, selectors, hardening, resources, queries, scaling, routes,
)  # fmt: skip
