"""The figures of the model card are what they are called."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from training import evaluate, meters
from training.__main__ import main
from training.captions import Caption
from training.card import END, MEASURED, measured, table
from training.dataset import order
from training.evaluate import QUESTIONS, Result, Tally, flatness
from training.plan import SAMPLE_RATE, Plan
from training.render import render
from training.songs import SONGS, Song

SONG = Song("rock", 150, "major", register="low", brightness=1.0, drums=True, tune=0)
TONE = np.sin(2 * np.pi * 220 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
NOISE = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)


@pytest.mark.parametrize("ratio", [0.1, 1.0])
def test_si_sdr_is_the_noise_in_decibels_and_forgets_the_level(ratio: float) -> None:
    made = 0.3 * (TONE + ratio * NOISE * np.sqrt(np.mean(TONE**2)))
    assert evaluate.si_sdr(made, TONE) == pytest.approx(-20 * math.log10(ratio), abs=0.3)


def test_a_clip_has_no_distance_from_itself_and_some_from_another() -> None:
    assert evaluate.log_mel_distance(TONE, TONE) == 0.0
    assert evaluate.log_mel_distance(0.5 * TONE, TONE) == pytest.approx(0.3, abs=0.3)  # few bands sound at all
    assert evaluate.log_mel_distance(NOISE, TONE) > 10


def test_noise_is_flat_and_a_tone_is_not() -> None:
    assert evaluate.flatness(NOISE) > 0.8
    assert evaluate.flatness(TONE) < 0.01


def test_the_longest_silence_is_found() -> None:
    wav = np.concatenate([TONE, np.zeros(SAMPLE_RATE // 2), TONE, np.zeros(2 * SAMPLE_RATE)]).astype(np.float32)
    assert evaluate.longest_silence(wav) == pytest.approx(2.0, abs=0.05)
    assert evaluate.longest_silence(TONE) == 0.0


def test_a_clip_is_asked_only_what_its_caption_says() -> None:
    tallies = {question.name: Tally() for question in QUESTIONS}
    reading = meters.read(render(SONG, 8.0))
    evaluate._ask(tallies, SONG, Caption("fast rock with drums", frozenset({"tempo", "drums"})), reading)
    assert {name: (t.right, t.asked) for name, t in tallies.items() if t.asked} == {
        "drums or none": (1, 1),
        "slow or fast": (1, 1),
    }


def test_the_wrong_music_is_counted_as_wrong() -> None:
    tallies = {question.name: Tally() for question in QUESTIONS}
    said = Caption("bright, bass, drums", frozenset({"colour", "register", "drums"}))
    evaluate._ask(tallies, SONG, said, meters.read(TONE))
    assert tallies["drums or none"].right == 0
    assert tallies["dark or bright"].right == 0


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
def test_every_fault_is_seen(wav: np.ndarray, fault: str) -> None:  # type: ignore[type-arg]
    result = Result(flatness_bar=0.1)
    evaluate._look_for_faults(result, 0.2 * TONE)
    assert not any(result.broken.values())
    evaluate._look_for_faults(result, wav)
    assert result.broken[fault] == 1


def test_songs_that_are_asked_for_come_with_their_words_and_sound() -> None:
    song, said, wav = evaluate.drawn(1)[0]
    assert wav.shape == (8 * SAMPLE_RATE,)
    assert said.text
    assert meters.read(wav).tempo > 0
    assert song.tempo >= 60
    assert Plan().seed != evaluate.SEED
    assert evaluate.drawn(1, 8)[0][1].text != said.text


def test_the_codec_is_judged_on_songs_that_it_did_not_learn_from() -> None:
    unheard, heard = evaluate.unheard(Plan()), order(Plan().seed)[: Plan().songs]
    assert len(unheard) >= 50
    assert not set(unheard) & set(heard)


def test_songs_are_held_against_what_their_captions_say() -> None:
    result = Result()
    evaluate.judge_meters(result, evaluate.drawn(12))
    said, heard = result.songs["drums or none"], result.meters["drums or none"]
    assert 0 < said.right == said.asked <= heard.asked == heard.right == 12


def test_the_noisiest_songs_are_among_those_looked_at() -> None:
    assert len(evaluate.noisiest()) == 288
    plain = [s for s in SONGS if s.style in ("chiptune", "techno") and s not in evaluate.noisiest()][::60]
    loud = [s for s in evaluate.noisiest() if s.style in ("chiptune", "techno")][::8]
    assert max(flatness(render(s, 4.0)) for s in plain) < max(flatness(render(s, 4.0)) for s in loud)


RESULT = Result(
    clips=3,
    broken={"louder than full scale": 0, "not a number": 1},
    si_sdr=5.5,
    log_mel=3.0,
    real_time=8.0,
    obeyed={question.name: Tally(19, 20) for question in QUESTIONS},
)


@pytest.mark.parametrize("arguments", [["--seed", "5"], ["--clips", "3"], []])
def test_a_card_takes_the_figures_of_the_defaults_and_between_its_marks(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "README.md").write_text("# demo\n" if not arguments else f"{MEASURED}{END}")
    done = CliRunner().invoke(main, ["evaluate", "--model", str(tmp_path), "--write", *arguments])
    assert done.exit_code == 2
    assert "figures" in done.output


def test_the_table_has_a_row_for_every_question_and_fault() -> None:
    text = table(RESULT)
    assert all(question.name in text for question in QUESTIONS)
    assert "95.0% of 20" in text
    assert "not a number | 0 | 1 of 3" in text
    assert "5.50 dB" in text


def test_figures_come_in_the_place_of_those_that_were_there(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"# demo\n\n{MEASURED}\n\nold\n\n{END}\n\n## Limits\n")
    for _ in range(2):
        measured(RESULT, card)
    assert card.read_text() == f"# demo\n\n{MEASURED}\n\n{table(RESULT)}\n\n{END}\n\n## Limits\n"
    card.write_text("# demo\n")
    with pytest.raises(ValueError, match="no place"):
        measured(RESULT, card)
    assert card.read_text() == "# demo\n"
