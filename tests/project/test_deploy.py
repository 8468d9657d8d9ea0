"""The checks of the Kubernetes manifests catch what they are there for."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import check, manifests, promql, rules
from deploy.manifests import Manifest
from musicgen_bento.cli import docker_entrypoint
from musicgen_bento.config import Settings
from musicgen_bento.model_catalog import find_model
from musicgen_bento.native.bindings import BLOCK_SIZE
from musicgen_bento.precision import FLOAT16, INT8
from musicgen_bento.runner import metrics

Break = Callable[[dict[str, Manifest]], object]
DOCUMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


@pytest.fixture(scope="module")
def good() -> list[Manifest]:
    """Everything as it would be sent to a cluster, or, where there is no kubectl, as it is written."""
    program = manifests.kubectl()
    return manifests.render(program, manifests.ROOT / "overlays/gpu-full") if program else manifests.written()


def container(found: dict[str, Manifest]) -> dict[str, Any]:
    return found["Deployment"]["spec"]["template"]["spec"]["containers"][0]  # type: ignore[no-any-return]


def pod(found: dict[str, Manifest]) -> dict[str, Any]:
    return found["Deployment"]["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def settings(found: dict[str, Manifest]) -> dict[str, str]:
    return found["ConfigMap"]["data"]  # type: ignore[no-any-return]


def alert(found: dict[str, Manifest], expr: str) -> None:
    found["PrometheusRule"]["spec"]["groups"][0]["rules"][0]["expr"] = expr


def trigger(found: dict[str, Manifest]) -> dict[str, Any]:
    return found["ScaledObject"]["spec"]["triggers"][0]["metadata"]  # type: ignore[no-any-return]


def test_the_manifests_are_right(good: list[Manifest]) -> None:
    assert check.problems(good) == []
    assert check.problems(manifests.written()) == []


PLANTED: dict[str, tuple[Break, str]] = {
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
    "unknown variable": (lambda f: settings(f).update(HF_HOEM="/app/cache"), "what is HF_HOEM for?"),
    # the way out
    "grace too short": (lambda f: settings(f).update(MUSICGEN_DRAIN_SECONDS="310"), "340 is not longer than 340"),
    "no preStop": (lambda f: container(f).pop("lifecycle"), "no preStop"),
    # names
    "no such ConfigMap": (lambda f: f["ConfigMap"]["metadata"].update(name="other"), "there is no ConfigMap"),
    "no such account": (lambda f: pod(f).update(serviceAccountName="other"), "there is no ServiceAccount other"),
    "no such volume": (lambda f: container(f)["volumeMounts"][0].update(name="other"), "which is no volume"),
    "no namespace": (lambda f: f["ScaledObject"]["metadata"].pop("namespace"), "is not in the namespace"),
    # ports and selectors
    "no such port": (lambda f: f["Service"]["spec"]["ports"][0].update(targetPort="web"), "no container has the port"),
    "probe at another port": (
        lambda f: container(f)["readinessProbe"]["httpGet"].update(port=8080), "the readinessProbe must ask /readyz"
    ),
    "no startupProbe": (lambda f: container(f).pop("startupProbe"), "the startupProbe must ask /readyz"),
    "monitor of no port": (
        lambda f: f["ServiceMonitor"]["spec"]["endpoints"][0].update(port="web"), "no Service has the port"
    ),
    "any pod": (lambda f: f["Service"]["spec"].update(sessionAffinity="None"), "must keep a client at its pod"),
    "no selector": (lambda f: f["Service"]["spec"].pop("selector"), "Service musicgen-bento selects the pods of 0"),
    "selector of others": (
        lambda f: f["PodDisruptionBudget"]["spec"].update(selector={"matchLabels": {"a": "b"}}), "the pods of 0"
    ),
    "Deployment of others": (
        lambda f: f["Deployment"]["spec"].update(selector={"matchLabels": {"a": "b"}}), "does not find its pods"
    ),
    # who may do what
    "root": (lambda f: pod(f)["securityContext"].update(runAsUser=0), "runAsUser must be 1034"),
    "writable": (lambda f: container(f)["securityContext"].update(readOnlyRootFilesystem=False), "can write its root"),
    "capabilities": (
        lambda f: container(f)["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]}),
        "may do more than it must",
    ),
    "token": (lambda f: pod(f).update(automountServiceAccountToken=True), "the pod must have no token"),
    "endless /tmp": (lambda f: pod(f)["volumes"][-1].update(emptyDir={}), "a /tmp of a limited size"),
    # images and resources
    "no tag": (lambda f: container(f).update(image="musicgen-bento"), "one image with a tag"),
    "no memory": (lambda f: container(f)["resources"]["limits"].pop("memory"), "has no limits for memory"),
    # metrics
    "unknown metric": (lambda f: alert(f, "rate(musicgen_audio_second_total[5m]) > 0"), "musicgen_audio_second_total"),
    "histogram as a number": (lambda f: alert(f, "musicgen_realtime_factor > 1"), "metric musicgen_realtime_factor"),
    "unknown label": (lambda f: alert(f, "sum by (user) (musicgen_queue_depth) > 1"), "has the label user"),
    "label of another": (lambda f: alert(f, 'musicgen_queue_depth{code="failed"} > 1'), "has the label code"),
    "unknown code": (lambda f: alert(f, 'musicgen_errors_total{code="full"} > 1'), "there is no error code full"),
    "brackets": (lambda f: alert(f, "sum(musicgen_queue_depth > 1"), "brackets do not match"),
    "trigger, unknown metric": (lambda f: trigger(f).update(query="sum(musicgen_queue)"), "the metric musicgen_queue"),
    "trigger of another service": (
        lambda f: trigger(f).update(query='sum(musicgen_queue_depth{service="other"})'), "a service that is not there"
    ),
    # scaling
    "scales nothing": (
        lambda f: f["ScaledObject"]["spec"]["scaleTargetRef"].update(name="other"), "which is no Deployment here"
    ),
    "two masters": (lambda f: f["Deployment"]["spec"].update(replicas=2), "has replicas"),
    "too late": (lambda f: settings(f).update(MUSICGEN_MAX_SLOTS="24"), "all of MUSICGEN_MAX_SLOTS"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found(good: list[Manifest], name: str) -> None:
    documents = copy.deepcopy(good)
    by_kind: dict[str, Manifest] = {}
    for document in documents:
        by_kind[document["kind"]] = document
    plant, expected = PLANTED[name]
    plant(by_kind)
    found = check.problems(documents)
    assert any(expected in problem for problem in found), found


def test_each_rule_has_a_planted_error_or_a_test_of_its_own() -> None:
    """A Service that finds the pods of two models; a route to nowhere; a root container that is not the first."""
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
    found = rules.Set([*documents, service, route])
    assert "Service small selects the pods of 2 Deployments" in list(rules.selectors(found))
    assert list(rules.routes(found)) == ["the route leads to large:80, which is no Service"]
    late = {"name": "own-cache", "securityContext": {}, "image": "a:1"}
    first = {"name": "prefetch", "securityContext": {}, "image": "a:2"}
    template = {"spec": {"template": {"spec": {"initContainers": [first, late], "containers": []}}}}
    found = rules.Set([{"kind": "Deployment", "metadata": {"name": "a"}, **template}])
    assert any("own-cache must be the first" in problem for problem in rules.hardening(found))
    assert any("one image with a tag: a:1, a:2" in problem for problem in rules.resources(found))


def test_every_overlay_is_checked() -> None:
    found = {str(folder.relative_to(manifests.ROOT)) for folder in manifests.overlays()}
    assert {"base", "overlays/cpu", "overlays/gpu", "overlays/cpu-full", "overlays/gpu-full"} <= found
    used = "".join((manifests.ROOT / name / "kustomization.yaml").read_text() for name in found)
    for component in (manifests.ROOT / "components").iterdir():
        assert f"components/{component.name}\n" in used, f"no overlay uses {component.name}"


def test_without_kubectl_it_is_said_and_ci_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(manifests, "kubectl", lambda: None)
    for ci, status in (("", 0), ("true", 1)):
        monkeypatch.setenv("CI", ci)
        assert check.main() == status
        assert "NOT CHECKED: kubectl is missing" in capsys.readouterr().out


def test_a_folder_that_kustomize_refuses_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(program: str, folder: object) -> list[Manifest]:
        raise ValueError("no such file")

    monkeypatch.setattr(manifests, "kubectl", lambda: "kubectl")
    monkeypatch.setattr(manifests, "render", refuse)
    assert check.main() == 1
    assert "overlays/gpu: WRONG; no such file" in capsys.readouterr().out


def test_the_metrics_are_those_of_the_service() -> None:
    assert set(promql.METRICS) == set(metrics.METRIC_NAMES)
    assert {"musicgen_time_to_first_audio_seconds", "musicgen_realtime_factor"} == promql.HISTOGRAMS


def test_every_metric_is_watched() -> None:
    text = "".join(file.read_text() for file in (manifests.ROOT / "components").rglob("*.yaml"))
    assert [name for name in metrics.METRIC_NAMES if name not in text] == []


def test_prefetch_is_a_command_of_the_image(good: list[Manifest]) -> None:
    [deployment] = [document for document in good if document["kind"] == "Deployment"]
    [prefetch] = [each for each in pod({"Deployment": deployment})["initContainers"] if each["name"] == "prefetch"]
    chosen = docker_entrypoint.plan(prefetch["args"], out_is_there=False)
    assert (chosen.kind, chosen.args, chosen.folder) == ("cli", ("pull",), docker_entrypoint.CACHE)


def test_the_overlay_of_the_document_is_right(tmp_path: Path) -> None:
    """The example in docs/deployment.md, beside the real ones."""
    [example] = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    folder = shutil.copytree(manifests.ROOT, tmp_path / "kubernetes") / "overlays" / "mine"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(example)
    program = manifests.kubectl()
    if program is None:
        pytest.skip("NOT CHECKED: kubectl is missing")
    documents = manifests.render(program, folder)
    assert check.problems(documents) == []
    text = str(documents)
    assert "registry.example.com/musicgen-bento:1.2.3" in text
    assert "'MUSICGEN_PRELOAD': 'facebook/musicgen-medium'" in text
    assert "musicgen-bento:latest" not in text


def test_the_document_names_what_is_there() -> None:
    text = DOCUMENT.read_text()
    rows = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \|", text, re.M)
    named = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    there = {path.name for kind in ("overlays", "components") for path in (manifests.ROOT / kind).iterdir()}
    assert there <= named, there - named
    assert set(re.findall(r"`(MUSICGEN_\w+)`", text)) <= {f"MUSICGEN_{n.upper()}" for n in Settings.model_fields}
    alerts = (manifests.ROOT / "components/monitoring/prometheusrule.yaml").read_text()
    assert [name for name in re.findall(r"`(MusicGen\w+)`", text) if f"alert: {name}\n" not in alerts] == []


def test_the_sizes_of_the_document() -> None:
    """Weights and one clip, from the models' shapes; the slots leave room for what comes to each."""
    shapes = {"small": (24, 1024), "medium": (48, 1536), "large": (48, 2048)}
    for name, (layers, width) in shapes.items():
        card = find_model(name)
        assert card is not None
        in_blocks = -(-1503 // BLOCK_SIZE) * BLOCK_SIZE
        clip = layers * 2 * 2 * in_blocks * width * INT8.kv_bytes_per_element, layers * 2 * 2 * 1503 * width * 2
        figures = [
            INT8.estimate_model_bytes(card.parameters, layers, width) / 1e9,
            clip[0] / 1e9,
            FLOAT16.estimate_model_bytes(card.parameters, layers, width) / 1e9,
            clip[1] / 1e9,
        ]
        row = re.search(rf"^\| {name} \| (.+?) \|$", DOCUMENT.read_text(), re.M)
        assert row is not None
        *told, slots = row[1].split(" | ")
        assert told == [f"{figures[0]:.1f}", f"{figures[1]:.2f}", f"{figures[2]:.1f}", f"{figures[3]:.2f}"]
        for memory, number in zip((16, 24, 40, 80), slots.split(", "), strict=True):
            assert figures[2] + 0.44 + 0.24 + 2 + int(number) * figures[3] <= memory
