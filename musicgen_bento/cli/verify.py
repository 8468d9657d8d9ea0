"""`verify`: how far the precisions are from float32 on a model's own weights."""

from __future__ import annotations

import click

from musicgen_bento.cli.generate import names

SECONDS = 4.0
ALL = ("bfloat16", "float16", "int8")
LINE = "{:<10} {:<9} {:>9} {:>9} {:>7} {:>9}"
HELP = """Compare precisions with float32 on MODEL's own weights.

Both read the same tokens, chosen by float32, greedily and by sampling; what is compared is what each would say next.
On a CPU, in a minute for a small model. Without --precision: all that a CPU has.

\b
musicgen-bento verify facebook/musicgen-small --precision int8
"""


@click.command(help=HELP)
@click.argument("model", shell_complete=names)
@click.option(
    "--precision",
    "-p",
    multiple=True,
    type=click.Choice(ALL),
    help="Only this one; may be given again.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=SECONDS,
    show_default=True,
    help="How much music is read, up to the model's window. Memory in fewer bits tells more in longer ones.",
)
def verify(model: str, precision: tuple[str, ...], seconds: float) -> None:
    """Print a table and a verdict for each."""
    from musicgen_bento import device
    from musicgen_bento.checkpoint import loading
    from musicgen_bento.checkpoint.resolve import resolve_model
    from musicgen_bento.config import Settings
    from musicgen_bento.engine.compare_precision import CPU, MAX_KL, MIN_AGREEMENT, measure_distances
    from musicgen_bento.precision import supported_precisions

    chosen = [device.select_precision(CPU, Settings(precision=name)) for name in precision]
    source = resolve_model(model, any_model=True, folders=True)
    files = loading.open_files(source)
    compared = chosen or [each for each in supported_precisions(CPU).values() if each.name != "float32"]
    near: dict[str, bool] = {}
    click.echo(LINE.format("precision", "contexts", "KL, nats", "99% below", "top-1", "compared"))
    for found in measure_distances(files, compared, seconds):
        figures = f"{found.kl:.5f}", f"{found.kl_99:.4f}", f"{found.agreement:.1%}", found.distributions
        click.echo(LINE.format(found.precision, found.contexts, *figures))
        near[found.precision] = near.get(found.precision, True) and found.is_close
    for name, good in near.items():
        click.echo(f"{name}: {'as good as' if good else 'not as good as'} float32 for {source.name}")
    click.echo(f"(as good: mean KL at most {MAX_KL:g} nats, the same top token in {MIN_AGREEMENT:.0%} or more)")
