"""`verify`: how far the precisions are from float32 on the weights of a model."""

from __future__ import annotations

import click

from musicgen_bento.cli.generate import complete_model_name

DEFAULT_SECONDS = 4.0
PRECISIONS = ("bfloat16", "float16", "int8")
ROW_FORMAT = "{:<10} {:<9} {:>9} {:>9} {:>7} {:>9}"
HELP = """Compare precisions with float32 on the weights of MODEL.

All precisions read the same tokens, which float32 generates, greedily and by sampling. The table compares their
distributions of the next token. It runs on the CPU and takes a minute for a small model. Without --precision it
compares all precisions of this CPU.

\b
musicgen-bento verify facebook/musicgen-small --precision int8
"""


@click.command(help=HELP)
@click.argument("model", shell_complete=complete_model_name)
@click.option(
    "--precision",
    "-p",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Compare this precision only; may be repeated.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=DEFAULT_SECONDS,
    show_default=True,
    help="Seconds of music to read, up to the model's window. Errors of a quantized KV cache grow with it.",
)
def verify(model: str, precision: tuple[str, ...], seconds: float) -> None:
    """Print a table, and a verdict for each precision."""
    from musicgen_bento import device
    from musicgen_bento.checkpoint import loading
    from musicgen_bento.checkpoint.resolve import resolve_model
    from musicgen_bento.config import Settings
    from musicgen_bento.engine.compare_precision import CPU, MAX_KL, MIN_AGREEMENT, measure_distances
    from musicgen_bento.precision import supported_precisions

    precisions = [device.select_precision(CPU, Settings(precision=name)) for name in precision]
    if not precisions:
        supported = supported_precisions(CPU).values()
        precisions = [candidate for candidate in supported if candidate.name != "float32"]
    source = resolve_model(model, any_model=True, folders=True)
    files = loading.open_files(source)
    is_close: dict[str, bool] = {}
    click.echo(ROW_FORMAT.format("precision", "contexts", "KL, nats", "99% below", "top-1", "compared"))
    for distance in measure_distances(files, precisions, seconds):
        figures = f"{distance.kl:.5f}", f"{distance.kl_99:.4f}", f"{distance.agreement:.1%}", distance.distributions
        click.echo(ROW_FORMAT.format(distance.precision, distance.contexts, *figures))
        is_close[distance.precision] = is_close.get(distance.precision, True) and distance.is_close
    for name, close in is_close.items():
        click.echo(f"{name}: {'as good as' if close else 'not as good as'} float32 for {source.name}")
    click.echo(f"(as good: mean KL at most {MAX_KL:g} nats, and the same top token in at least {MIN_AGREEMENT:.0%})")
