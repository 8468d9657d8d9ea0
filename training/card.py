"""The model card, from the figures of a run."""

from __future__ import annotations

import json
from pathlib import Path

from training.codec import KEPT
from training.evaluate import QUESTIONS, Result, Tally
from training.plan import CARD, CODEBOOKS, Plan


def table(result: Result) -> str:
    """The evaluation in Markdown."""
    lines = [
        "| what is asked for | bar | obeyed, cfg_coef 3 | cfg_coef 1 | meter right on songs | same after codec |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for question in QUESTIONS:
        aim = "aim " if question.name in ("major or minor", "tempo in bpm") else ""
        cells = [
            _percent(where[question.name])
            for where in (result.obeyed, result.loosely, result.meters, result.codec_agrees)
        ]
        lines.append(f"| {question.name} | {aim}{question.bar:.0%} | " + " | ".join(cells) + " |")
    lines += ["", *_codec_figures(result)]
    lines += [f"| clips {fault} | 0 | {count} of {result.clips} |" for fault, count in result.broken.items()]
    lines += [
        f"| largest spectral flatness | {result.flatness_bar:.3f}, the renderer's | {result.flattest:.3f} |",
        f"| seconds for 10 s of audio, alone | | {10 / result.real_time:.1f} ({result.real_time:.1f} x real time) |",
    ]
    return "\n".join(lines)


def codec_table(result: Result) -> str:
    """What is known of the codec alone, in Markdown."""
    lines = ["| what is heard | meter right on songs | same after codec |", "| --- | --- | --- |"]
    for question in QUESTIONS:
        cells = [_percent(where[question.name]) for where in (result.meters, result.codec_agrees)]
        lines.append(f"| {question.name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_codec_figures(result)])


def _codec_figures(result: Result) -> list[str]:
    agrees = Tally(
        sum(t.right for t in result.codec_agrees.values()), sum(t.asked for t in result.codec_agrees.values())
    )
    return [
        "| figure | bar | measured |",
        "| --- | --- | --- |",
        f"| codec: the meters read the same before and after | 93% | {_percent(agrees)} |",
        f"| codec: SI-SDR on held-out audio, mean | 5 dB | {result.si_sdr:.2f} dB |",
        f"| codec: distance of log-mel bands, mean | | {result.log_mel:.2f} dB |",
    ]


def _percent(tally: Tally) -> str:
    return f"{tally.share:.1%} of {tally.asked}" if tally.asked else "none asked"


def curves(plan: Plan, name: str) -> list[dict[str, float]]:
    """A run's curve, one dictionary every 20 steps; a codec's that was kept, where there is one."""
    kept = KEPT / f"{name}.jsonl"
    path = kept if kept.exists() else plan.folder / kept.name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(plan: Plan, result: Result, parameters: int, size: int, place: Path) -> None:
    """Write the card."""
    codec, decoder, lm = (curves(plan, name) for name in ("codec", "decoder", "language_model"))
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

## Data

{plan.songs:,} songs of 10 s, made by the project's own renderer (`training/`): eleven instruments and four drums, all
synthesised, twelve genres, major and minor, 60 to 180 beats a minute, and captions from a grammar. No recording and no
work of anyone else is in it. It knows English words of its grammar; others do not disturb it.

## Training

`python -m training`, seed {plan.seed}: the codec in {codec[-1]["step"]:,.0f} steps
({codec[-1]["seconds"] / 60:.0f} minutes), its decoder alone in {decoder[-1]["step"]:,.0f} more
({decoder[-1]["seconds"] / 60:.0f} minutes), the language model in {lm[-1]["step"]:,.0f} ({lm[-1]["seconds"] / 60:.0f}
minutes), on a part of two CPU cores. Last losses: codec {codec[-1]["spectral"]:.2f} spectral and {codec[-1]["sdr"]:.1f}
dB of waveform, language model {lm[-1]["loss"]:.2f}, and {lm[-1]["held_out"]:.2f} on songs held out. The curves are in
[training/curves.svg](../../training/curves.svg).

## Measured

`python -m training evaluate`, {result.clips} captions, songs and seeds that training never saw, clips of 8 s.

{table(result)}

## Limits

It knows twelve genres and its own eleven instruments, no voices and no other language than English, and it repeats
itself. Beyond its window of {plan.lm_seconds:g} s it goes on from what it has just played and may drift. What the table
says is how well it hears the prompt.
""",
        encoding="utf-8",
    )
    place.chmod(0o644)


def draw(plan: Plan, place: Path) -> None:
    """Both curves as a picture."""
    panels = []
    for column, (name, key) in enumerate(
        (("codec", "sdr"), ("codec", "spectral"), ("language_model", "held_out"), ("language_model", "heeded"))
    ):
        points = [(line["step"], line[key]) for line in curves(plan, name) if key in line]
        low, high = min(y for _, y in points), max(y for _, y in points)
        left, last = 20 + 240 * column, points[-1][0]
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
