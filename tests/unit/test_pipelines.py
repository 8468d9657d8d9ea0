"""The pipeline generates clips in this process: pipeline("demo")("ambient", duration=45).audios[0]."""

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
def pipeline() -> Iterator[Pipeline]:
    with musicgen_bento.pipeline("demo") as loaded:
        yield loaded


def have_equal_audio(first: PipelineOutput, second: PipelineOutput) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first.audios, second.audios, strict=True))


def test_output_and_its_file_have_the_requested_format(pipeline: Pipeline, tmp_path: Path) -> None:
    output = pipeline("ambient", duration=1.5, seed=7)
    assert [(audio.shape, audio.dtype) for audio in output.audios] == [((1, 48_000), np.float32)]
    assert 0 < np.abs(output.audios[0]).max() <= 1
    assert (output.sample_rate, output.seed, output.seeds, output.model) == (32_000, 7, [7], "demo")
    assert output.save(tmp_path / "a.wav") == [tmp_path / "a.wav"]
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (32_000, 1, 48_000, "PCM_16")


def test_drawn_seed_reproduces_the_clip(pipeline: Pipeline) -> None:
    first = pipeline("ambient", duration=0.5)
    assert have_equal_audio(first, pipeline("ambient", duration=0.5, seed=first.seed))
    assert not have_equal_audio(first, pipeline("ambient", duration=0.5, seed=(first.seed + 1) % 2**32))


def test_several_prompts_run_in_one_batch(pipeline: Pipeline, tmp_path: Path) -> None:
    reports: list[Progress] = []
    request_counts: list[tuple[int, int]] = []

    def record(progress: Progress) -> None:
        reports.append(progress)
        request_counts.append(pipeline._pool.request_counts()["demo"])

    output = pipeline(["ambient", "ambient", "drums"], duration=1, seed=2**32 - 1, progress=record)
    assert output.seeds == [2**32 - 1, 0, 1]
    assert len(output.audios) == 3
    assert [path.name for path in output.save(tmp_path / "a.wav")] == ["a-1.wav", "a-2.wav", "a-3.wav"]
    assert reports[0] == Progress("queued", None, 0.0, 3.0)
    assert reports[-1] == Progress("done", None, 3.0, 3.0)
    audio_seconds = [report.audio_seconds for report in reports]
    assert audio_seconds == sorted(audio_seconds)
    assert (3, 0) in request_counts  # running, waiting


def test_number_of_prompts_may_exceed_the_queue_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_MAX_QUEUE", "0")
    monkeypatch.setenv("MUSICGEN_MAX_SLOTS", "1")
    with musicgen_bento.pipeline() as pipeline:
        assert len(pipeline(["x"] * 3, duration=0.1).audios) == 3


def test_threads_can_share_a_pipeline(pipeline: Pipeline) -> None:
    outputs: dict[int, PipelineOutput] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: outputs.update({seed: pipeline("ambient", duration=0.5, seed=seed)}))
        for seed in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(output.seed for output in outputs.values()) == [0, 1, 2]


def test_output_is_normalized_as_requested(pipeline: Pipeline) -> None:
    output = pipeline("ambient", duration=1, normalize="peak")
    assert np.abs(output.audios[0]).max() == pytest.approx(10 ** (-1 / 20), rel=1e-4)


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
def test_invalid_arguments_are_rejected(
    pipeline: Pipeline, prompt: str, options: dict[str, float], field: str | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pipeline(prompt, **options)  # type: ignore[arg-type]
    assert field is None or caught.value.field == field


def test_error_names_the_invalid_prompt() -> None:
    with pytest.raises(InvalidRequest, match="Prompt 2 of 3: prompt must contain text"):
        validation.build_requests(["x", " ", "y"])


def test_failed_request_aborts_the_others(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="tokens"):
        pipeline(["x", "a b c d e f g h " * 120], duration=60)
    assert pipeline._pool.request_counts() == {"demo": (0, 0)}


def test_closing_the_iterator_aborts_the_remaining_requests(pipeline: Pipeline) -> None:
    requests = validation.build_requests(["x", "x"], duration=0.2) + validation.build_requests(["x"], duration=200)
    clips = pipeline.generate(requests)
    next(clips)
    clips.close()  # type: ignore[attr-defined]
    assert pipeline._pool.request_counts() == {"demo": (0, 0)}


def test_model_may_be_a_folder() -> None:
    with musicgen_bento.pipeline(str(DEMO_FOLDER), device="cpu", precision="float32") as pipeline:
        assert pipeline("x", duration=0.1).audios[0].shape == (1, 3200)


@pytest.mark.parametrize(
    ("options", "error_type", "message"),
    [
        ({"model": "no-such"}, UnknownModel, "no-such"),
        ({"model": "facebook/musicgen-small"}, MusicGenError, "cache"),
        ({"model": "facebook/musicgen-melody"}, InvalidRequest, "melody"),
        ({"device": "tpu"}, InvalidRequest, "MUSICGEN_DEVICE"),
        ({"precision": "int3"}, InvalidRequest, "MUSICGEN_PRECISION"),
    ],
)
def test_unavailable_model_raises_its_error(
    options: dict[str, str], error_type: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(error_type, match=message):
        musicgen_bento.pipeline(**options)  # type: ignore[arg-type]


def test_pipeline_stays_a_function_after_its_module_is_imported() -> None:
    code = "import musicgen_bento.pipelines, musicgen_bento; assert callable(musicgen_bento.pipeline)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
