"""Plots as SVG. They are written by hand because the lock file has no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bench.load_test import LoadTest
from bench.measurements import POSITIONS, Case, step_ms
from bench.results import Result
from bench.tables import format_figure

COLORS = ("#0a7", "#064", "#5c9", "#2b8cbe", "#c33", "#e90", "#975")
WIDTH, LEFT, RIGHT, TOP = 760, 60, 220, 40
LABEL_HEIGHT = 13


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = "#000") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width:g}"/>'


def step_times(result: Result) -> str:
    """Draw milliseconds per step at batch 1 by position, a line for each backend, on a logarithmic scale."""
    points_of: dict[str, list[tuple[int, float]]] = {}
    for backend in dict.fromkeys(measurement.backend for measurement in result.measurements):
        times = [(position, step_ms(result.measurements, backend, Case(1, position))) for position in POSITIONS]
        points_of[backend] = [(position, ms) for position, ms in times if ms]
    values = [ms for points in points_of.values() for _, ms in points] or [1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    bottom, right = TOP + 300, WIDTH - RIGHT

    def to_pixels(position: float, ms: float) -> tuple[float, float]:
        x = LEFT + (right - LEFT) * position / POSITIONS[-1]
        return x, bottom - (bottom - TOP) * (math.log10(ms) - low) / max(1, high - low)

    parts = []
    for power in range(low, high + 1):
        _, y = to_pixels(0, 10.0**power)
        parts += [_line(LEFT, y, right, y, "#ddd"), _text(LEFT - 6, y + 4, f"{10.0**power:g}", "end")]
    for position in POSITIONS:
        parts.append(_text(to_pixels(position, 10.0**low)[0], bottom + 18, str(position), "middle"))
    parts.append(_text((LEFT + right) / 2, bottom + 36, "position", "middle"))
    colored = [(color, *item) for color, item in zip(COLORS, points_of.items(), strict=False) if item[1]]
    label_y = 0.0
    for color, backend, points in sorted(colored, key=lambda line: -line[2][-1][1]):
        pixels = [to_pixels(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        label_y = max(pixels[-1][1] + 4, label_y + LABEL_HEIGHT)  # from the slowest down, without overlap
        parts.append(_text(right + 8, label_y, f"{backend}, {format_figure(points[-1][1])}", color=color))
    return _svg(bottom + 50, f"{result.size}: ms per step, one clip", parts)


def load_test_timeline(test: LoadTest, size: str) -> str:
    """Draw when each clip of a load test was requested, got a slot, and had its first and last audio."""
    end = max(clip.finished for clip in test.clips)
    right, row_height = WIDTH - 130, 18

    def x(seconds: float) -> float:
        return LEFT + (right - LEFT) * seconds / end

    parts = []
    for row, clip in enumerate(test.clips):
        y = TOP + row_height * row
        parts += [
            _text(LEFT - 6, y + 12, f"{clip.duration:g} s", "end"),
            _line(x(clip.sent), y + 8, x(clip.started), y + 8, "#bbb", 8),
            _line(x(clip.started), y + 8, x(clip.first_audio), y + 8, "#fc6", 8),
            _line(x(clip.first_audio), y + 8, x(clip.finished), y + 8, "#0a7", 8),
            _text(right + 8, y + 12, f"{clip.first_audio:.2f} s, {clip.finished:.1f} s"),
        ]
    bottom = TOP + row_height * len(test.clips)
    for tick in range(5):
        seconds = end * tick / 4
        parts.append(_text(x(seconds), bottom + 16, f"{seconds:.0f} s", "middle"))
    legend = (("#bbb", "waiting for a slot"), ("#fc6", "running, no audio yet"), ("#0a7", "receiving audio"))
    for number, (color, label) in enumerate(legend):
        parts += [_line(LEFT + 190 * number, bottom + 34, LEFT + 190 * number + 14, bottom + 34, color, 8)]
        parts += [_text(LEFT + 190 * number + 20, bottom + 38, label)]
    parts.append(_text(right + 8, TOP - 6, "first, last"))
    return _svg(bottom + 50, f"{size}: {test.clients} clients at once", parts)
