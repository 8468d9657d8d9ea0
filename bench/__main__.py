"""`make bench`: this service, AudioCraft and transformers on one machine, in one run.

Writes tables, plots and everything measured into a folder, prints the tables, and last one line of JSON. Whatever goes
wrong with one contestant is in its row; the others go on.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import click

from bench import report
from bench.models import ROOT, SIZES, Model, known_model, random_model
from bench.results import Result
from bench.run import Plan, run


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="In less than 5 minutes: the default precision, and the peers' steps.")
@click.option("--size", "sizes", multiple=True, type=click.Choice(SIZES), help="Of random models; may be given again.")
@click.option("--model", help="A model of the catalogue in the place of random ones; its files must be here.")
@click.option("--out", default=ROOT / "build" / "bench", type=click.Path(path_type=Path), help="Where the files go.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Of the contestants in turn.")
@click.option("--seconds", default=30.0, show_default=True, help="Of the long clip.")
@click.option("--write", is_flag=True, help="Put the results into docs/performance.md.")
def main(
    quick: bool, sizes: tuple[str, ...], model: str | None, out: Path, rounds: int, seconds: float, write: bool
) -> None:
    """Measure, one model after the other."""
    results: list[tuple[Result, Model]] = []
    for size in [model] if model else sizes or (("small",) if quick else ("small", "medium")):
        plan = Plan(quick, seconds, rounds, began=time.monotonic())
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            folder = Path(name)
            _say(f"{size}: making the model" if model is None else size)
            measured = known_model(size) if model else random_model(size, folder / "hub")
            results.append((run(measured, plan, folder, _say), measured))
            drawn = report.write(results, out)
    click.echo((out / "report.md").read_text(encoding="utf-8"))
    if write:
        report.publish(out, drawn)
    click.echo(json.dumps(results[0][0].summary()))


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
