"""The figures at /metrics after traffic that is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests
from prometheus_client import REGISTRY

from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.types import Started
from musicgen_bento.model_catalog import DEMO_FOLDER
from musicgen_bento.runner.metrics import METRIC_NAMES, MeasuredPool
from tests.support.server import Server
from tests.support.tiny_checkpoints import write_hub_cache
from tests.support.tiny_models import MONO, folder, params, takes
from tests.support.wait import until
from tests.unit.runner.test_request_table import STORY, Pool

ROOT = Path(__file__).parents[3]


def test_figures_after_known_traffic(tmp_path: Path) -> None:
    """Both processes' figures, through the front. The two models do not fit into memory together."""
    write_hub_cache(tmp_path / "hub", "me/mine", MONO)
    hub = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    budget = takes(Source("demo", DEMO_FOLDER)) + takes(Source("tiny", folder(MONO))) - 1
    with Server(tmp_path, hub, max_slots=1, max_queue=2, memory_budget=budget, allow_any_model=1) as server:
        for _ in range(3):
            assert server.generate(duration=0.4).status_code == 200
        assert server.generate(duration=-1).status_code == 400
        assert server.generate(model="nope").status_code == 400
        assert requests.get(f"{server.url}/nowhere", timeout=5).status_code == 404
        with pytest.raises(requests.Timeout):
            server.generate(duration=200, timeout=0.5)
        until(lambda: server.figures().get('musicgen_cancellations_total{model="demo"}') == 1, 5)
        body = {"prompt": "calm", "duration": 200}
        jobs = [requests.post(f"{server.url}/jobs", json=body, timeout=5).json()["id"] for _ in range(2)]
        until(lambda: server.figures()['musicgen_queue_depth{model="demo"}'] == 1, 10)
        assert server.in_slots() == 1
        for job in reversed(jobs):
            assert requests.delete(f"{server.url}/jobs/{job}", timeout=5).ok
        until(lambda: server.figures()['musicgen_cancellations_total{model="demo"}'] == 3, 10)
        answer = server.generate(model="me/mine", duration=0.4)
        assert answer.status_code == 200, answer.text
        found = server.figures()
    assert found['musicgen_model_loads_total{model="me/mine"}'] == 1
    assert found['musicgen_model_evictions_total{model="demo"}'] == 1
    assert found['musicgen_audio_seconds_total{model="demo"}'] == pytest.approx(1.2)
    assert found['musicgen_model_loads_total{model="demo"}'] == 1
    assert found['musicgen_queue_depth{model="demo"}'] == 0
    assert found['musicgen_slots_in_use{model="demo"}'] == 0
    assert found['musicgen_time_to_first_audio_seconds_count{model="demo"}'] >= 3
    assert found['musicgen_times_real_time_count{model="demo"}'] == 3
    assert found['musicgen_errors_total{code="invalid"}'] == 1
    assert found['musicgen_errors_total{code="unknown_model"}'] == 1
    assert found['musicgen_errors_total{code="not_found"}'] == 1


def test_a_name_that_a_client_wrote_is_no_label_before_it_has_made_music() -> None:
    """Where any model may be asked for, each name would be a time series for good."""
    loads = {"demo": (1, 0), "me/mine": (0, 2), "who/knows": (0, 1)}
    pool = Pool()
    measured = MeasuredPool(pool, lambda: loads)

    def depth(model: str) -> float | None:
        return REGISTRY.get_sample_value("musicgen_queue_depth", {"model": model})

    measured.add_request("t", "me/mine", params(), lambda event: None)
    assert (depth("(other)"), depth("me/mine"), depth("who/knows")) == (3, None, None)
    pool.tell("t", [Started("me/mine", 32_000, 1, 4)])
    assert (depth("(other)"), depth("me/mine"), depth("who/knows")) == (1, 2, None)
    measured.abort("t")
    loads.clear()
    pool.tell("t", STORY)
    assert (depth("(other)"), depth("me/mine"), depth("demo")) == (0, 0, 0)


def test_the_page_about_them_names_them_all() -> None:
    rows = re.findall(r"^\| `(musicgen_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert tuple(rows) == METRIC_NAMES
