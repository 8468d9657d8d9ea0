"""The built-in model's making, at toy size: what is trained is what the engine plays."""

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
from training import codec, dataset, export, fast, instruments, language_model, meters, text
from training.__main__ import make
from training.captions import CHANCES, caption, colour, speed
from training.instruments import DRUMS, PITCHED, tuned
from training.loop import Busy, Clock, OutOfTime, alone, steps
from training.losses import highs_error
from training.network import Network, delayed
from training.plan import CARD, CODEBOOKS, FRAME_RATE, HOP, SAMPLE_RATE, OtherPlan, Plan
from training.render import render
from training.songs import SONGS, STYLES, TEMPOS, Song, compose, draw_song, half_beat, near, surprises

SONG = Song("rock", 125, "major", register="middle", brightness=1.0, drums=True, tune=0)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("training")
    return Plan(
        folder=folder,
        songs=100,
        codec_steps=4,
        plain_steps=2,
        clean_from=3,
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
    few = [(song, render(song, dataset.SECONDS)) for song in dataset.order(plan.seed)[:4]]
    (plan.folder / "songs").mkdir()
    samples = np.stack([few[n % 4][1] for n in range(100)])
    np.save(plan.folder / "songs" / "songs-000.npy", np.round(samples * 32_767).astype(np.int16))
    dataset.describe(plan.folder / "songs" / "songs-000.json", [few[n % 4][0] for n in range(100)])
    return dataset.Dataset(plan.folder / "songs")


@pytest.fixture(scope="module")
def made(plan: Plan, songs: dataset.Dataset) -> tuple[Path, Network]:
    """A model trained for a moment, in the released format."""
    trained = codec.train(plan, songs, Clock(10))
    tokens = language_model.encode(plan, trained, songs, Clock(10))
    network, encoder, tokenizer = language_model.train(plan, tokens, songs.songs, Clock(10))
    folder = plan.folder / "model"
    export.write(plan, trained, network, encoder, tokenizer, folder)
    return folder, network


def test_what_was_trained_is_what_the_engine_plays(plan: Plan, made: tuple[Path, Network]) -> None:
    folder, network = made
    loaded = loading.load(Source(str(folder), folder), torch.device("cpu"), FLOAT32)
    hears = TextConditioner(loaded)
    text_rows = hears.encode(hears.tokenize("a slow waltz, 🎹"))
    decoder = EagerDecoder(loaded.weights)
    read, _ = delayed(torch.randint(CARD, (1, CODEBOOKS, 20)))
    sequence = decoder.open(text_rows, guided=True, positions=64)
    stepped = torch.stack(
        [decoder.step([sequence], read[:, :, s], torch.tensor([2.0]))[0] for s in range(read.shape[-1])], dim=1
    )
    network.load_state_dict({k: v.half().float() for k, v in network.state_dict().items()})
    with torch.no_grad():
        hidden = loaded.text_encoder(input_ids=hears.tokenize("a slow waltz, 🎹")).last_hidden_state
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
        heard, deaf = (network(read, hidden, mask, torch.tensor([h]))[0][0] for h in (1.0, 0.0))
    as_trained = stepped * torch.tensor(plan.temperatures)[:, None, None]
    torch.testing.assert_close(as_trained, deaf + 2.0 * (heard - deaf), atol=1e-4, rtol=1e-4)


def test_padding_of_a_shorter_caption_changes_nothing(plan: Plan, made: tuple[Path, Network]) -> None:
    network, tokenizer = made[1], text.tokenizer(plan)
    encoder = text.encoder(plan, len(tokenizer)).eval()
    read, _ = delayed(torch.randint(CARD, (1, CODEBOOKS, 8)))

    def logits(prompts: list[str]) -> torch.Tensor:
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        hidden = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        ones = torch.ones(len(prompts))
        out: torch.Tensor = network(read.expand(len(prompts), -1, -1), hidden, batch["attention_mask"].bool(), ones)[0]
        return out

    with torch.no_grad():
        alone, beside = logits(["techno"])[0], logits(["techno", "a very long caption of a slow sad waltz"])[0]
    torch.testing.assert_close(alone, beside, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("length", [1, 100, 253])
def test_attention_in_blocks_is_torchs(length: int, dtype: torch.dtype, near: float) -> None:
    parts = [torch.randn(2, 3, length, 8, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(2, 3, length, 8)
    whole = F.scaled_dot_product_attention(*parts, is_causal=True)
    blocks = fast.attend(*(part.to(dtype) for part in parts))
    assert blocks.dtype == dtype
    torch.testing.assert_close(blocks.float(), whole, atol=near, rtol=near)
    theirs = torch.autograd.grad(whole, parts, upstream)
    for ours, wanted in zip(torch.autograd.grad(blocks, parts, upstream.to(dtype)), theirs, strict=True):
        assert (ours - wanted).norm() <= near * wanted.norm() + 1e-5
    allowed = torch.rand(2, 1, 1, length) < 0.7
    allowed[..., 0] = True
    across = fast.attend(*parts, allowed)
    torch.testing.assert_close(across, F.scaled_dot_product_attention(*parts, attn_mask=allowed))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_loss_in_one_pass_is_torchs(dtype: torch.dtype, near: float) -> None:
    logits = torch.randn(40, CARD, requires_grad=True)
    wanted = torch.randint(CARD, (40,))
    wanted[::7] = -100
    ours, theirs = fast.cross_entropy(logits.to(dtype), wanted), F.cross_entropy(logits, wanted)
    torch.testing.assert_close(ours, theirs, atol=near, rtol=near)
    gradient, other = (torch.autograd.grad(3 * loss, logits)[0] for loss in (ours, theirs))
    assert (gradient - other).norm() <= near * other.norm()


def test_a_codebook_reads_what_it_said_one_position_before() -> None:
    codes = torch.arange(12).view(1, 4, 3)
    read, say = delayed(codes)
    assert read.shape == say.shape == (1, 4, 6)
    assert (read[:, :, 0] == CARD).all()
    for k in range(4):
        assert say[0, k].tolist() == [-100] * k + codes[0, k].tolist() + [-100] * (3 - k)
        said = say[0, k, :-1]
        assert read[0, k, 1:].tolist() == torch.where(said < 0, CARD, said).tolist()


def test_training_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def run(folder: Path, budgets: list[float]) -> torch.Tensor:
        folder.mkdir()
        for minutes in budgets:
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 1)
            optimizer = torch.optim.AdamW(model.parameters())

            def step(number: int, model: torch.nn.Module = model, optimizer: torch.optim.Optimizer = optimizer):  # type: ignore[no-untyped-def]
                x = torch.randn(8, 4)  # each step's own, whatever was drawn before
                loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                return {"loss": loss.item()}

            try:
                steps("toy", folder, 6, {"model": model, "optimizer": optimizer}, step, Clock(minutes), 1)
            except OutOfTime:
                continue
        return model.weight.detach()

    whole = run(tmp_path / "whole", [1])
    in_parts = run(tmp_path / "parts", [0, 0, 0, 1])  # the first three end after a step each
    assert torch.equal(whole, in_parts)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with alone(tmp_path / "run"):
        with pytest.raises(Busy), alone(tmp_path / "run"):
            pass
        with alone(tmp_path / "other"):
            pass
    with alone(tmp_path / "run"):
        pass


def test_a_folder_is_one_plans(plan: Plan, tmp_path: Path) -> None:
    first = replace(plan, folder=tmp_path)
    first.claim()
    first.claim()
    replace(first, lm_steps=plan.lm_steps + 1).claim()
    with pytest.raises(OtherPlan):
        replace(first, seed=plan.seed + 1).claim()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.plan.SOURCES", ("songs.py",))
        with pytest.raises(OtherPlan):
            first.claim()
    (tmp_path / "plan.json").unlink()
    (tmp_path / "codec.state").touch()
    with pytest.raises(OtherPlan):  # nobody says whose it is
        first.claim()


def test_a_run_in_parts_ends_with_a_model_and_its_card(
    plan: Plan, songs: dataset.Dataset, made: tuple[Path, Network], tmp_path: Path
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
    # the decoder learns on alone in a run and not in `made`
    whole = torch.load(made[0] / "state_dict.bin", weights_only=True)["best_state"]
    in_parts = torch.load(folder / "demo" / "state_dict.bin", weights_only=True)["best_state"]
    assert all(torch.equal(tensor, in_parts[name]) for name, tensor in whole.items())


def test_the_same_seed_is_the_same_codec_batch(plan: Plan, songs: dataset.Dataset) -> None:
    one, again, other = (codec.windows(plan, songs, number) for number in (3, 3, 4))
    assert (one == again).all()
    assert not np.array_equal(one, other)


def test_the_decoder_learns_on_alone(plan: Plan, songs: dataset.Dataset, made: tuple[Path, Network]) -> None:
    trained = codec.train(plan, songs, Clock(10))  # it is there already
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    samples = np.round(32_767 * songs.window(0, 0, SAMPLE_RATE)[None]).astype(np.int16)
    said = codec.tokens(trained, samples)
    after = codec.finish(plan, trained, songs, Clock(10)).state_dict()
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder"}
    assert torch.equal(codec.tokens(trained, samples), said)
    assert not any(p.requires_grad for p in trained.parameters())


def test_what_is_misread_was_read_by_another(plan: Plan) -> None:
    read = torch.arange(4)[:, None, None].expand(4, CODEBOOKS, 500)
    wrong = language_model.misread(read, 0.1, np.random.default_rng(0)) != read
    assert 0.05 < wrong.float().mean() < 0.15
    assert (language_model.misread(read, 1.0, np.random.default_rng(0)) == (read - 1) % 4).all()
    assert (language_model.misread(read, 0.0, np.random.default_rng(0)) == read).all()


def test_highs_are_wrong_where_there_are_too_many_or_too_few() -> None:
    torch.manual_seed(0)
    wav = 0.2 * torch.sin(torch.arange(16_000) * 0.1)[None]
    noise = 0.02 * torch.randn(1, 16_000)
    assert highs_error(wav, wav) == 0
    assert highs_error(wav + noise, wav) > 10**2
    assert highs_error(wav, wav + noise) > 10**2
    assert highs_error(wav + 1.1 * noise, wav + noise) == 0
    assert highs_error(wav + 1e-5 * noise, wav) == 0  # nobody hears it


def test_an_exported_decoder_is_louder_and_its_tokens_are_the_same(plan: Plan, songs: dataset.Dataset) -> None:
    plain, loud = codec.build(plan).eval(), codec.build(plan).eval()
    loud.load_state_dict(export.louder(plain.state_dict(), 6.0))
    wav = torch.from_numpy(songs.window(0, 0, SAMPLE_RATE))[None, None]
    with torch.no_grad():
        codes, scale = plain.encode(wav)
        assert torch.equal(loud.encode(wav)[0], codes)
        torch.testing.assert_close(
            loud.decode(codes, scale), 10**0.3 * plain.decode(codes, scale), atol=1e-5, rtol=1e-4
        )


def test_too_large_a_model_is_not_written(
    plan: Plan, made: tuple[Path, Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LARGEST", 1_000)
    tokenizer = text.tokenizer(plan)
    with pytest.raises(ValueError, match="more than 1000"):
        export.write(plan, codec.build(plan), made[1], text.encoder(plan, len(tokenizer)), tokenizer, tmp_path / "out")


def test_kmeans_finds_the_middles() -> None:
    torch.manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (middles[:, None] + 0.1 * torch.randn(3, 50, 2)).reshape(-1, 2)
    centres, sizes = codec.kmeans(points, 8)
    assert sizes.sum() >= len(points)
    assert torch.cdist(middles, centres).min(dim=1).values.max() < 0.3


def test_a_song_is_the_same_whenever_it_is_rendered_and_another_tune_is_another_song() -> None:
    assert np.array_equal(render(SONG, 2.0), render(SONG, 2.0))
    assert not np.array_equal(render(SONG, 2.0), render(replace(SONG, tune=1), 2.0))
    notes = compose(SONG, 8.0)
    assert {note.instrument for note in notes} == {"organ", "lead", "bass", "kick", "snare", "hat"}
    assert all(0 <= note.start < 8 for note in notes)


def test_drums_alone_are_the_drums_of_the_song() -> None:
    drums = render(SONG, 4.0, drums_alone=True)
    rest = render(replace(SONG, drums=False), 4.0)
    assert np.abs(drums).max() > 0.05
    np.testing.assert_allclose(drums + rest, render(SONG, 4.0), atol=1e-5)
    assert not render(replace(SONG, drums=False), 4.0, drums_alone=True).any()


def test_every_song_is_learnt_from_or_left_and_none_twice() -> None:
    order = dataset.order(1)
    assert len(order) == len(SONGS) >= Plan().songs
    assert set(order) == set(SONGS)
    assert order != dataset.order(2)


def test_a_song_is_drawn_as_often_as_its_style_would_have_it() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_song(rng) for _ in range(600)]
    techno = [song for song in drawn if song.style == "techno"]
    assert 0.04 < len(techno) / len(drawn) < 0.14
    assert sum(song.drums for song in techno) > 0.6 * len(techno)
    assert sum(song.tempo in (125, 150) for song in techno) > 0.6 * len(techno)
    assert {song.tempo for song in drawn} == set(TEMPOS)


@pytest.mark.parametrize("number", range(12))
def test_songs_are_sound(number: int) -> None:
    song = dataset.order(5)[number]
    wav = render(song, 4.0)
    assert wav.shape == (4 * SAMPLE_RATE,)
    assert np.isfinite(wav).all()
    assert np.abs(wav).max() <= 0.98
    assert -30 < 20 * np.log10(np.sqrt(np.mean(wav**2))) < -13, song


@pytest.mark.parametrize(
    ("tempo", "wanted"), [(75, "4---2-0-"), (125, "40-.2-0-"), (150, "400.2200")], ids=["slow", "middle", "fast"]
)
def test_a_tune_is_longer_notes_when_slow_and_more_when_fast(tempo: int, wanted: str) -> None:
    """The tune `40-.`, `2-0-`: what is on the beat, what is written, and all that goes on struck again."""
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
    assert "".join(signs) == wanted


@pytest.mark.parametrize(
    ("one", "other", "meter", "threshold"),
    [
        ({"drums": False}, {"drums": True}, "percussion", meters.DRUMS),
        ({"tempo": 75}, {"tempo": 150}, "pace", meters.FAST),
        ({"register": "low"}, {"register": "high"}, "register", meters.HIGH),
        ({"brightness": 0.0}, {"brightness": 1.0}, "brightness", meters.BRIGHT),
        ({"mode": "minor"}, {"mode": "major"}, "mode", meters.MAJOR),
    ],
)
@pytest.mark.parametrize("style", ["rock", "folk", "lofi"])
def test_meters_tell_songs_apart_that_differ_in_one_thing(
    one: dict[str, object], other: dict[str, object], meter: str, threshold: float, style: str
) -> None:
    plain = replace(SONG, style=style)
    below = getattr(meters.read(render(replace(plain, **one), 8.0)), meter)
    above = getattr(meters.read(render(replace(plain, **other), 8.0)), meter)
    assert below < threshold < above


@pytest.mark.parametrize("style", STYLES)
def test_a_slow_songs_drums_are_on_the_beats_and_the_hat_is_on_each(style: str) -> None:
    song = replace(SONG, style=style, tempo=75)
    beat = 2 * half_beat(75) / FRAME_RATE
    struck = {name: {note.start for note in compose(song, 8 * beat) if note.instrument == name} for name in DRUMS}
    on_beats = {number * beat for number in range(8)}
    assert {round(at, 6) for at in struck["hat"]} == {round(at, 6) for at in on_beats}
    for starts in struck.values():
        assert all(min(abs(at - beat) for beat in on_beats) < 1e-6 for at in starts)


@pytest.mark.parametrize("style", ["ambient", "waltz", "jazz"])
def test_a_drum_that_is_struck_now_and_then_is_heard(style: str) -> None:
    song = replace(SONG, style=style, tempo=62, brightness=0.0, register="middle", drums=True)
    assert meters.read(render(song, 8.0)).percussion > meters.DRUMS


@pytest.mark.parametrize("style", ["rock", "folk", "waltz", "lofi"])
@pytest.mark.parametrize("tempo", TEMPOS)
def test_a_song_is_a_loop_of_whole_frames_that_a_window_holds_more_than_once(style: str, tempo: int) -> None:
    song = replace(SONG, style=style, tempo=tempo)
    notes = {
        (note.instrument, note.pitch, round(2 * note.start * FRAME_RATE), round(note.length, 6))
        for note in compose(song, 20.0)
    }

    def again(frames: int) -> bool:
        later = {(instrument, pitch, start + 2 * frames, length) for instrument, pitch, start, length in notes}
        return later - notes == {note for note in later if note[2] > 2 * (20.0 - 0.05) * FRAME_RATE - 1}

    loop = next(frames for frames in range(50, 500) if again(frames))
    assert loop <= 6 * FRAME_RATE


HELD = ("organ", "strings", "pad", "flute", "lead", "chip")


@pytest.mark.parametrize("instrument", HELD)
def test_a_note_that_begins_later_vibrates_with_one_that_began_before(instrument: str) -> None:
    frames, second = 5, SAMPLE_RATE // 2
    first, later = (
        PITCHED[instrument](tuned(220.0, pulse), 2.0, np.random.default_rng(1), 0.5, pulse)
        for pulse in (instruments.Pulse(12), instruments.Pulse(12, since=frames))
    )
    there = slice(second, 3 * second)
    wanted = first[frames * HOP :][there]
    assert np.corrcoef(later[there], wanted)[0, 1] > 0.999
    assert np.corrcoef(later[there], first[there])[0, 1] < 0.9


@pytest.mark.parametrize("instrument", HELD)
@pytest.mark.parametrize("tempo", TEMPOS)
def test_what_is_held_comes_again_with_the_half_beat(instrument: str, tempo: int) -> None:
    pulse = instruments.Pulse(half_beat(tempo))
    again = HOP * pulse.half_beat
    wave = PITCHED[instrument](tuned(440.0, pulse), 2.5, np.random.default_rng(1), 0.5, pulse)
    there = slice(SAMPLE_RATE, 2 * SAMPLE_RATE - again)
    assert np.corrcoef(wave[there], wave[again:][there])[0, 1] > 0.999


@pytest.mark.parametrize("tempo", TEMPOS)
def test_notes_are_in_tune_within_a_quarter_of_a_semitone(tempo: int) -> None:
    pulse = instruments.Pulse(half_beat(tempo))
    for pitch in range(33, 85):
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        assert abs(1200 * np.log2(tuned(frequency, pulse) / frequency)) < 26
        repeats = tuned(frequency, pulse) * instruments.period(frequency, pulse) / FRAME_RATE
        assert repeats == pytest.approx(round(repeats))


def test_the_beat_is_counted_from_a_songs_first_frame() -> None:
    beat = language_model.Beat(sum(language_model.BEATS), seed=1)
    frames = torch.tensor([[0, 30, 31], [95, 96, 191]])
    songs = [replace(SONG, tempo=94), replace(SONG, tempo=62, style="waltz")]
    # tempo, frame of the beat, beat of the bar: 32 frames a beat and four beats, 48 and three
    true = [[(2, 0, 0), (2, 30, 0), (2, 31, 0)], [(0, 47, 1), (0, 0, 2), (0, 47, 0)]]
    hidden = torch.zeros(2, 3, sum(language_model.BEATS))
    with torch.no_grad():
        for b, row in enumerate(true):
            for s, (tempo, frame, count) in enumerate(row):
                hidden[b, s, [tempo, 6 + frame, 54 + count]] = 1.0
        rows = torch.eye(sum(language_model.BEATS)).split(list(language_model.BEATS))
        for head, weight in zip(beat.heads, rows, strict=True):
            head.weight.copy_(10 * weight)
            head.bias.zero_()
        assert beat(hidden, frames, songs) < 1e-6
        assert beat(hidden, frames + 1, songs) > 1
        assert beat(hidden, frames, songs[::-1]) > 1


def test_captions_say_what_is_true_and_what_they_say_is_told() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        song = draw_song(rng)
        said = caption(song, rng)
        assert said.text
        assert said.says <= {*CHANCES, "bpm"}
        words = said.text.lower()
        if "bpm" in said.says:
            assert str(said.bpm) in words  # a stranger may stand before "bpm"
            assert near(said.bpm or 0) == song.tempo
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
def test_what_a_style_would_not_make_one_expect_is_always_said(song: dict[str, object], expected: set[str]) -> None:
    drawn = replace(SONG, **song)
    assert surprises(drawn) == expected
    rng = np.random.default_rng(0)
    assert all(expected <= caption(drawn, rng, surprises(drawn)).says for _ in range(50))


def test_the_tokenizer_spells_any_word(plan: Plan) -> None:
    tokenizer = text.tokenizer(plan)
    ids = tokenizer("Zyzzyva quixotic #42, lofi!")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert len(tokenizer("lofi")["input_ids"]) <= 3
