"""Markdown tables and the format of their figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table.

    Args:
        headings: one for each column.
        rows: the cells of each row.
        text_columns: number of left-aligned columns; the columns after them hold figures and are right-aligned.
    """
    rule = [*["---"] * text_columns, *["---:"] * (len(headings) - text_columns)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rule, *rows))


def format_figure(value: float | None) -> str:
    """Return a figure with three significant digits, or '' for None."""
    if value is None:
        return ""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
