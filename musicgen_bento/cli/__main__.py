"""Run the command line: `python -m musicgen_bento.cli`."""

from musicgen_bento.cli import main

main()
