"""The model card: a training run, and between two marks the figures of `training.evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from training.evaluate import ATTRIBUTES, Result, Tally
from training.plan import CODEBOOK_SIZE, CODEBOOKS, Plan
from training.songs import SONGS, TEMPOS

BEGIN_MARK = "<!-- measured -->"
END_MARK = "<!-- end of measured -->"


def figures_table(result: Result) -> str:
    """Return the figures of an evaluation as Markdown tables."""
    lines = [
        "| prompt attribute | target | cfg_coef 3 | cfg_coef 1 | chance | rendered songs | detector on songs "
        "| same after codec |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    columns = (
        result.guided,
        result.unguided,
        result.chance,
        result.caption_accuracy,
        result.feature_accuracy,
        result.codec_agreement,
    )
    for attribute in ATTRIBUTES:
        aim = "" if attribute.required else "aim "
        cells = [_percent(column[attribute.name]) for column in columns]
        lines.append(f"| {attribute.name} | {aim}{attribute.target:.0%} | " + " | ".join(cells) + " |")
    agreement = Tally(
        sum(t.correct for t in result.codec_agreement.values()), sum(t.total for t in result.codec_agreement.values())
    )
    lines += [
        "",
        "| figure | target | measured |",
        "| --- | --- | --- |",
        f"| codec: same features before and after | 93% | {_percent(agreement)} |",
        f"| codec: SI-SDR, mean | 5 dB | {result.si_sdr:.2f} dB |",
        f"| codec: log-mel distance, mean | | {result.log_mel:.2f} dB |",
    ]
    lines += [f"| clips {fault} | 0 | {count} of {result.clips} |" for fault, count in result.faults.items()]
    lines += [
        f"| largest spectral flatness | {result.flatness_limit:.3f}, the renderer's | {result.max_flatness:.3f} |",
        f"| seconds for 10 s of audio, one clip | | {10 / result.realtime_factor:.1f} "
        f"(real-time factor {result.realtime_factor:.1f}) |",
    ]
    return "\n".join(lines)


def _percent(tally: Tally) -> str:
    return f"{tally.accuracy:.1%} of {tally.total}" if tally.total else "none"


def read_curve(plan: Plan, name: str) -> list[dict[str, float]]:
    """Read a curve of a run, one dictionary for every 20 steps."""
    text = (plan.folder / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write(plan: Plan, parameters: int, size: int, folder: Path) -> None:
    """Write the card of the model in `folder`, README.md, without figures, and its curves, curves.svg."""
    codec, decoder, lm = (read_curve(plan, name) for name in ("codec", "decoder", "language_model"))
    path = folder / "README.md"
    path.write_text(
        f"""# demo

A very small MusicGen model, trained for this project. It starts at once, needs no download, GPU or network, and has
the project's licence (MIT). Use it for trials, tests and offline work. For better music, name one of Meta's released
models in the same request.

| | |
| --- | --- |
| format | AudioCraft release: mono, 32 kHz, 50 frames/s, {CODEBOOKS} codebooks of {CODEBOOK_SIZE}, delay pattern |
| language model | {parameters / 1e6:.1f} M parameters: {plan.layers} layers, {plan.dim} wide, {plan.heads} heads |
| window | {plan.lm_seconds:g} s |
| text encoder | T5 of {plan.text_layers} layers, {plan.text_dim} wide, own tokenizer, trained with the language model |
| codec | EnCodec, {plan.filters} filters, latent {plan.latent} |
| files | {size / 1e6:.1f} MB, half precision |
| temperatures | a request's temperature 1 is {_format_list(plan.temperatures)} of the trained model's, by codebook |

## Data

{plan.songs:,} songs of 10 s, of the {len(SONGS):,} that the project's renderer (`training/`) can generate. They have
eleven instruments and four drums, all synthesised, twelve genres, major and minor modes, {TEMPOS[0]} to
{TEMPOS[-1]} beats a minute, and captions from a grammar. The data contain no recordings and no works of others. The
model knows the English words of the grammar; some captions contain other words, so that it ignores them.

## Training

`python -m training`, seed {plan.seed}:

| | steps | minutes of wall time | at the end |
| --- | ---: | ---: | --- |
| codec | {codec[-1]["step"]:,.0f} | {_minutes(codec)} | {codec[-1]["sdr"]:.1f} dB waveform SDR |
| decoder alone | {decoder[-1]["step"]:,.0f} | {_minutes(decoder)} | spectral loss {decoder[-1]["spectral"]:.2f} |
| language model | {lm[-1]["step"]:,.0f} | {_minutes(lm)} | {lm[-1]["held_out"]:.2f} nats per token on held-out songs |

The [curves](curves.svg) show the training. [training/README.md](../../training/README.md) explains the plan.

## Measured

`python -m training evaluate` generates clips of 8 s for captions with a seed that is used for nothing else. There are
few songs, so most captions describe training songs in other words. The codec is evaluated on the
{len(SONGS) - plan.songs} held-out songs. Detectors on audio features (`training/audio_features.py`) decide whether a
clip has the attribute of its prompt. "Chance" compares each clip with another clip's caption. "Rendered songs" compares
the renderer's audio with its captions: a caption may give any tempo nearest to its song's, so the tempo row cannot
reach 100%.

{BEGIN_MARK}

Not measured yet.

{END_MARK}

## Limits

The model knows twelve genres, each with two instruments and two tunes, no voices, and English only. Every song is a
loop of about four seconds. Clips longer than the window of {plan.lm_seconds:g} s continue from the last seconds and may
drift. Occasionally a clip stays on a held note, mostly of strings or a pad without drums, or contains a stray drum hit.
The table shows how reliably the model follows prompts.
""",
        encoding="utf-8",
    )
    path.chmod(0o644)
    draw_curves(plan, folder / "curves.svg")


def _format_list(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _minutes(curve: list[dict[str, float]]) -> str:
    return f"{curve[-1]['seconds'] / 60:.0f}"


def has_marks(path: Path) -> bool:
    """Return whether a card has the marks around its figures."""
    _, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN_MARK)
    return bool(begin) and END_MARK in rest


def write_figures(result: Result, path: Path) -> None:
    """Replace the figures of a card.

    Raises:
        ValueError: the card has no marks.
    """
    if not has_marks(path):
        raise ValueError(f"{path} has no marks {BEGIN_MARK} and {END_MARK} for the figures.")
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN_MARK)
    _, _, after = rest.partition(END_MARK)
    path.write_text(f"{before}{BEGIN_MARK}\n\n{figures_table(result)}\n\n{END_MARK}{after}", encoding="utf-8")


def draw_curves(plan: Plan, path: Path) -> None:
    """Draw the curves of a run as SVG."""
    panels = []
    for column, (name, key) in enumerate(
        (("codec", "sdr"), ("decoder", "spectral"), ("language_model", "held_out"), ("language_model", "caption_gain"))
    ):
        points = [(line["step"], line[key]) for line in read_curve(plan, name)]
        low, high = min(y for _, y in points), max(y for _, y in points)
        left, last = 20 + 240 * column, points[-1][0]
        points = points[:: -max(1, len(points) // 200)]  # from the end, so that the last point is drawn
        line = " ".join(
            f"{left + 200 * x / last:.1f},{140 - 100 * (y - low) / max(high - low, 1e-9):.1f}" for x, y in points
        )
        panels.append(
            f'<text x="{left}" y="20">{name.replace("_", " ")}: {key.replace("_", " ")}</text>'
            f'<text x="{left}" y="160">{low:.2f} to {high:.2f}, {last} steps</text>'
            f'<polyline points="{line}" fill="none" stroke="#0a7"/>'
        )
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 980 170" font-family="sans-serif" font-size="12">'
        '<rect width="980" height="170" fill="#fff"/>' + "".join(panels) + "</svg>\n",
        encoding="utf-8",
    )
