"""`make bench`: measure this service, AudioCraft and transformers on one machine, in one run.

Writes tables, plots and all measurements as JSON into a folder, prints the tables, and prints a summary as one line of
JSON last. If a backend fails, its row contains the error and the others continue. An interrupted run reports the
measurements so far.
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
@click.option("--quick", is_flag=True, help="Measure only the default precision and the baselines' steps.")
@click.option(
    "--size", "sizes", multiple=True, type=click.Choice(SIZES), help="Size of a random model; may be repeated."
)
@click.option("--model", help="A model of the catalogue instead of random models; its files must be on this machine.")
@click.option("--out", default=ROOT / "build" / "bench", type=click.Path(path_type=Path), help="Output folder.")
@click.option(
    "--rounds",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="Number of rounds; medium and large have one.",
)
@click.option(
    "--seconds", default=30.0, show_default=True, type=click.FloatRange(1, 300), help="Length of the long clip."
)
@click.option("--write", is_flag=True, help="Write the results of a complete run into docs/performance/.")
def main(
    quick: bool, sizes: tuple[str, ...], model: str | None, out: Path, rounds: int, seconds: float, write: bool
) -> None:
    """Measure one model after the other."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that started processes are ended
    results: list[tuple[Result, Model]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        os.environ["TMPDIR"] = temporary  # files that started processes leave behind are deleted with it
        try:
            for size in [model] if model else sizes or (("small",) if quick else ("small", "medium")):
                plan = Plan(quick, seconds, rounds if size in (model, "tiny", "small") else 1, time.monotonic())
                _log(size if model else f"{size}: writing the random model")
                measured = known_model(size) if model else random_model(size, Path(temporary) / size)
                run = Run(measured, plan, Path(temporary), _log)
                results.append((run.result, measured))
                run()
                report.write(results, out)
        finally:
            if results:
                _report(results, out, write)


def _report(results: list[tuple[Result, Model]], out: Path, write: bool) -> None:
    report.write(results, out)
    click.echo((out / "report.md").read_text(encoding="utf-8"))
    if write:
        for result in report.publish(results):
            _log(f"{result.size}: interrupted, so {report.PAGE.relative_to(ROOT)} is unchanged.")
    click.echo(json.dumps(results[0][0].summary()))


def _log(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
