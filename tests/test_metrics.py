"""The figures at /metrics after traffic that is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests

from musicgen_bento.metrics import NAMES
from tests.server import Server
from tests.waiting import until

ROOT = Path(__file__).parent.parent


def test_figures_after_known_traffic(tmp_path: Path) -> None:
    """Both processes' figures, through the front."""
    with Server(tmp_path, max_slots=1, max_queue=2) as server:
        for _ in range(3):
            assert server.generate(duration=0.4).status_code == 200
        assert server.generate(duration=-1).status_code == 400
        assert server.generate(model="nope").status_code == 400
        assert requests.get(f"{server.url}/nowhere", timeout=5).status_code == 404
        with pytest.raises(requests.Timeout):
            server.generate(duration=200, timeout=0.5)
        until(lambda: server.figures().get('musicgen_cancellations_total{model="demo"}') == 1, 5)
        found = server.figures()
    assert found['musicgen_audio_seconds_total{model="demo"}'] == pytest.approx(1.2)
    assert found['musicgen_model_loads_total{model="demo"}'] == 1
    assert found['musicgen_queue_depth{model="demo"}'] == 0
    assert found['musicgen_slots_in_use{model="demo"}'] == 0
    assert found['musicgen_time_to_first_audio_seconds_count{model="demo"}'] >= 3
    assert found['musicgen_times_real_time_count{model="demo"}'] == 3
    assert found['musicgen_errors_total{code="invalid"}'] == 1
    assert found['musicgen_errors_total{code="unknown_model"}'] == 1
    assert found['musicgen_errors_total{code="not_found"}'] == 1


def test_the_page_about_them_names_them_all() -> None:
    rows = re.findall(r"^\| `(musicgen_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert tuple(rows) == NAMES
