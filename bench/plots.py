"""The plots, as SVG, drawn by hand: the lock has no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bench.results import Result, figure
from bench.rounds import POSITIONS, Cell, step_ms
from bench.service import Crowd

COLOURS = ("#0a7", "#064", "#5c9", "#2b8cbe", "#c33", "#e90", "#975")
WIDTH, LEFT, RIGHT, TOP = 760, 60, 220, 40


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#000") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"/>'


def steps(result: Result) -> str:
    """Milliseconds of a step of one clip by position, a line for each contestant; the scale is logarithmic."""
    names = list(dict.fromkeys(visit.contestant for visit in result.visits))
    found = {
        name: [(position, ms) for position in POSITIONS if (ms := step_ms(result.visits, name, Cell(1, position)))]
        for name in names
    }
    values = [ms for points in found.values() for _, ms in points] or [1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    bottom, right = TOP + 300, WIDTH - RIGHT

    def at(position: float, ms: float) -> tuple[float, float]:
        x = LEFT + (right - LEFT) * position / POSITIONS[-1]
        return x, bottom - (bottom - TOP) * (math.log10(ms) - low) / max(1, high - low)

    parts = []
    for power in range(low, high + 1):
        _, y = at(0, 10.0**power)
        parts += [_line(LEFT, y, right, y, "#ddd"), _text(LEFT - 6, y + 4, f"{10.0**power:g}", "end")]
    for position in POSITIONS:
        parts.append(_text(at(position, 10.0**low)[0], bottom + 18, str(position), "middle"))
    parts.append(_text((LEFT + right) / 2, bottom + 36, "position", "middle"))
    drawn = [(colour, name, points) for colour, (name, points) in zip(COLOURS, found.items(), strict=False) if points]
    label = 0.0
    for colour, name, points in sorted(drawn, key=lambda each: -each[2][-1][1]):
        places = [at(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label = max(places[-1][1] + 4, label + 13)  # from the slowest down, each below the last
        parts.append(_text(right + 8, label, f"{name}, {figure(points[-1][1])}", colour=colour))
    return _svg(bottom + 50, f"{result.size}: ms a step, one clip", parts)


def timeline(crowd: Crowd, size: str) -> str:
    """Who asked, joined, had the first audio and the last, a row for each clip."""
    end = max(clip.last for clip in crowd.clips)
    right, height = WIDTH - 130, 18

    def x(seconds: float) -> float:
        return LEFT + (right - LEFT) * seconds / end

    parts = []
    for row, clip in enumerate(crowd.clips):
        y = TOP + height * row
        parts += [
            _text(LEFT - 6, y + 12, f"{clip.duration:g} s", "end"),
            _line(x(clip.asked), y + 8, x(clip.joined), y + 8, "#bbb", 8),
            _line(x(clip.joined), y + 8, x(clip.first), y + 8, "#fc6", 8),
            _line(x(clip.first), y + 8, x(clip.last), y + 8, "#0a7", 8),
            _text(right + 8, y + 12, f"{clip.first:.2f} s, {clip.last:.1f} s"),
        ]
    bottom = TOP + height * len(crowd.clips)
    for tick in range(5):
        seconds = end * tick / 4
        parts.append(_text(x(seconds), bottom + 16, f"{seconds:.0f} s", "middle"))
    legend = (("#bbb", "waits for a slot"), ("#fc6", "in the batch, no sound yet"), ("#0a7", "sound comes"))
    for number, (colour, what) in enumerate(legend):
        parts += [_line(LEFT + 190 * number, bottom + 34, LEFT + 190 * number + 14, bottom + 34, colour, 8)]
        parts += [_text(LEFT + 190 * number + 20, bottom + 38, what)]
    parts.append(_text(right + 8, TOP - 6, "first, last"))
    return _svg(bottom + 50, f"{size}: {crowd.clients} clients at once", parts)
