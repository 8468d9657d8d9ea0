"""A model in this process: pipeline("demo")("ambient", duration=45).audios[0]."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import musicgen_bento
from musicgen_bento import validation
from musicgen_bento.clip import Progress
from musicgen_bento.errors import InvalidRequest, MusicGenError, UnknownModel
from musicgen_bento.model_catalog import DEMO_FOLDER
from musicgen_bento.pipelines import Pipeline, PipelineOutput

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with musicgen_bento.pipeline("demo") as loaded:
        yield loaded


def same(one: PipelineOutput, other: PipelineOutput) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.audios, other.audios, strict=True))


def test_a_clip(pipe: Pipeline, tmp_path: Path) -> None:
    out = pipe("ambient", duration=1.5, seed=7)
    assert [(audio.shape, audio.dtype) for audio in out.audios] == [((1, 48_000), np.float32)]
    assert 0 < np.abs(out.audios[0]).max() <= 1
    assert (out.sample_rate, out.seed, out.seeds, out.model) == (32_000, 7, [7], "demo")
    assert out.save(tmp_path / "a.wav") == [tmp_path / "a.wav"]
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (32_000, 1, 48_000, "PCM_16")


def test_a_drawn_seed_makes_it_again(pipe: Pipeline) -> None:
    first = pipe("ambient", duration=0.5)
    assert same(first, pipe("ambient", duration=0.5, seed=first.seed))
    assert not same(first, pipe("ambient", duration=0.5, seed=(first.seed + 1) % 2**32))


def test_several_prompts_are_made_together(pipe: Pipeline, tmp_path: Path) -> None:
    reports: list[Progress] = []
    loads: list[tuple[int, int]] = []

    def record(progress: Progress) -> None:
        reports.append(progress)
        loads.append(pipe._pool.request_counts()["demo"])

    out = pipe(["ambient", "ambient", "drums"], duration=1, seed=2**32 - 1, progress=record)
    assert out.seeds == [2**32 - 1, 0, 1]
    assert len(out.audios) == 3
    assert [path.name for path in out.save(tmp_path / "a.wav")] == ["a-1.wav", "a-2.wav", "a-3.wav"]
    assert reports[0] == Progress("queued", None, 0.0, 3.0)
    assert reports[-1] == Progress("done", None, 3.0, 3.0)
    made = [report.audio_seconds for report in reports]
    assert made == sorted(made)
    assert (3, 0) in loads  # running, waiting


def test_more_prompts_than_a_servers_queue_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_MAX_QUEUE", "0")
    monkeypatch.setenv("MUSICGEN_MAX_SLOTS", "1")
    with musicgen_bento.pipeline() as pipe:
        assert len(pipe(["x"] * 3, duration=0.1).audios) == 3


def test_threads_may_share_it(pipe: Pipeline) -> None:
    outs: dict[int, PipelineOutput] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: outs.update({seed: pipe("ambient", duration=0.5, seed=seed)}))
        for seed in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(out.seed for out in outs.values()) == [0, 1, 2]


def test_the_level_is_what_was_asked_for(pipe: Pipeline) -> None:
    out = pipe("ambient", duration=1, normalize="peak")
    assert np.abs(out.audios[0]).max() == pytest.approx(10 ** (-1 / 20), rel=1e-4)


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        (" ", {}, "prompt"),
        ([], {}, "prompt"),
        ("x", {"duration": 0}, "duration"),
        ("x", {"duration": 301}, "duration"),
        ("x", {"loudness": 3}, None),
    ],
)
def test_what_is_wrong_is_said(pipe: Pipeline, prompt: str, options: dict[str, float], field: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pipe(prompt, **options)  # type: ignore[arg-type]
    assert field is None or caught.value.field == field


def test_the_prompt_at_fault_is_named() -> None:
    with pytest.raises(InvalidRequest, match="Prompt 2 of 3: prompt must contain text"):
        validation.build_requests(["x", " ", "y"])


def test_one_that_fails_leaves_none_at_work(pipe: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="tokens"):
        pipe(["x", "a b c d e f g h " * 120], duration=60)
    assert pipe._pool.request_counts() == {"demo": (0, 0)}


def test_whoever_stops_reading_cancels_the_rest(pipe: Pipeline) -> None:
    asked = validation.build_requests(["x", "x"], duration=0.2) + validation.build_requests(["x"], duration=200)
    clips = pipe.generate(asked)
    next(clips)
    clips.close()  # type: ignore[attr-defined]
    assert pipe._pool.request_counts() == {"demo": (0, 0)}


def test_a_folder_is_a_model() -> None:
    with musicgen_bento.pipeline(str(DEMO_FOLDER), device="cpu", precision="float32") as pipe:
        assert pipe("x", duration=0.1).audios[0].shape == (1, 3200)


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"model": "no-such"}, UnknownModel, "no-such"),
        ({"model": "facebook/musicgen-small"}, MusicGenError, "cache"),
        ({"model": "facebook/musicgen-melody"}, InvalidRequest, "melody"),
        ({"device": "tpu"}, InvalidRequest, "MUSICGEN_DEVICE"),
        ({"precision": "int3"}, InvalidRequest, "MUSICGEN_PRECISION"),
    ],
)
def test_a_model_that_cannot_be_had_is_told_at_once(
    options: dict[str, str], kind: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(kind, match=says):
        musicgen_bento.pipeline(**options)  # type: ignore[arg-type]


def test_the_attribute_is_a_function_whatever_was_imported_before() -> None:
    code = "import musicgen_bento.pipelines, musicgen_bento; assert callable(musicgen_bento.pipeline)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
