"""Reports of a run: Markdown tables, JSON, plots, and the published results in docs/performance/results.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import plots
from bench.backends import engine_precision
from bench.machine import ROOT
from bench.measurements import POSITIONS, Case, clip_seconds_by_round, median_or_none, step_ms
from bench.models import SIZES, Model
from bench.results import Result, ServiceResult
from bench.roofline import roofline_ms
from bench.tables import format_figure, markdown_table
from bench.targets import targets_table
from musicgen_bento.precision import supported_precisions

PAGE = ROOT / "docs" / "performance" / "results.md"
MARKS = {kind: (f"<!-- results: {kind} -->", f"<!-- end of results: {kind} -->") for kind in ("cpu", "gpu")}


def full_report(result: Result, model: Model) -> str:
    """Return all tables of a run as Markdown."""
    targets = targets_table(result.machine["gpu"] is not None, result.size, result.figures())
    parts = [f"### {result.size}", _machine(result), targets, *_steps(result, model)]
    parts += [*_services(result), _demo(result), *_load_tests(result), *_profile(result)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(result: Result) -> str:
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']:g} GB of memory; {', '.join(machine['flags']) or 'CPU flags unknown'}.",
        f"{versions}; commit {machine['commit'] or 'unknown'}.",
        f"Load before the run: {machine['load_before']:g}. {'The quick run' if result.quick else 'The full run'} "
        f"{f'took {result.run_seconds / 60:.1f} minutes' if result.run_seconds else 'was interrupted'}; "
        f"default precision {result.default_precision}; length of the long clip {result.seconds:g} s.",
    ]
    if result.memory_bandwidth:
        lines.append(f"Memory bandwidth: {result.memory_bandwidth / 1e9:.1f} GB/s.")
    return "\n".join(lines)


def _steps(result: Result, model: Model) -> list[str]:
    """Return the step times, their failures, and the share of the roofline."""
    measurements = result.measurements
    backends = list(dict.fromkeys(entry.backend for entry in measurements))
    if not backends:
        return []
    batches = sorted({entry.case.batch for entry in measurements})
    cases = [Case(batch, position) for batch in batches for position in POSITIONS]
    case_headings = [f"{case.batch}@{case.position}" for case in cases]
    rows = []
    for backend in backends:
        clip = median_or_none(list(clip_seconds_by_round(measurements, backend, result.seconds).values()))
        figures = [step_ms(measurements, backend, case) for case in cases]
        figures += [clip, result.peak_gb.get(backend), result.load_seconds.get(backend)]
        rows.append([backend, *map(format_figure, figures)])
    headings = ["ms per step", *case_headings, f"steps of {result.seconds:g} s, s", "peak, GB", "load, s"]
    failures = {(entry.backend, entry.case): entry.note for entry in measurements if entry.note}
    notes = [f"- {backend}, {case.batch}@{case.position}: {note}" for (backend, case), note in failures.items()]
    explanation = (
        "Columns are batch@position, with two rows for each clip; figures are medians over the rounds. The steps of a "
        "clip are forward passes alone, interpolated between the positions. Load and peak memory are of the language "
        "model with its libraries, the peak at batch 1."
    )
    engine_backends = [backend for backend in backends if engine_precision(backend) is not None]
    shares = _roofline_shares(result, model, engine_backends, cases, case_headings)
    return [explanation, markdown_table(headings, rows), "\n".join(notes), shares]


def _roofline_shares(
    result: Result, model: Model, backends: Sequence[str], cases: Sequence[Case], case_headings: Sequence[str]
) -> str:
    """Return the least time of a step over the measured one, for this project's backends."""
    if not result.memory_bandwidth:
        return ""
    precisions = supported_precisions(torch.device("cuda" if result.machine["gpu"] else "cpu"))
    rows = []
    for backend in backends:
        precision = precisions[engine_precision(backend) or ""]
        row = [backend]
        for case in cases:
            measured = step_ms(result.measurements, backend, case)
            least = roofline_ms(model.shape, precision, case.position, case.batch, result.memory_bandwidth)
            row.append(f"{least / measured:.0%}" if measured else "")
        rows.append(row)
    return markdown_table(["share of the memory roofline", *case_headings], rows)


def _services(result: Result) -> list[str]:
    seconds = f"{result.seconds:g} s, s"
    headings = ["service", seconds, "real-time factor", "first audio, s", "load, s", "peak, GB", "note"]
    rows = [_service_row(service, result) for service in result.services]
    return ["Over HTTP, one client; peak memory is the runner's.", markdown_table(headings, rows)]


def _service_row(service: ServiceResult, result: Result) -> list[str]:
    latency = median_or_none(list(service.clip_latency.values()))
    return [
        service.precision + (" (default)" if service.precision == result.default_precision else ""),
        format_figure(latency),
        format_figure(result.seconds / latency if latency else None),
        format_figure(median_or_none(list(service.first_audio))),
        format_figure(service.load_seconds),
        format_figure(service.peak_gb),
        service.note or service.runner_log,
    ]


def _demo(result: Result) -> str:
    latency, seconds = median_or_none(list(result.demo_latency.values())), result.demo_seconds
    return f"`demo`: {seconds:g} s in {latency:.2f} s, real-time factor {seconds / latency:.1f}." if latency else ""


def _load_tests(result: Result) -> list[str]:
    service = result.service(result.default_precision)
    if not service.load_tests:
        return []
    headings = ["clients", "audio s/s", "slowest over mean", "mean first audio, s", "clips", "audio, s"]
    rows = [
        [
            str(test.clients),
            format_figure(test.audio_seconds_per_second),
            format_figure(test.slowest_over_mean),
            format_figure(test.mean_first_audio),
            str(len(test.clips)),
            f"{sum(clip.duration for clip in test.clips):g}",
        ]
        for test in service.load_tests
    ]
    peak = f"Peak memory of the runner after the load tests: {format_figure(service.peak_gb_after_load_tests)} GB."
    title = f"Load tests with clips of mixed durations by `/stream`, {result.default_precision}."
    return [title, markdown_table(headings, rows), peak]


def _profile(result: Result) -> list[str]:
    profile = result.profile
    if not profile:
        return []
    parts = [[name, f"{ms:.3f}"] for name, ms in profile["parts"].items()]
    operators = [
        [f"`{operator['name']}`", f"{operator['calls']:g}", f"{operator['ms']:.3f}"]
        for operator in profile["operators"]
    ]
    return [
        f"One step of one clip at position {profile['position']}, {profile['precision']}: 20 ms of audio.",
        markdown_table(["part", "ms"], parts),
        f"Inside the language model, {profile['calls']:.0f} calls a step, timed by the kernel's counters or by torch's "
        "profiler. The profiler makes each call a little longer.",
        markdown_table(["operator", "calls per step", "own ms per step"], operators),
    ]


# ---- files


def write(results: Sequence[tuple[Result, Model]], folder: Path) -> None:
    """Write the results as JSON, the report and the plots into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(_json([result.as_json() for result, _ in results]), encoding="utf-8")
    report = "\n".join(full_report(result, model) for result, model in results)
    (folder / "report.md").write_text(report, encoding="utf-8")
    for result, _ in results:
        for file, plot in _plots(result).items():
            (folder / file).write_text(plot, encoding="utf-8")


def publish(results: Sequence[tuple[Result, Model]], page: Path = PAGE) -> list[Result]:
    """Replace each model's report in docs/performance/results.md, and write its JSON and plots into the same folder.

    Returns:
        The results of interrupted runs, which replace nothing.
    """
    kind = "gpu" if results[0][0].machine["gpu"] else "cpu"
    begin, end = MARKS[kind]
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    published, _, after = rest.partition(end)
    sections = {text.partition("\n")[0]: f"### {text.rstrip()}\n" for text in published.split("\n### ")[1:]}
    complete = [(result, model) for result, model in results if result.run_seconds]
    for result, model in complete:
        plots_by_file = {f"{kind}-{file}": plot for file, plot in _plots(result).items()}
        for file, text in (plots_by_file | {f"{kind}-{_short_name(result)}.json": _json(result.as_json())}).items():
            (page.parent / file).write_text(text, encoding="utf-8")
        images = [f"![{Path(file).stem}]({file})\n" for file in plots_by_file]
        sections[result.size] = "\n".join([full_report(result, model), *images])
    order = sorted(sections, key=lambda size: SIZES.index(size) if size in SIZES else len(SIZES))
    text = "\n".join(sections[size] for size in order)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
    return [result for result, _ in results if not result.run_seconds]


def _plots(result: Result) -> dict[str, str]:
    """Return the plots as SVG by file name."""
    plots_by_file = {}
    if result.measurements:
        plots_by_file[f"{_short_name(result)}-steps.svg"] = plots.step_times(result)
    if test := result.load_test(16):
        plots_by_file[f"{_short_name(result)}-clients.svg"] = plots.load_test_timeline(test, result.size)
    return plots_by_file


def _short_name(result: Result) -> str:
    return result.size.rpartition("/")[2]


def _json(data: Any) -> str:
    return json.dumps(data, indent=1) + "\n"
