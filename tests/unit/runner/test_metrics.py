"""The metrics have the expected values after known traffic."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import requests
from prometheus_client import REGISTRY

from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.types import AudioChunk, Finished, Started
from musicgen_bento.model_catalog import DEMO_FOLDER
from musicgen_bento.runner.metrics import METRIC_NAMES, RequestMetrics
from tests.support.fake_pool import EVENTS
from tests.support.server import Server
from tests.support.tiny_checkpoints import write_hub_cache
from tests.support.tiny_models import MONO, folder, memory_with_one_request
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[3]


def test_metrics_count_known_traffic_of_both_processes(tmp_path: Path) -> None:
    """GET /metrics combines both processes. The two models do not fit into memory together."""
    write_hub_cache(tmp_path / "hub", "me/mine", MONO)
    hub = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    models = Source("demo", DEMO_FOLDER), Source("tiny", folder(MONO))
    budget = sum(memory_with_one_request(model) for model in models) - 1
    with Server(tmp_path, hub, max_slots=1, max_queue=2, memory_budget=budget, allow_any_model=1) as server:
        for _ in range(3):
            assert server.generate(duration=0.4).status_code == 200
        assert server.generate(duration=-1).status_code == 400
        assert server.generate(model="nope").status_code == 400
        assert requests.get(f"{server.url}/nowhere", timeout=5).status_code == 404
        with pytest.raises(requests.Timeout):
            server.generate(duration=200, timeout=0.5)
        wait_until(lambda: server.metrics().get('musicgen_cancellations_total{model="demo"}') == 1, 5)
        body = {"prompt": "calm", "duration": 200}
        jobs = [requests.post(f"{server.url}/jobs", json=body, timeout=5).json()["id"] for _ in range(2)]
        wait_until(lambda: server.metrics()['musicgen_queue_depth{model="demo"}'] == 1, 10)
        assert server.slots_in_use() == 1
        for job in reversed(jobs):
            assert requests.delete(f"{server.url}/jobs/{job}", timeout=5).ok
        wait_until(lambda: server.metrics()['musicgen_cancellations_total{model="demo"}'] == 3, 10)
        response = server.generate(model="me/mine", duration=0.4)
        assert response.status_code == 200, response.text
        values = server.metrics()
    assert values['musicgen_model_loads_total{model="me/mine"}'] == 1
    assert values['musicgen_model_evictions_total{model="demo"}'] == 1
    assert values['musicgen_audio_seconds_total{model="demo"}'] == pytest.approx(1.2)
    assert values['musicgen_model_loads_total{model="demo"}'] == 1
    assert values['musicgen_queue_depth{model="demo"}'] == 0
    assert values['musicgen_slots_in_use{model="demo"}'] == 0
    assert values['musicgen_time_to_first_audio_seconds_count{model="demo"}'] >= 3
    assert values['musicgen_realtime_factor_count{model="demo"}'] == 3
    assert values['musicgen_errors_total{code="invalid"}'] == 1
    assert values['musicgen_errors_total{code="unknown_model"}'] == 1
    assert values['musicgen_errors_total{code="not_found"}'] == 1


def test_a_model_name_from_a_client_becomes_a_label_only_after_a_request_has_started() -> None:
    """With MUSICGEN_ALLOW_ANY_MODEL a client can send any name, and each label is a time series for good."""
    request_counts = {"demo": (1, 0), "me/mine": (0, 2), "other/unknown": (0, 1)}
    request_metrics = RequestMetrics(lambda: request_counts)

    def depth(model: str) -> float | None:
        return REGISTRY.get_sample_value("musicgen_queue_depth", {"model": model})

    request_metrics.on_admit("r", "me/mine", admitted_at=1.0)
    assert (depth("(other)"), depth("me/mine"), depth("other/unknown")) == (3, None, None)
    request_metrics.on_event("r", Started("me/mine", 32_000, 1, 4), reported_at=2.0)
    assert (depth("(other)"), depth("me/mine"), depth("other/unknown")) == (1, 2, None)
    request_metrics.on_abort("r")
    request_counts.clear()
    for event in EVENTS:
        request_metrics.on_event("r", event, reported_at=3.0)
    assert (depth("(other)"), depth("me/mine"), depth("demo")) == (0, 0, 0)


def test_times_are_those_at_which_the_pool_reported_the_events() -> None:
    request_metrics = RequestMetrics(dict)
    request_metrics.on_admit("r", "demo", admitted_at=1.0)
    samples = np.zeros((1, 64_000), np.float32)
    events = (Started("demo", 32_000, 1, 64_000), AudioChunk(samples, 0), Finished())
    names = ("musicgen_time_to_first_audio_seconds_sum", "musicgen_realtime_factor_sum")
    before = [REGISTRY.get_sample_value(name, {"model": "demo"}) or 0.0 for name in names]
    for event, reported_at in zip(events, (2.0, 2.5, 2.8), strict=True):
        request_metrics.on_event("r", event, reported_at)
    after = [REGISTRY.get_sample_value(name, {"model": "demo"}) or 0.0 for name in names]
    first_audio, realtime_factor = (new - old for new, old in zip(after, before, strict=True))
    assert first_audio == pytest.approx(1.5)
    assert realtime_factor == pytest.approx(2 / 0.8)


def test_the_document_describes_every_metric() -> None:
    rows = re.findall(r"^\| `(musicgen_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert tuple(rows) == METRIC_NAMES
