"""A run in words: tables in Markdown, JSON, plots, and the results in docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import bars, plots
from bench.limit import markdown, milliseconds
from bench.machine import ROOT
from bench.models import SIZES, Model
from bench.results import Result, Served, figure
from bench.rounds import POSITIONS, Cell, clips, middle, step_ms
from musicgen_bento.precision import supported_precisions

PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "performance"
MARKS = {kind: (f"<!-- results: {kind} -->", f"<!-- end of results: {kind} -->") for kind in ("cpu", "gpu")}


def told(result: Result, model: Model) -> str:
    """All of a run."""
    parts = [f"### {result.size}", _machine(result), _bars(result), *_steps(result, model)]
    parts += [*_served(result), _demo(result), *_crowds(result), *_profile(result)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(result: Result) -> str:
    about = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['gpu'] or about['processor']}, {about['cores']} cores, {about['threads']} threads, "
        f"{about['memory_gb']:g} GB of memory; {', '.join(about['flags']) or 'no flags known'}.",
        f"{versions}; commit {about['commit'] or 'unknown'}.",
        f"Load before: {about['load_before']:g}. {'The short form' if result.quick else 'The whole'} "
        f"{f'took {result.took_s / 60:.1f} minutes' if result.took_s else 'was ended early'}; "
        f"default precision {result.default}; the long clip is {result.seconds:g} s.",
    ]
    if result.bandwidth:
        lines.append(f"Memory gives {result.bandwidth / 1e9:.1f} GB/s.")
    return "\n".join(lines)


def _bars(result: Result) -> str:
    return bars.table(result.machine["gpu"] is not None, result.size, result.figures())


def _steps(result: Result, model: Model) -> list[str]:
    """Milliseconds a step, and what follows from them."""
    names = list(dict.fromkeys(visit.contestant for visit in result.visits))
    if not names:
        return []
    batches = sorted({visit.cell.batch for visit in result.visits})
    cells = [Cell(batch, position) for batch in batches for position in POSITIONS]
    rows = []
    for name in names:
        long = middle(list(clips(result.visits, name, result.seconds).values()))
        rows.append(
            [
                name,
                *(figure(step_ms(result.visits, name, cell)) for cell in cells),
                figure(long),
                figure(result.peak_gb.get(name)),
                figure(result.load_s.get(name)),
            ]
        )
    ours = [name for name in names if name.startswith("ours ")]
    heads = ["ms a step", *(f"{cell.batch}@{cell.position}" for cell in cells)]
    heads += [f"{result.seconds:g} s of steps, s", "peak, GB", "load, s"]
    missing = {(visit.contestant, visit.cell): visit.note for visit in result.visits if visit.note}
    notes = [f"- {name}, {cell.batch}@{cell.position}: {note}" for (name, cell), note in missing.items()]
    said = (
        "Batch@position; two rows a clip, medians of the rounds. The steps of a clip are the forward pass alone, "
        "positions in between by straight lines. Peak and load are of the language model alone with its libraries, the "
        "peak at one clip."
    )
    return [said, markdown(heads, rows), "\n".join(notes), _shares(result, model, ours, cells)]


def _shares(result: Result, model: Model, names: Sequence[str], cells: Sequence[Cell]) -> str:
    """How near ours are to the limit."""
    if not result.bandwidth:
        return ""
    rows = []
    for name in names:
        precision = supported_precisions(_device(result))[name.removeprefix("ours ")]
        row = [name]
        for cell in cells:
            ms = step_ms(result.visits, name, cell)
            least = milliseconds(model.shape, precision, cell.position, cell.batch, result.bandwidth)
            row.append(f"{least / ms:.0%}" if ms else "")
        rows.append(row)
    heads = ["of the limit of memory", *(f"{cell.batch}@{cell.position}" for cell in cells)]
    return markdown(heads, rows)


def _device(result: Result) -> torch.device:
    return torch.device("cuda" if result.machine["gpu"] else "cpu")


def _served(result: Result) -> list[str]:
    heads = ["service", f"{result.seconds:g} s, s", "x real time", "first audio, s", "load, s", "peak, GB", "note"]
    rows = [_row(served, result) for served in result.served]
    return ["Over HTTP, one clip at a time; the peak is the runner's.", markdown(heads, rows)]


def _row(served: Served, result: Result) -> list[str]:
    alone = middle(list(served.clips.values()))
    return [
        served.precision + (" (default)" if served.precision == result.default else ""),
        figure(alone),
        figure(result.seconds / alone if alone else None),
        figure(middle(list(served.first_audio))),
        figure(served.load_s),
        figure(served.peak_gb),
        served.note or served.runner,
    ]


def _demo(result: Result) -> str:
    took, seconds = middle(list(result.demo.values())), result.demo_seconds
    return f"`demo`: {seconds:g} s in {took:.2f} s, {seconds / took:.1f} times real time." if took else ""


def _crowds(result: Result) -> list[str]:
    served = result.of(result.default)
    if not served.crowds:
        return []
    heads = ["clients", "audio s/s", "slowest over mean", "mean first audio, s", "clips", "audio, s"]
    rows = [
        [
            str(crowd.clients),
            figure(crowd.audio_s_per_s),
            figure(crowd.slowest_over_mean),
            figure(crowd.first_audio_s),
            str(len(crowd.clips)),
            f"{sum(clip.duration for clip in crowd.clips):g}",
        ]
        for crowd in served.crowds
    ]
    peak = f"Peak of the runner after them: {figure(served.peak_gb_clients)} GB."
    return [f"Clients of mixed durations by `/stream`, {result.default}.", markdown(heads, rows), peak]


def _profile(result: Result) -> list[str]:
    found = result.profile
    if not found:
        return []
    rows = [[name, f"{ms:.3f}"] for name, ms in found["parts"].items()]
    inside = [[f"`{each['name']}`", f"{each['calls']:g}", f"{each['ms']:.3f}"] for each in found["operators"]]
    return [
        f"One step of one clip at position {found['position']}, {found['precision']}: 20 ms of music.",
        markdown(["part", "ms"], rows),
        f"Inside the language model, {found['calls']:.0f} calls a step: as the kernel counts, or by torch's profiler, "
        "which makes each a little longer.",
        markdown(["operator", "calls a step", "own ms a step"], inside),
    ]


# ---- files


def write(results: Sequence[tuple[Result, Model]], folder: Path) -> None:
    """The results as JSON, the report and the plots, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(_json([result.as_json() for result, _ in results]), encoding="utf-8")
    report = "\n".join(told(result, model) for result, model in results)
    (folder / "report.md").write_text(report, encoding="utf-8")
    for result, _ in results:
        for file, picture in _drawn(result).items():
            (folder / file).write_text(picture, encoding="utf-8")


def publish(results: Sequence[tuple[Result, Model]], page: Path = PAGE, pictures: Path = PICTURES) -> list[Result]:
    """Put each model's report in the place of its last one in docs/performance.md, and its JSON and plots beside it.

    Returns:
        those that were ended early: they do not take the place of whole ones.
    """
    kind = "gpu" if results[0][0].machine["gpu"] else "cpu"
    begin, end = MARKS[kind]
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    kept, _, after = rest.partition(end)
    sections = {text.partition("\n")[0]: f"### {text.rstrip()}\n" for text in kept.split("\n### ")[1:]}
    pictures.mkdir(exist_ok=True)
    whole = [(result, model) for result, model in results if result.took_s]
    for result, model in whole:
        drawn = {f"{kind}-{file}": picture for file, picture in _drawn(result).items()}
        for file, text in (drawn | {f"{kind}-{_short(result)}.json": _json(result.as_json())}).items():
            (pictures / file).write_text(text, encoding="utf-8")
        shown = [f"![{Path(file).stem}]({pictures.name}/{file})\n" for file in drawn]
        sections[result.size] = "\n".join([told(result, model), *shown])
    order = sorted(sections, key=lambda size: SIZES.index(size) if size in SIZES else len(SIZES))
    text = "\n".join(sections[size] for size in order)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
    return [result for result, _ in results if not result.took_s]


def _drawn(result: Result) -> dict[str, str]:
    """The plots, by file."""
    found = {}
    if result.visits:
        found[f"{_short(result)}-steps.svg"] = plots.steps(result)
    if crowd := result.crowd(16):
        found[f"{_short(result)}-clients.svg"] = plots.timeline(crowd, result.size)
    return found


def _short(result: Result) -> str:
    return result.size.rpartition("/")[2]


def _json(found: Any) -> str:
    return json.dumps(found, indent=1) + "\n"
