"""Training of the built-in model, at toy size: the engine runs the network that was trained."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.text_conditioner import TextConditioner
from musicgen_bento.lm.decoder import EagerDecoder
from musicgen_bento.precision import FLOAT32
from training import audio_features, codec, dataset, export, fast, instruments, language_model, text
from training.__main__ import make
from training.captions import TOPIC_PROBABILITIES, caption, colour, speed
from training.instruments import DRUMS, PITCHED, tuned
from training.loop import Clock, FolderInUse, OutOfTime, exclusive_folder, run_steps
from training.losses import highs_error
from training.network import Network, delayed
from training.plan import CODEBOOK_SIZE, CODEBOOKS, FRAME_RATE, HOP, SAMPLE_RATE, Plan, PlanMismatch
from training.render import render
from training.songs import SONGS, STYLES, TEMPOS, Song, compose, draw_song, half_beat, nearest_tempo, surprises

SONG = Song("rock", 125, "major", register="middle", brightness=1.0, drums=True, tune=0)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("training")
    return Plan(
        folder=folder,
        songs=100,
        codec_steps=4,
        unquantized_steps=2,
        highs_from=3,
        decoder_steps=2,
        codec_batch=2,
        lm_steps=3,
        lm_batch=2,
        lm_seconds=2.0,
        temperatures=(0.5, 1.0, 0.25, 2.0),
        filters=4,
        latent=16,
        dim=32,
        heads=4,
        layers=2,
        text_dim=16,
    )


@pytest.fixture(scope="module")
def songs(plan: Plan) -> dataset.Dataset:
    few = [(song, render(song, dataset.SECONDS)) for song in dataset.shuffled_songs(plan.seed)[:4]]
    (plan.folder / "songs").mkdir()
    samples = np.stack([few[n % 4][1] for n in range(100)])
    np.save(plan.folder / "songs" / "songs-000.npy", np.round(samples * 32_767).astype(np.int16))
    dataset.write_songs(plan.folder / "songs" / "songs-000.json", [few[n % 4][0] for n in range(100)])
    return dataset.Dataset(plan.folder / "songs")


@pytest.fixture(scope="module")
def exported(plan: Plan, songs: dataset.Dataset) -> tuple[Path, Network]:
    """A model trained for a few steps and exported, and its network."""
    trained = codec.train(plan, songs, Clock(10))
    tokens = language_model.encode(plan, trained, songs, Clock(10))
    network, encoder, tokenizer = language_model.train(plan, tokens, songs.songs, Clock(10))
    folder = plan.folder / "model"
    export.write(plan, trained, network, encoder, tokenizer, folder)
    return folder, network


def test_the_engine_computes_the_logits_of_the_trained_network(plan: Plan, exported: tuple[Path, Network]) -> None:
    folder, network = exported
    loaded = loading.load(Source(str(folder), folder), torch.device("cpu"), FLOAT32)
    conditioner = TextConditioner(loaded)
    text_rows = conditioner.encode(conditioner.tokenize("a slow waltz, 🎹"))
    decoder = EagerDecoder(loaded.weights)
    inputs, _ = delayed(torch.randint(CODEBOOK_SIZE, (1, CODEBOOKS, 20)))
    sequence = decoder.open_sequence(text_rows, guided=True, max_positions=64)
    stepped = torch.stack(
        [decoder.step([sequence], inputs[:, :, s], torch.tensor([2.0]))[0] for s in range(inputs.shape[-1])], dim=1
    )
    network.load_state_dict({k: v.half().float() for k, v in network.state_dict().items()})
    with torch.no_grad():
        hidden = loaded.text_encoder(input_ids=conditioner.tokenize("a slow waltz, 🎹")).last_hidden_state
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
        cond, uncond = (network(inputs, hidden, mask, torch.tensor([flag]))[0][0] for flag in (1.0, 0.0))
    unscaled = stepped * torch.tensor(plan.temperatures)[:, None, None]
    torch.testing.assert_close(unscaled, uncond + 2.0 * (cond - uncond), atol=1e-4, rtol=1e-4)


def test_padding_does_not_change_logits(plan: Plan, exported: tuple[Path, Network]) -> None:
    network, tokenizer = exported[1], text.tokenizer(plan)
    encoder = text.encoder(plan, len(tokenizer)).eval()
    inputs, _ = delayed(torch.randint(CODEBOOK_SIZE, (1, CODEBOOKS, 8)))

    def logits(prompts: list[str]) -> torch.Tensor:
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        hidden = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        ones = torch.ones(len(prompts))
        out: torch.Tensor = network(inputs.expand(len(prompts), -1, -1), hidden, batch["attention_mask"].bool(), ones)[
            0
        ]
        return out

    with torch.no_grad():
        alone, beside = logits(["techno"])[0], logits(["techno", "a very long caption of a slow sad waltz"])[0]
    torch.testing.assert_close(alone, beside, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("length", [1, 100, 253])
def test_block_attention_equals_torchs(length: int, dtype: torch.dtype, tolerance: float) -> None:
    parts = [torch.randn(2, 3, length, 8, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(2, 3, length, 8)
    whole = F.scaled_dot_product_attention(*parts, is_causal=True)
    blocks = fast.attend(*(part.to(dtype) for part in parts))
    assert blocks.dtype == dtype
    torch.testing.assert_close(blocks.float(), whole, atol=tolerance, rtol=tolerance)
    expected_gradients = torch.autograd.grad(whole, parts, upstream)
    for actual, expected in zip(
        torch.autograd.grad(blocks, parts, upstream.to(dtype)), expected_gradients, strict=True
    ):
        assert (actual - expected).norm() <= tolerance * expected.norm() + 1e-5
    allowed = torch.rand(2, 1, 1, length) < 0.7
    allowed[..., 0] = True
    across = fast.attend(*parts, allowed)
    torch.testing.assert_close(across, F.scaled_dot_product_attention(*parts, attn_mask=allowed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_cross_entropy_equals_torchs(dtype: torch.dtype, tolerance: float) -> None:
    logits = torch.randn(40, CODEBOOK_SIZE, requires_grad=True)
    targets = torch.randint(CODEBOOK_SIZE, (40,))
    targets[::7] = -100
    actual, expected = fast.cross_entropy(logits.to(dtype), targets), F.cross_entropy(logits, targets)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    gradient, other = (torch.autograd.grad(3 * loss, logits)[0] for loss in (actual, expected))
    assert (gradient - other).norm() <= tolerance * other.norm()


def test_inputs_are_the_targets_of_the_position_before() -> None:
    codes = torch.arange(12).view(1, 4, 3)
    inputs, targets = delayed(codes)
    assert inputs.shape == targets.shape == (1, 4, 6)
    assert (inputs[:, :, 0] == CODEBOOK_SIZE).all()
    for k in range(4):
        assert targets[0, k].tolist() == [-100] * k + codes[0, k].tolist() + [-100] * (3 - k)
        before = targets[0, k, :-1]
        assert inputs[0, k, 1:].tolist() == torch.where(before < 0, CODEBOOK_SIZE, before).tolist()


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    def run(folder: Path, budgets: list[float]) -> torch.Tensor:
        folder.mkdir()
        for minutes in budgets:
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 1)
            optimizer = torch.optim.AdamW(model.parameters())

            def step(number: int, model: torch.nn.Module = model, optimizer: torch.optim.Optimizer = optimizer):  # type: ignore[no-untyped-def]
                x = torch.randn(8, 4)  # seeded for each step
                loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                return {"loss": loss.item()}

            try:
                run_steps("toy", folder, 6, {"model": model, "optimizer": optimizer}, step, Clock(minutes), 1)
            except OutOfTime:
                continue
        return model.weight.detach()

    whole = run(tmp_path / "whole", [1])
    in_parts = run(tmp_path / "parts", [0, 0, 0, 1])  # the first three end after a step each
    assert torch.equal(whole, in_parts)


def test_a_folder_is_locked_against_a_second_run(tmp_path: Path) -> None:
    with exclusive_folder(tmp_path / "run"):
        with pytest.raises(FolderInUse), exclusive_folder(tmp_path / "run"):
            pass
        with exclusive_folder(tmp_path / "other"):
            pass
    with exclusive_folder(tmp_path / "run"):
        pass


def test_a_folder_belongs_to_one_plan(plan: Plan, tmp_path: Path) -> None:
    first = replace(plan, folder=tmp_path)
    first.claim_folder()
    first.claim_folder()
    replace(first, lm_steps=plan.lm_steps + 1).claim_folder()
    with pytest.raises(PlanMismatch):
        replace(first, seed=plan.seed + 1).claim_folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.plan.SOURCES", ("songs.py",))
        with pytest.raises(PlanMismatch):
            first.claim_folder()
    (tmp_path / "plan.json").unlink()
    (tmp_path / "codec.state").touch()
    with pytest.raises(PlanMismatch):  # the folder has no plan but a saved state
        first.claim_folder()


def test_an_interrupted_run_ends_with_a_model_and_its_card(
    plan: Plan, songs: dataset.Dataset, exported: tuple[Path, Network], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "songs").symlink_to(plan.folder / "songs")
    again = replace(plan, folder=folder)
    parts = 0
    while not (folder / "demo").exists():
        parts += 1
        with suppress(OutOfTime):
            make(again, Clock(0))
    assert parts >= plan.codec_steps + plan.decoder_steps + plan.lm_steps
    card = (folder / "demo" / "README.md").read_text()
    assert f"| language model | {plan.lm_steps} |" in card
    assert (folder / "demo" / "curves.svg").read_text().count("<polyline") == 4
    # the decoder trains alone in a run and not in `exported`
    whole = torch.load(exported[0] / "state_dict.bin", weights_only=True)["best_state"]
    in_parts = torch.load(folder / "demo" / "state_dict.bin", weights_only=True)["best_state"]
    assert all(torch.equal(tensor, in_parts[name]) for name, tensor in whole.items())


def test_the_codec_batch_depends_on_seed_and_step_only(plan: Plan, songs: dataset.Dataset) -> None:
    one, again, other = (codec.windows(plan, songs, number) for number in (3, 3, 4))
    assert (one == again).all()
    assert not np.array_equal(one, other)


def test_train_decoder_changes_the_decoder_only(
    plan: Plan, songs: dataset.Dataset, exported: tuple[Path, Network]
) -> None:
    trained = codec.train(plan, songs, Clock(10))  # already finished
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    samples = np.round(32_767 * songs.window(0, 0, SAMPLE_RATE)[None]).astype(np.int16)
    tokens_before = codec.tokens(trained, samples)
    after = codec.train_decoder(plan, trained, songs, Clock(10)).state_dict()
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder"}
    assert torch.equal(codec.tokens(trained, samples), tokens_before)
    assert not any(p.requires_grad for p in trained.parameters())


def test_corrupted_tokens_come_from_another_clip(plan: Plan) -> None:
    tokens = torch.arange(4)[:, None, None].expand(4, CODEBOOKS, 500)
    wrong = language_model.corrupt_tokens(tokens, 0.1, np.random.default_rng(0)) != tokens
    assert 0.05 < wrong.float().mean() < 0.15
    assert (language_model.corrupt_tokens(tokens, 1.0, np.random.default_rng(0)) == (tokens - 1) % 4).all()
    assert (language_model.corrupt_tokens(tokens, 0.0, np.random.default_rng(0)) == tokens).all()


def test_highs_error_penalizes_excess_and_missing_highs() -> None:
    torch.manual_seed(0)
    wav = 0.2 * torch.sin(torch.arange(16_000) * 0.1)[None]
    noise = 0.02 * torch.randn(1, 16_000)
    assert highs_error(wav, wav) == 0
    assert highs_error(wav + noise, wav) > 10**2
    assert highs_error(wav, wav + noise) > 10**2
    assert highs_error(wav + 1.1 * noise, wav + noise) == 0
    assert highs_error(wav + 1e-5 * noise, wav) == 0  # inaudible


def test_amplify_changes_the_level_and_not_the_tokens(plan: Plan, songs: dataset.Dataset) -> None:
    plain, loud = codec.build(plan).eval(), codec.build(plan).eval()
    loud.load_state_dict(export.amplify(plain.state_dict(), 6.0))
    wav = torch.from_numpy(songs.window(0, 0, SAMPLE_RATE))[None, None]
    with torch.no_grad():
        codes, scale = plain.encode(wav)
        assert torch.equal(loud.encode(wav)[0], codes)
        torch.testing.assert_close(
            loud.decode(codes, scale), 10**0.3 * plain.decode(codes, scale), atol=1e-5, rtol=1e-4
        )


def test_export_refuses_a_model_above_the_size_limit(
    plan: Plan, exported: tuple[Path, Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MAX_BYTES", 1_000)
    tokenizer = text.tokenizer(plan)
    with pytest.raises(ValueError, match="more than 1000"):
        export.write(
            plan, codec.build(plan), exported[1], text.encoder(plan, len(tokenizer)), tokenizer, tmp_path / "out"
        )


def test_kmeans_finds_cluster_centers() -> None:
    torch.manual_seed(0)
    true_centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (true_centers[:, None] + 0.1 * torch.randn(3, 50, 2)).reshape(-1, 2)
    centres, sizes = codec.kmeans(points, 8)
    assert sizes.sum() >= len(points)
    assert torch.cdist(true_centers, centres).min(dim=1).values.max() < 0.3


def test_rendering_is_deterministic_and_depends_on_the_tune() -> None:
    assert np.array_equal(render(SONG, 2.0), render(SONG, 2.0))
    assert not np.array_equal(render(SONG, 2.0), render(replace(SONG, tune=1), 2.0))
    notes = compose(SONG, 8.0)
    assert {note.instrument for note in notes} == {"organ", "lead", "bass", "kick", "snare", "hat"}
    assert all(0 <= note.start < 8 for note in notes)


def test_drums_only_renders_the_drums_of_the_song() -> None:
    drums = render(SONG, 4.0, drums_only=True)
    rest = render(replace(SONG, drums=False), 4.0)
    assert np.abs(drums).max() > 0.05
    np.testing.assert_allclose(drums + rest, render(SONG, 4.0), atol=1e-5)
    assert not render(replace(SONG, drums=False), 4.0, drums_only=True).any()


def test_shuffled_songs_are_all_songs_in_an_order_of_the_seed() -> None:
    order = dataset.shuffled_songs(1)
    assert len(order) == len(SONGS) >= Plan().songs
    assert set(order) == set(SONGS)
    assert order != dataset.shuffled_songs(2)


def test_songs_are_drawn_by_the_frequencies_of_their_style() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_song(rng) for _ in range(600)]
    techno = [song for song in drawn if song.style == "techno"]
    assert 0.04 < len(techno) / len(drawn) < 0.14
    assert sum(song.drums for song in techno) > 0.6 * len(techno)
    assert sum(song.tempo in (125, 150) for song in techno) > 0.6 * len(techno)
    assert {song.tempo for song in drawn} == set(TEMPOS)


@pytest.mark.parametrize("number", range(12))
def test_rendered_songs_are_finite_and_have_the_right_level(number: int) -> None:
    song = dataset.shuffled_songs(5)[number]
    wav = render(song, 4.0)
    assert wav.shape == (4 * SAMPLE_RATE,)
    assert np.isfinite(wav).all()
    assert np.abs(wav).max() <= 0.98
    assert -30 < 20 * np.log10(np.sqrt(np.mean(wav**2))) < -13, song


@pytest.mark.parametrize(
    ("tempo", "expected"), [(75, "4---2-0-"), (125, "40-.2-0-"), (150, "400.2200")], ids=["slow", "middle", "fast"]
)
def test_slow_tunes_have_longer_notes_and_fast_tunes_more(tempo: int, expected: str) -> None:
    """The tune `40-.`, `2-0-`: slow keeps notes on the beat, middle plays it as written, fast repeats held notes."""
    style = replace(STYLES["rock"], tunes=(("40-.", "2-0-"), ("0000", "0000")))
    song = replace(SONG, tempo=tempo, drums=False)
    half = half_beat(tempo) / FRAME_RATE
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STYLES, "rock", style)
        notes = [note for note in compose(song, 8 * half) if note.instrument == "lead"]
    signs = ["."] * 8
    for note in notes:
        at, length = round(note.start / half), round(note.length / half)
        degree = {0: "0", 4: "2", 7: "4", 5: "0", 9: "2"}[note.pitch % 12]
        signs[at : at + length] = [degree, *"-" * (length - 1)]
    assert "".join(signs) == expected


@pytest.mark.parametrize(
    ("below", "above", "feature", "threshold"),
    [
        ({"drums": False}, {"drums": True}, "percussion", audio_features.DRUMS_THRESHOLD_DB),
        ({"tempo": 75}, {"tempo": 150}, "pace", audio_features.FAST_THRESHOLD),
        ({"register": "low"}, {"register": "high"}, "register", audio_features.HIGH_THRESHOLD_DB),
        ({"brightness": 0.0}, {"brightness": 1.0}, "brightness", audio_features.BRIGHT_THRESHOLD_DB),
        ({"mode": "minor"}, {"mode": "major"}, "mode", audio_features.MAJOR_THRESHOLD),
    ],
)
@pytest.mark.parametrize("style", ["rock", "folk", "lofi"])
def test_features_separate_songs_that_differ_in_one_attribute(
    below: dict[str, object], above: dict[str, object], feature: str, threshold: float, style: str
) -> None:
    plain = replace(SONG, style=style)
    low, high = (
        getattr(audio_features.extract_features(render(replace(plain, **attributes), 8.0)), feature)
        for attributes in (below, above)
    )
    assert low < threshold < high


@pytest.mark.parametrize("style", STYLES)
def test_slow_songs_have_drums_on_beats_only_and_the_hat_on_every_beat(style: str) -> None:
    song = replace(SONG, style=style, tempo=75)
    beat = 2 * half_beat(75) / FRAME_RATE
    struck = {name: {note.start for note in compose(song, 8 * beat) if note.instrument == name} for name in DRUMS}
    on_beats = {number * beat for number in range(8)}
    assert {round(at, 6) for at in struck["hat"]} == {round(at, 6) for at in on_beats}
    for starts in struck.values():
        assert all(min(abs(at - beat) for beat in on_beats) < 1e-6 for at in starts)


@pytest.mark.parametrize("style", ["ambient", "waltz", "jazz"])
def test_sparse_drums_are_detected(style: str) -> None:
    song = replace(SONG, style=style, tempo=62, brightness=0.0, register="middle", drums=True)
    assert audio_features.extract_features(render(song, 8.0)).percussion > audio_features.DRUMS_THRESHOLD_DB


@pytest.mark.parametrize("style", ["rock", "folk", "waltz", "lofi"])
@pytest.mark.parametrize("tempo", TEMPOS)
def test_songs_are_loops_of_whole_frames_shorter_than_a_window(style: str, tempo: int) -> None:
    song = replace(SONG, style=style, tempo=tempo)
    notes = {
        (note.instrument, note.pitch, round(2 * note.start * FRAME_RATE), round(note.length, 6))
        for note in compose(song, 20.0)
    }

    def repeats(frames: int) -> bool:
        later = {(instrument, pitch, start + 2 * frames, length) for instrument, pitch, start, length in notes}
        return later - notes == {note for note in later if note[2] > 2 * (20.0 - 0.05) * FRAME_RATE - 1}

    loop = next(frames for frames in range(50, 500) if repeats(frames))
    assert loop <= 6 * FRAME_RATE


HELD = ("organ", "strings", "pad", "flute", "lead", "chip")


@pytest.mark.parametrize("instrument", HELD)
def test_a_later_note_has_the_phase_of_an_earlier_one(instrument: str) -> None:
    frames, second = 5, SAMPLE_RATE // 2
    first, later = (
        PITCHED[instrument](tuned(220.0, pulse), 2.0, np.random.default_rng(1), 0.5, pulse)
        for pulse in (instruments.Pulse(12), instruments.Pulse(12, offset=frames))
    )
    middle = slice(second, 3 * second)
    expected = first[frames * HOP :][middle]
    assert np.corrcoef(later[middle], expected)[0, 1] > 0.999
    assert np.corrcoef(later[middle], first[middle])[0, 1] < 0.9


@pytest.mark.parametrize("instrument", HELD)
@pytest.mark.parametrize("tempo", TEMPOS)
def test_held_notes_repeat_with_the_half_beat(instrument: str, tempo: int) -> None:
    pulse = instruments.Pulse(half_beat(tempo))
    period = HOP * pulse.half_beat
    wave = PITCHED[instrument](tuned(440.0, pulse), 2.5, np.random.default_rng(1), 0.5, pulse)
    middle = slice(SAMPLE_RATE, 2 * SAMPLE_RATE - period)
    assert np.corrcoef(wave[middle], wave[period:][middle])[0, 1] > 0.999


@pytest.mark.parametrize("tempo", TEMPOS)
def test_notes_are_in_tune_within_a_quarter_of_a_semitone(tempo: int) -> None:
    pulse = instruments.Pulse(half_beat(tempo))
    for pitch in range(33, 85):
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        assert abs(1200 * np.log2(tuned(frequency, pulse) / frequency)) < 26
        repeats = tuned(frequency, pulse) * instruments.period(frequency, pulse) / FRAME_RATE
        assert repeats == pytest.approx(round(repeats))


def test_the_beat_probe_counts_from_the_first_frame_of_a_song() -> None:
    beat = language_model.BeatProbe(sum(language_model.BEAT_CLASSES), seed=1)
    frames = torch.tensor([[0, 30, 31], [95, 96, 191]])
    songs = [replace(SONG, tempo=94), replace(SONG, tempo=62, style="waltz")]
    # tempo, frame of the beat, beat of the bar: 32 frames a beat and four beats, 48 and three
    true = [[(2, 0, 0), (2, 30, 0), (2, 31, 0)], [(0, 47, 1), (0, 0, 2), (0, 47, 0)]]
    hidden = torch.zeros(2, 3, sum(language_model.BEAT_CLASSES))
    with torch.no_grad():
        for b, row in enumerate(true):
            for s, (tempo, frame, count) in enumerate(row):
                hidden[b, s, [tempo, 6 + frame, 54 + count]] = 1.0
        rows = torch.eye(sum(language_model.BEAT_CLASSES)).split(list(language_model.BEAT_CLASSES))
        for head, weight in zip(beat.heads, rows, strict=True):
            head.weight.copy_(10 * weight)
            head.bias.zero_()
        assert beat(hidden, frames, songs) < 1e-6
        assert beat(hidden, frames + 1, songs) > 1
        assert beat(hidden, frames, songs[::-1]) > 1


def test_captions_are_true_and_report_their_topics() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        song = draw_song(rng)
        drawn = caption(song, rng)
        assert drawn.text
        assert drawn.topics <= {*TOPIC_PROBABILITIES, "bpm"}
        words = drawn.text.lower()
        if "bpm" in drawn.topics:
            assert str(drawn.bpm) in words  # a filler word may precede "bpm"
            assert nearest_tempo(drawn.bpm or 0) == song.tempo
        if not song.drums:
            assert "punchy" not in words
        if speed(song) == "fast":
            assert "slow" not in words
        if colour(song) == "dark":
            assert "crisp" not in words
            assert "sparkling" not in words


@pytest.mark.parametrize(
    ("song", "expected"),
    [
        ({"style": "techno", "tempo": 125, "drums": True}, set()),
        ({"style": "techno", "tempo": 125, "drums": False}, {"drums"}),
        ({"style": "ambient", "tempo": 75, "drums": False}, set()),
        ({"style": "ambient", "tempo": 150, "drums": True}, {"drums", "tempo"}),
        ({"style": "jazz", "tempo": 94, "drums": True}, set()),
        ({"style": "jazz", "tempo": 94, "drums": False}, set()),
    ],
)
def test_required_topics_are_always_mentioned(song: dict[str, object], expected: set[str]) -> None:
    drawn = replace(SONG, **song)
    assert surprises(drawn) == expected
    rng = np.random.default_rng(0)
    assert all(expected <= caption(drawn, rng, surprises(drawn)).topics for _ in range(50))


def test_the_tokenizer_can_spell_any_word(plan: Plan) -> None:
    tokenizer = text.tokenizer(plan)
    ids = tokenizer("Zyzzyva quixotic #42, lofi!")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert len(tokenizer("lofi")["input_ids"]) <= 3
