"""The checks of the Kubernetes manifests accept the real manifests and detect planted errors."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import check, manifests, promql, rules
from deploy.manifests import Manifest, ManifestSet
from musicgen_bento.cli import docker_entrypoint
from musicgen_bento.config import Settings
from musicgen_bento.model_catalog import find_model
from musicgen_bento.native.bindings import BLOCK_SIZE
from musicgen_bento.precision import FLOAT16, INT8
from musicgen_bento.runner import metrics

PlantError = Callable[[dict[str, Manifest]], object]
DOCUMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


@pytest.fixture(scope="module")
def documents() -> list[Manifest]:
    """All manifests as kubectl would send them to a cluster; without kubectl, from the files."""
    kubectl = manifests.find_kubectl()
    return manifests.render(kubectl, manifests.ROOT / "overlays/gpu-full") if kubectl else manifests.unrendered()


def container(by_kind: dict[str, Manifest]) -> dict[str, Any]:
    return by_kind["Deployment"]["spec"]["template"]["spec"]["containers"][0]  # type: ignore[no-any-return]


def pod(by_kind: dict[str, Manifest]) -> dict[str, Any]:
    return by_kind["Deployment"]["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def settings(by_kind: dict[str, Manifest]) -> dict[str, str]:
    return by_kind["ConfigMap"]["data"]  # type: ignore[no-any-return]


def set_alert(by_kind: dict[str, Manifest], expr: str) -> None:
    by_kind["PrometheusRule"]["spec"]["groups"][0]["rules"][0]["expr"] = expr


def trigger(by_kind: dict[str, Manifest]) -> dict[str, Any]:
    return by_kind["ScaledObject"]["spec"]["triggers"][0]["metadata"]  # type: ignore[no-any-return]


def test_the_manifests_are_valid(documents: list[Manifest]) -> None:
    assert check.find_problems(documents) == []
    assert check.find_problems(manifests.unrendered()) == []


PLANTED_ERRORS: dict[str, tuple[PlantError, str]] = {
    # schemas
    "unknown field": (lambda f: container(f).update(livenesProbe={}), "'livenesProbe' was unexpected"),
    "wrong type": (lambda f: pod(f).update(terminationGracePeriodSeconds="100"), "'100' is not of type"),
    "missing field": (lambda f: f["Deployment"]["spec"].pop("selector"), "'selector' is a required property"),
    "unknown kind": (lambda f: f["Service"].update(kind="Sevrice"), "a custom resource needs"),
    "ScaledObject, unknown field": (lambda f: f["ScaledObject"]["spec"].update(maxReplicas=3), "'maxReplicas'"),
    "ScaledObject, wrong type": (lambda f: trigger(f).update(threshold=4), "4 is not of type 'string'"),
    "ServiceMonitor, wrong type": (
        lambda f: f["ServiceMonitor"]["spec"]["endpoints"][0].update(interval="15 seconds"), "does not match"
    ),
    "PrometheusRule, no severity": (
        lambda f: f["PrometheusRule"]["spec"]["groups"][0]["rules"][0].update(labels={}), "'severity' is a required"
    ),
    # settings
    "unknown setting": (lambda f: settings(f).update(MUSICGEN_MAX_QUEU="3"), "no such setting: MUSICGEN_MAX_QUEU"),
    "value out of range": (lambda f: settings(f).update(MUSICGEN_MAX_SLOTS="1000"), "MUSICGEN_MAX_SLOTS: "),
    "unknown model": (lambda f: settings(f).update(MUSICGEN_PRELOAD="facebook/musicgen-tiny"), "there is no model"),
    "unknown variable": (lambda f: settings(f).update(HF_HOEM="/app/cache"), "unknown variable HF_HOEM"),
    # shutdown
    "grace too short": (lambda f: settings(f).update(MUSICGEN_DRAIN_SECONDS="310"), "340 is not longer than 340"),
    "no preStop": (lambda f: container(f).pop("lifecycle"), "no preStop"),
    # names
    "no such ConfigMap": (lambda f: f["ConfigMap"]["metadata"].update(name="other"), "there is no ConfigMap"),
    "no such service account": (
        lambda f: pod(f).update(serviceAccountName="other"), "there is no ServiceAccount other"
    ),
    "no such volume": (lambda f: container(f)["volumeMounts"][0].update(name="other"), "which is not a volume"),
    "no namespace": (lambda f: f["ScaledObject"]["metadata"].pop("namespace"), "is not in the namespace"),
    # ports and selectors
    "no such port": (lambda f: f["Service"]["spec"]["ports"][0].update(targetPort="web"), "no container has the port"),
    "probe at another port": (
        lambda f: container(f)["readinessProbe"]["httpGet"].update(port=8080), "the readinessProbe must get /readyz"
    ),
    "no startupProbe": (lambda f: container(f).pop("startupProbe"), "the startupProbe must get /readyz"),
    "monitor of an unknown port": (
        lambda f: f["ServiceMonitor"]["spec"]["endpoints"][0].update(port="web"), "no Service has the port"
    ),
    "no session affinity": (
        lambda f: f["Service"]["spec"].update(sessionAffinity="None"), "must keep a client at one pod"
    ),
    "no selector": (lambda f: f["Service"]["spec"].pop("selector"), "Service musicgen-bento selects the pods of 0"),
    "selector of other pods": (
        lambda f: f["PodDisruptionBudget"]["spec"].update(selector={"matchLabels": {"a": "b"}}), "the pods of 0"
    ),
    "Deployment of other pods": (
        lambda f: f["Deployment"]["spec"].update(selector={"matchLabels": {"a": "b"}}), "does not match its pods"
    ),
    # permissions
    "root": (lambda f: pod(f)["securityContext"].update(runAsUser=0), "runAsUser must be 1034"),
    "writable": (
        lambda f: container(f)["securityContext"].update(readOnlyRootFilesystem=False), "can write to its root"
    ),
    "capabilities": (
        lambda f: container(f)["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]}),
        "has more privileges than it needs",
    ),
    "token": (lambda f: pod(f).update(automountServiceAccountToken=True), "the pod must have no token"),
    "unlimited /tmp": (lambda f: pod(f)["volumes"][-1].update(emptyDir={}), "a /tmp of a limited size"),
    # images and resources
    "no tag": (lambda f: container(f).update(image="musicgen-bento"), "one image with a tag"),
    "no memory": (lambda f: container(f)["resources"]["limits"].pop("memory"), "has no limits for memory"),
    # metrics
    "unknown metric": (
        lambda f: set_alert(f, "rate(musicgen_audio_second_total[5m]) > 0"), "musicgen_audio_second_total"
    ),
    "histogram as a number": (
        lambda f: set_alert(f, "musicgen_realtime_factor > 1"), "metric musicgen_realtime_factor"
    ),
    "unknown label": (lambda f: set_alert(f, "sum by (user) (musicgen_queue_depth) > 1"), "has the label user"),
    "label of another metric": (
        lambda f: set_alert(f, 'musicgen_queue_depth{code="failed"} > 1'), "has the label code"
    ),
    "unknown code": (lambda f: set_alert(f, 'musicgen_errors_total{code="full"} > 1'), "there is no error code full"),
    "brackets": (lambda f: set_alert(f, "sum(musicgen_queue_depth > 1"), "brackets do not match"),
    "trigger, unknown metric": (lambda f: trigger(f).update(query="sum(musicgen_queue)"), "the metric musicgen_queue"),
    "trigger of another service": (
        lambda f: trigger(f).update(query='sum(musicgen_queue_depth{service="other"})'), "a service that does not exist"
    ),
    # scaling
    "scales nothing": (
        lambda f: f["ScaledObject"]["spec"]["scaleTargetRef"].update(name="other"), "which is not a Deployment"
    ),
    "replicas beside an autoscaler": (lambda f: f["Deployment"]["spec"].update(replicas=2), "has replicas"),
    "slots threshold too high": (
        lambda f: settings(f).update(MUSICGEN_MAX_SLOTS="24"), "is not below MUSICGEN_MAX_SLOTS"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED_ERRORS)
def test_error_in_a_manifest_is_detected(documents: list[Manifest], name: str) -> None:
    copied = copy.deepcopy(documents)
    by_kind: dict[str, Manifest] = {document["kind"]: document for document in copied}
    plant_error, expected = PLANTED_ERRORS[name]
    plant_error(by_kind)
    problems = check.find_problems(copied)
    assert any(expected in problem for problem in problems), problems


def test_rules_across_models_and_containers_detect_errors() -> None:
    """A Service selects the pods of two models, a route has no Service, a root container is not the first."""
    labels = {"app.kubernetes.io/name": "musicgen-bento"}
    pods = {"metadata": {"labels": labels}, "spec": {"containers": []}}
    documents: list[Manifest] = [
        {
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": labels}, "template": pods},
        }
        for name in ("small", "medium")
    ]
    service = {"kind": "Service", "metadata": {"name": "small"}, "spec": {"selector": labels, "ports": [{"port": 80}]}}
    route = {
        "kind": "HTTPRoute",
        "spec": {"rules": [{"backendRefs": [{"name": "small", "port": 80}, {"name": "large", "port": 80}]}]},
    }
    manifest_set = ManifestSet([*documents, service, route])
    assert "Service small selects the pods of 2 Deployments" in list(rules.selectors(manifest_set))
    assert list(rules.routes(manifest_set)) == ["the route leads to large:80, which is not a Service"]
    second = {"name": "chown-cache", "securityContext": {}, "image": "a:1"}
    first = {"name": "prefetch", "securityContext": {}, "image": "a:2"}
    template = {"spec": {"template": {"spec": {"initContainers": [first, second], "containers": []}}}}
    manifest_set = ManifestSet([{"kind": "Deployment", "metadata": {"name": "a"}, **template}])
    assert any("chown-cache must be the first" in problem for problem in rules.hardening(manifest_set))
    assert any("one image with a tag: a:1, a:2" in problem for problem in rules.resources(manifest_set))


def test_every_overlay_is_checked() -> None:
    checked = {str(folder.relative_to(manifests.ROOT)) for folder in manifests.overlays()}
    assert {"base", "overlays/cpu", "overlays/gpu", "overlays/cpu-full", "overlays/gpu-full"} <= checked
    kustomizations = "".join((manifests.ROOT / name / "kustomization.yaml").read_text() for name in checked)
    for component in (manifests.ROOT / "components").iterdir():
        assert f"components/{component.name}\n" in kustomizations, f"no overlay uses {component.name}"


def test_a_missing_kubectl_is_reported_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(manifests, "find_kubectl", lambda: None)
    for ci, status in (("", 0), ("true", 1)):
        monkeypatch.setenv("CI", ci)
        assert check.main() == status
        assert "NOT CHECKED: kubectl is missing" in capsys.readouterr().out


def test_a_folder_that_kustomize_refuses_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(kubectl: str, folder: object) -> list[Manifest]:
        raise ValueError("no such file")

    monkeypatch.setattr(manifests, "find_kubectl", lambda: "kubectl")
    monkeypatch.setattr(manifests, "render", refuse)
    assert check.main() == 1
    assert "overlays/gpu: FAILED; no such file" in capsys.readouterr().out


def test_promql_knows_the_metrics_of_the_service() -> None:
    assert set(promql.METRICS) == set(metrics.METRIC_NAMES)
    assert {"musicgen_time_to_first_audio_seconds", "musicgen_realtime_factor"} == promql.HISTOGRAMS


def test_every_metric_is_used_by_an_alert_or_a_trigger() -> None:
    text = "".join(file.read_text() for file in (manifests.ROOT / "components").rglob("*.yaml"))
    assert [name for name in metrics.METRIC_NAMES if name not in text] == []


def test_prefetch_runs_the_pull_command_of_the_image(documents: list[Manifest]) -> None:
    [deployment] = [document for document in documents if document["kind"] == "Deployment"]
    init_containers = pod({"Deployment": deployment})["initContainers"]
    [prefetch] = [container for container in init_containers if container["name"] == "prefetch"]
    plan = docker_entrypoint.plan(prefetch["args"], has_out=False)
    assert (plan.kind, plan.args, plan.folder) == ("cli", ("pull",), docker_entrypoint.CACHE)


def test_the_overlay_in_the_document_is_valid(tmp_path: Path) -> None:
    """docs/deployment.md contains an example overlay; it is checked in a copy of the real folder."""
    [example] = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    folder = shutil.copytree(manifests.ROOT, tmp_path / "kubernetes") / "overlays" / "mine"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(example)
    kubectl = manifests.find_kubectl()
    if kubectl is None:
        pytest.skip("NOT CHECKED: kubectl is missing")
    documents = manifests.render(kubectl, folder)
    assert check.find_problems(documents) == []
    text = str(documents)
    assert "registry.example.com/musicgen-bento:1.2.3" in text
    assert "'MUSICGEN_PRELOAD': 'facebook/musicgen-medium'" in text
    assert "musicgen-bento:latest" not in text


def test_the_document_names_existing_overlays_settings_and_alerts() -> None:
    text = DOCUMENT.read_text()
    rows = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \|", text, re.M)
    named = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    existing = {path.name for kind in ("overlays", "components") for path in (manifests.ROOT / kind).iterdir()}
    assert existing <= named, existing - named
    assert set(re.findall(r"`(MUSICGEN_\w+)`", text)) <= {f"MUSICGEN_{n.upper()}" for n in Settings.model_fields}
    alerts = (manifests.ROOT / "components/monitoring/prometheusrule.yaml").read_text()
    assert [name for name in re.findall(r"`(MusicGen\w+)`", text) if f"alert: {name}\n" not in alerts] == []


def test_the_sizes_in_the_document_match_the_models() -> None:
    """The bytes of the weights and of one clip follow from the models' shapes; the slots fit into the GPU's memory."""
    positions = 1503
    block_positions = -(-positions // BLOCK_SIZE) * BLOCK_SIZE  # the CPU's KV cache is allocated in blocks
    shapes = {"small": (24, 1024), "medium": (48, 1536), "large": (48, 2048)}
    for name, (layers, width) in shapes.items():
        card = find_model(name)
        assert card is not None
        numbers_per_position = layers * 2 * 2 * width  # keys and values, conditional and unconditional row
        cpu_weights = INT8.estimate_model_bytes(card.parameters, layers, width) / 1e9
        cpu_clip = numbers_per_position * block_positions * INT8.kv_bytes_per_element / 1e9
        gpu_weights = FLOAT16.estimate_model_bytes(card.parameters, layers, width) / 1e9
        gpu_clip = numbers_per_position * positions * 2 / 1e9
        row = re.search(rf"^\| {name} \| (.+?) \|$", DOCUMENT.read_text(), re.M)
        assert row is not None
        *sizes, slots = row[1].split(" | ")
        assert sizes == [f"{cpu_weights:.1f}", f"{cpu_clip:.2f}", f"{gpu_weights:.1f}", f"{gpu_clip:.2f}"]
        for memory, max_slots in zip((16, 24, 40, 80), slots.split(", "), strict=True):
            assert gpu_weights + 0.44 + 0.24 + 2 + int(max_slots) * gpu_clip <= memory
