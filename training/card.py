"""The model card: what a run was, and, between marks, what `evaluate` measures of its model, now or later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from training.evaluate import QUESTIONS, Result, Tally
from training.plan import CARD, CODEBOOKS, Plan
from training.songs import SONGS, TEMPOS

MEASURED = "<!-- measured -->"
END = "<!-- end of measured -->"


def table(result: Result) -> str:
    """The evaluation in Markdown."""
    lines = [
        "| what is asked for | bar | obeyed, cfg_coef 3 | cfg_coef 1 | by chance | by the songs themselves "
        "| meter right on songs | same after codec |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    columns = result.obeyed, result.loosely, result.chance, result.songs, result.meters, result.codec_agrees
    for question in QUESTIONS:
        aim = "" if question.must else "aim "
        cells = [_percent(column[question.name]) for column in columns]
        lines.append(f"| {question.name} | {aim}{question.bar:.0%} | " + " | ".join(cells) + " |")
    agrees = Tally(
        sum(t.right for t in result.codec_agrees.values()), sum(t.asked for t in result.codec_agrees.values())
    )
    lines += [
        "",
        "| figure | bar | measured |",
        "| --- | --- | --- |",
        f"| codec: the meters read the same before and after | 93% | {_percent(agrees)} |",
        f"| codec: SI-SDR, mean | 5 dB | {result.si_sdr:.2f} dB |",
        f"| codec: distance of log-mel bands, mean | | {result.log_mel:.2f} dB |",
    ]
    lines += [f"| clips {fault} | 0 | {count} of {result.clips} |" for fault, count in result.broken.items()]
    lines += [
        f"| largest spectral flatness | {result.flatness_bar:.3f}, the renderer's | {result.flattest:.3f} |",
        f"| seconds for 10 s of audio, alone | | {10 / result.real_time:.1f} ({result.real_time:.1f} x real time) |",
    ]
    return "\n".join(lines)


def _percent(tally: Tally) -> str:
    return f"{tally.share:.1%} of {tally.asked}" if tally.asked else "none asked"


def curves(plan: Plan, name: str) -> list[dict[str, float]]:
    """A run's curve, one dictionary every 20 steps."""
    text = (plan.folder / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write(plan: Plan, parameters: int, size: int, folder: Path) -> None:
    """The card of the model in `folder`, README.md, not measured yet, and its curves, curves.svg."""
    codec, decoder, lm = (curves(plan, name) for name in ("codec", "decoder", "language_model"))
    place = folder / "README.md"
    place.write_text(
        f"""# demo

A very small MusicGen, made for this project: it starts at once, needs no download, no GPU and no network, and its
licence is the project's own (MIT). It is for trying, testing and offline use. For music to keep, take one of Meta's
released models, by its name in the same request.

| | |
| --- | --- |
| format | AudioCraft's released one: mono, 32 kHz, 50 frames/s, {CODEBOOKS} codebooks of {CARD}, delay pattern |
| language model | {parameters / 1e6:.1f} M parameters: {plan.layers} layers, {plan.dim} wide, {plan.heads} heads |
| window | {plan.lm_seconds:g} s |
| text encoder | T5 of {plan.text_layers} layers, {plan.text_dim} wide, own tokenizer, learnt with the language model |
| codec | EnCodec, {plan.filters} filters, latent {plan.latent} |
| files | {size / 1e6:.1f} MB, half precision |
| temperatures | a request's 1 is {_listed(plan.temperatures)} of what was trained, by codebook |

## Data

{plan.songs:,} songs of 10 s of the {len(SONGS):,} that the project's own renderer knows
(`training/`): eleven instruments and four drums, all synthesised, twelve genres, major and minor, {TEMPOS[0]} to
{TEMPOS[-1]} beats a minute, and captions from a grammar. No recording and no work of anyone else is in it. It knows
the English words of its grammar; captions had others in between, so that it reads past them.

## Training

`python -m training`, seed {plan.seed}:

| | steps | minutes by the clock | at the end |
| --- | ---: | ---: | --- |
| codec | {codec[-1]["step"]:,.0f} | {_minutes(codec)} | {codec[-1]["sdr"]:.1f} dB of waveform |
| its decoder alone | {decoder[-1]["step"]:,.0f} | {_minutes(decoder)} | spectral loss {decoder[-1]["spectral"]:.2f} |
| language model | {lm[-1]["step"]:,.0f} | {_minutes(lm)} | {lm[-1]["held_out"]:.2f} nats a token on songs held out |

Their [curves](curves.svg), and how the plan came about: [training/README.md](../../training/README.md).

## Measured

`python -m training evaluate`: captions drawn with a seed of their own, used for nothing else, clips of 8 s. Songs are
few, so most that the captions are of were learnt from, in other words; the codec is judged on the
{len(SONGS) - plan.songs} that were not. "By chance" is each clip held against another one's caption, "by the songs
themselves" the renderer's own audio against its captions: a caption may say any tempo that is nearest to its song's, so
the row of tempos cannot come to 100%.

{MEASURED}

Nothing yet.

{END}

## Limits

It knows twelve genres, each with two instruments and two tunes of its own, no voices and no other language than
English, and every song is a loop of about four seconds. Beyond its window of {plan.lm_seconds:g} s it goes on from what
it has just played and may drift. Now and then a clip sticks to a held note, most often strings or a pad without drums,
or a stray drum is struck. What the table says is how well it hears the prompt.
""",
        encoding="utf-8",
    )
    place.chmod(0o644)
    draw(plan, folder / "curves.svg")


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _minutes(curve: list[dict[str, float]]) -> str:
    return f"{curve[-1]['seconds'] / 60:.0f}"


def has_place(place: Path) -> bool:
    """Whether a card has the marks that figures go between."""
    _, begin, rest = place.read_text(encoding="utf-8").partition(MEASURED)
    return bool(begin) and END in rest


def measured(result: Result, place: Path) -> None:
    """Put the figures into a card, in the place of those that are there.

    Raises:
        ValueError: it has no marks.
    """
    if not has_place(place):
        raise ValueError(f"{place} has no place for the figures, between {MEASURED} and {END}.")
    before, _, rest = place.read_text(encoding="utf-8").partition(MEASURED)
    _, _, after = rest.partition(END)
    place.write_text(f"{before}{MEASURED}\n\n{table(result)}\n\n{END}{after}", encoding="utf-8")


def draw(plan: Plan, place: Path) -> None:
    """The curves as a picture."""
    panels = []
    for column, (name, key) in enumerate(
        (("codec", "sdr"), ("decoder", "spectral"), ("language_model", "held_out"), ("language_model", "heeded"))
    ):
        points = [(line["step"], line[key]) for line in curves(plan, name)]
        low, high = min(y for _, y in points), max(y for _, y in points)
        left, last = 20 + 240 * column, points[-1][0]
        points = points[:: -max(1, len(points) // 200)]  # from the end, which is what came of it
        line = " ".join(
            f"{left + 200 * x / last:.1f},{140 - 100 * (y - low) / max(high - low, 1e-9):.1f}" for x, y in points
        )
        panels.append(
            f'<text x="{left}" y="20">{name.replace("_", " ")}: {key.replace("_", " ")}</text>'
            f'<text x="{left}" y="160">{low:.2f} to {high:.2f}, {last} steps</text>'
            f'<polyline points="{line}" fill="none" stroke="#0a7"/>'
        )
    place.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 980 170" font-family="sans-serif" font-size="12">'
        '<rect width="980" height="170" fill="#fff"/>' + "".join(panels) + "</svg>\n",
        encoding="utf-8",
    )
