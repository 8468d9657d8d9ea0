"""The evaluation computes the figures that the model card names."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from training import audio_features, evaluate
from training.__main__ import main
from training.captions import Caption
from training.card import BEGIN_MARK, END_MARK, figures_table, write_figures
from training.dataset import shuffled_songs
from training.evaluate import ATTRIBUTES, Result, Tally, flatness
from training.plan import SAMPLE_RATE, Plan
from training.render import render
from training.songs import SONGS, Song

SONG = Song("rock", 150, "major", register="low", brightness=1.0, drums=True, tune=0)
TONE = np.sin(2 * np.pi * 220 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
NOISE = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)


@pytest.mark.parametrize("ratio", [0.1, 1.0])
def test_si_sdr_is_the_noise_level_in_decibels_whatever_the_gain(ratio: float) -> None:
    output = 0.3 * (TONE + ratio * NOISE * np.sqrt(np.mean(TONE**2)))
    assert evaluate.si_sdr(output, TONE) == pytest.approx(-20 * math.log10(ratio), abs=0.3)


def test_log_mel_distance_is_zero_only_for_the_same_clip() -> None:
    assert evaluate.log_mel_distance(TONE, TONE) == 0.0
    assert evaluate.log_mel_distance(0.5 * TONE, TONE) == pytest.approx(0.3, abs=0.3)  # few bands have energy
    assert evaluate.log_mel_distance(NOISE, TONE) > 10


def test_flatness_is_high_for_noise_and_low_for_a_tone() -> None:
    assert evaluate.flatness(NOISE) > 0.8
    assert evaluate.flatness(TONE) < 0.01


def test_longest_silence_is_measured() -> None:
    wav = np.concatenate([TONE, np.zeros(SAMPLE_RATE // 2), TONE, np.zeros(2 * SAMPLE_RATE)]).astype(np.float32)
    assert evaluate.longest_silence(wav) == pytest.approx(2.0, abs=0.05)
    assert evaluate.longest_silence(TONE) == 0.0


def test_only_attributes_of_the_caption_are_counted() -> None:
    tallies = {attribute.name: Tally() for attribute in ATTRIBUTES}
    features = audio_features.extract_features(render(SONG, 8.0))
    evaluate._count_attributes(tallies, SONG, Caption("fast rock with drums", frozenset({"tempo", "drums"})), features)
    assert {name: (t.correct, t.total) for name, t in tallies.items() if t.total} == {
        "drums or none": (1, 1),
        "slow or fast": (1, 1),
    }


def test_audio_without_the_attributes_is_counted_as_wrong() -> None:
    tallies = {attribute.name: Tally() for attribute in ATTRIBUTES}
    caption = Caption("bright, bass, drums", frozenset({"colour", "register", "drums"}))
    evaluate._count_attributes(tallies, SONG, caption, audio_features.extract_features(TONE))
    assert tallies["drums or none"].correct == 0
    assert tallies["dark or bright"].correct == 0


@pytest.mark.parametrize(
    ("wav", "fault"),
    [
        (np.full(SAMPLE_RATE, np.nan, np.float32), "not a number"),
        (TONE / np.abs(TONE).max(), "louder than full scale"),
        (1e-3 * TONE, "RMS outside -32 to -10 dBFS"),
        (np.concatenate([0.3 * TONE, np.zeros(2 * SAMPLE_RATE, np.float32)]), "silent for over a second"),
        (0.1 * NOISE, "flatter than the renderer's noisiest"),
    ],
)
def test_every_fault_is_counted(wav: np.ndarray, fault: str) -> None:  # type: ignore[type-arg]
    result = Result(flatness_limit=0.1)
    evaluate._count_faults(result, 0.2 * TONE)
    assert not any(result.faults.values())
    evaluate._count_faults(result, wav)
    assert result.faults[fault] == 1


def test_examples_have_a_song_a_caption_and_audio() -> None:
    song, caption, wav = evaluate.draw_examples(1)[0]
    assert wav.shape == (8 * SAMPLE_RATE,)
    assert caption.text
    assert audio_features.extract_features(wav).tempo > 0
    assert song.tempo >= 60
    assert Plan().seed != evaluate.SEED
    assert evaluate.draw_examples(1, 8)[0][1].text != caption.text


def test_the_codec_is_evaluated_on_held_out_songs() -> None:
    held_out, trained = evaluate.held_out_songs(Plan()), shuffled_songs(Plan().seed)[: Plan().songs]
    assert len(held_out) >= 50
    assert not set(held_out) & set(trained)


def test_rendered_songs_match_their_captions() -> None:
    result = Result()
    evaluate.evaluate_features(result, evaluate.draw_examples(12))
    by_caption, by_song = result.caption_accuracy["drums or none"], result.feature_accuracy["drums or none"]
    assert 0 < by_caption.correct == by_caption.total <= by_song.total == by_song.correct == 12


def test_noisiest_songs_include_the_songs_with_the_highest_flatness() -> None:
    assert len(evaluate.noisiest_songs()) == 288
    plain = [s for s in SONGS if s.style in ("chiptune", "techno") and s not in evaluate.noisiest_songs()][::60]
    loud = [s for s in evaluate.noisiest_songs() if s.style in ("chiptune", "techno")][::8]
    assert max(flatness(render(s, 4.0)) for s in plain) < max(flatness(render(s, 4.0)) for s in loud)


RESULT = Result(
    clips=3,
    faults={"louder than full scale": 0, "not a number": 1},
    si_sdr=5.5,
    log_mel=3.0,
    realtime_factor=8.0,
    guided={attribute.name: Tally(19, 20) for attribute in ATTRIBUTES},
)


@pytest.mark.parametrize("arguments", [["--seed", "5"], ["--clips", "3"], []])
def test_writing_a_card_requires_default_options_and_marks(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "README.md").write_text("# demo\n" if not arguments else f"{BEGIN_MARK}{END_MARK}")
    done = CliRunner().invoke(main, ["evaluate", "--model", str(tmp_path), "--write", *arguments])
    assert done.exit_code == 2
    assert "figures" in done.output


def test_figures_table_has_a_row_for_every_attribute_and_fault() -> None:
    text = figures_table(RESULT)
    assert all(attribute.name in text for attribute in ATTRIBUTES)
    assert "95.0% of 20" in text
    assert "not a number | 0 | 1 of 3" in text
    assert "5.50 dB" in text


def test_write_figures_replaces_the_figures_between_the_marks(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"# demo\n\n{BEGIN_MARK}\n\nold\n\n{END_MARK}\n\n## Limits\n")
    for _ in range(2):
        write_figures(RESULT, card)
    assert card.read_text() == f"# demo\n\n{BEGIN_MARK}\n\n{figures_table(RESULT)}\n\n{END_MARK}\n\n## Limits\n"
    card.write_text("# demo\n")
    with pytest.raises(ValueError, match="no marks"):
        write_figures(RESULT, card)
    assert card.read_text() == "# demo\n"
