"""`make bench`: this service, AudioCraft and transformers on one machine, in one run.

Writes tables, plots and everything measured into a folder, prints the tables, and last one line of JSON. Whatever goes
wrong with one contestant is in its row; the others go on. Where the run is ended, what is known by then is told.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from bench import report
from bench.machine import ROOT
from bench.models import SIZES, Model, known_model, random_model
from bench.results import Result
from bench.run import Plan, Run


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="The short form: the default precision, and the peers' steps.")
@click.option("--size", "sizes", multiple=True, type=click.Choice(SIZES), help="Of random models; may be given again.")
@click.option("--model", help="A model of the catalogue in the place of random ones; its files must be here.")
@click.option("--out", default=ROOT / "build" / "bench", type=click.Path(path_type=Path), help="Where the files go.")
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1), help="Of the contestants in turn; small's alone."
)
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(1, 300), help="Of the long clip.")
@click.option("--write", is_flag=True, help="Put what was not ended early into docs/performance.md.")
def main(
    quick: bool, sizes: tuple[str, ...], model: str | None, out: Path, rounds: int, seconds: float, write: bool
) -> None:
    """Measure, one model after the other."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what has been started is ended
    results: list[tuple[Result, Model]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        os.environ["TMPDIR"] = name  # whoever is started leaves what it leaves here
        try:
            for size in [model] if model else sizes or (("small",) if quick else ("small", "medium")):
                plan = Plan(quick, seconds, rounds if size in (model, "tiny", "small") else 1, began=time.monotonic())
                _say(size if model else f"{size}: making the model")
                measured = known_model(size) if model else random_model(size, Path(name) / size)
                run = Run(measured, plan, Path(name), _say)
                results.append((run.result, measured))
                run()
                report.write(results, out)
        finally:
            if results:
                _tell(results, out, write)


def _tell(results: list[tuple[Result, Model]], out: Path, write: bool) -> None:
    report.write(results, out)
    click.echo((out / "report.md").read_text(encoding="utf-8"))
    if write:
        for result in report.publish(results):
            _say(f"{result.size}: ended early, so docs/performance.md keeps what it has.")
    click.echo(json.dumps(results[0][0].summary()))


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
